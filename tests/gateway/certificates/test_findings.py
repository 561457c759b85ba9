"""What the operator is told of certificates that can be used, but that clients refuse or soon will."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

import pytest
from cryptography import x509

from relay.config import Route
from relay.gateway.certificates.findings import Problem, expiry_of, find_all, labels_of
from relay.plane.certificates import ServerCertificate, read_certificate
from tests.support.certificates_made import DAY, NOW, authority, files_in, signed, write_pair

HOUR = datetime.timedelta(hours=1)


def certificate(
    folder: Path, *names: str, days: float = 367, lived: float = 30, **options: object
) -> ServerCertificate:
    """One that ends in so many days, and began so many days ago."""
    issuer = authority()
    made = signed(issuer, *names, begin=NOW - lived * DAY, end=NOW + days * DAY, **options)  # type: ignore[arg-type]
    return read_certificate(write_pair(files_in(folder, "made"), made, issuer.certificate))


def problems(*certificates: ServerCertificate, routes: tuple[str, ...] = (), now: datetime.datetime = NOW) -> list[str]:
    found = find_all(certificates, [Route(server_name=name, region="a") for name in routes], now)
    return [finding.problem.value for finding in found]


@pytest.mark.parametrize(
    ("days", "lived", "problem"),
    [
        (30.1, 366, None),
        (29.9, 366, Problem.ENDS_WITHIN_30_DAYS),
        (7.1, 366, Problem.ENDS_WITHIN_30_DAYS),
        (6.9, 366, Problem.ENDS_WITHIN_7_DAYS),
        (1.1, 366, Problem.ENDS_WITHIN_7_DAYS),
        (0.9, 366, Problem.ENDS_WITHIN_1_DAY),
        (-0.1, 366, Problem.EXPIRED),
        (29.9, -0.1, Problem.NOT_YET_VALID),
        # Made for a week, for a day: a month before the end it does not even exist.
        (6.5, 0.5, None),
        (1.1, 5.9, None),
        (0.9, 6.1, Problem.ENDS_WITHIN_1_DAY),
        (0.5, 0.5, None),
        (-0.1, 1.1, Problem.EXPIRED),
    ],
)
def test_validity(tmp_path: Path, days: float, lived: float, problem: Problem | None) -> None:
    assert problems(certificate(tmp_path, "a.test", days=days, lived=lived)) == ([] if problem is None else [problem])


def test_what_is_said(tmp_path: Path) -> None:
    made = certificate(tmp_path, "a.test", days=6, lived=366)
    [finding] = find_all([made], [], NOW)
    assert str(finding) == f"{made.files.chain}: ends in less than 7 days, on {NOW + 6 * DAY:%Y-%m-%d %H:%M} UTC"
    [finding] = find_all([made], [], NOW + 7 * DAY)
    assert str(finding) == f"{made.files.chain}: has expired, on {NOW + 6 * DAY:%Y-%m-%d %H:%M} UTC"
    [finding, _] = find_all([made], [], NOW - 367 * DAY)
    assert finding.text == f"is not valid before {NOW - 366 * DAY:%Y-%m-%d %H:%M} UTC: is this machine's clock right?"


def test_the_chain_counts(tmp_path: Path) -> None:
    """Clients refuse a good certificate whose authority has expired."""
    issuer = authority(days=5, now=NOW - 100 * DAY)
    made = read_certificate(write_pair(files_in(tmp_path, "a"), signed(issuer, "a.test"), issuer.certificate))
    [finding] = find_all([made], [], NOW)
    assert finding.problem is Problem.EXPIRED
    assert finding.text.startswith("'authority of a test' in its chain has expired, on ")
    assert expiry_of(made) == issuer.certificate.not_valid_after_utc


def test_names_in_the_subject_alone(tmp_path: Path) -> None:
    made = certificate(tmp_path, common_name="a.test")
    [finding] = find_all([made], [], NOW)
    assert (finding.problem, finding.where) == (Problem.NO_SAN, str(made.files.chain))
    assert labels_of(made) == ["a.test"]


def test_by_which_name_operators_know_it(tmp_path: Path) -> None:
    addresses = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("192.0.2.7"))])
    assert labels_of(certificate(tmp_path, "b.test", "A.test")) == ["a.test", "b.test"]
    assert labels_of(certificate(tmp_path, extensions=[addresses])) == ["192.0.2.7"]
    assert problems(certificate(tmp_path, extensions=[addresses])) == []
    assert labels_of(certificate(tmp_path)) == ["made.pem"]


@pytest.mark.parametrize(
    ("route", "names", "covered"),
    [
        ("a.test", ["a.test"], True),
        ("a.test", ["A.test"], True),
        ("b.a.test", ["*.a.test"], True),
        ("c.b.a.test", ["*.a.test"], False),
        ("a.test", ["*.a.test"], False),
        ("a.test", ["b.test", "xa.test"], False),
        # The route's * is one label or more, so each of these is a name that clients of the route may ask for.
        ("*.a.test", ["*.a.test"], True),
        ("*.a.test", ["b.a.test"], True),
        ("*.a.test", ["c.b.a.test"], True),
        ("*.a.test", ["*.b.a.test"], True),
        ("*.a.test", ["a.test", "*.test", "*.xa.test"], False),
    ],
)
def test_routes(tmp_path: Path, route: str, names: list[str], covered: bool) -> None:
    made = certificate(tmp_path, *names)
    found = find_all(
        [made], [Route(server_name="*.elsewhere.test", region="a"), Route(server_name=route, region="a")], NOW
    )
    assert [finding.where for finding in found] == [
        f"routes.{number}.server_name" for number in ([0] if covered else [0, 1])
    ]
    assert all(finding.problem is Problem.ROUTE_WITHOUT_CERTIFICATE for finding in found)


def test_any_certificate_may_cover_a_route(tmp_path: Path) -> None:
    first = certificate(tmp_path, "a.test")
    assert problems(first, certificate(tmp_path, "b.test"), routes=("b.test", "a.test")) == []
