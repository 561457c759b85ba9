"""What is wrong with certificates that can be used all the same: clients will refuse them, or soon will.

``now`` is an argument, in UTC. Nothing is read here but what was read before.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID

from relay.config import Route
from relay.name_patterns import matches, one_label_wildcard
from relay.plane.certificates import ServerCertificate
from relay.plane.client_certificates import ClientAuthorities

# Once a month somebody renews by hand, once a week a timer does, and the last day is an emergency.
WARN_DAYS = (1, 7, 30)
# A certificate that is made for a week is not in trouble for all of its life. So a warning counts only if it comes in
# the last third of it, which is when the makers of short ones advise to renew.
WARN_SHARE = 1 / 3
_DAY = datetime.timedelta(days=1)


class Problem(StrEnum):
    """What a finding is about."""

    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    ENDS_WITHIN_1_DAY = "ends_within_1_day"
    ENDS_WITHIN_7_DAYS = "ends_within_7_days"
    ENDS_WITHIN_30_DAYS = "ends_within_30_days"
    NO_SAN = "no_san"
    ROUTE_WITHOUT_CERTIFICATE = "route_without_certificate"


_ENDS_WITHIN = {1: Problem.ENDS_WITHIN_1_DAY, 7: Problem.ENDS_WITHIN_7_DAYS, 30: Problem.ENDS_WITHIN_30_DAYS}
# Clients are refused already, or will be tomorrow.
URGENT = frozenset({Problem.EXPIRED, Problem.NOT_YET_VALID, Problem.ENDS_WITHIN_1_DAY})


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem. ``where`` is the file of a certificate or a key of the configuration, ``text`` is for people."""

    problem: Problem
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


def find_all(
    certificates: Sequence[ServerCertificate], routes: Sequence[Route], now: datetime.datetime
) -> list[Finding]:
    """All findings, in the order of the certificates, and then of the routes."""
    found = [finding for certificate in certificates for finding in _of_certificate(certificate, now)]
    names = frozenset[str]().union(*(certificate.names for certificate in certificates))
    return [*found, *_of_routes(routes, names)]


def find_in_authorities(authorities: ClientAuthorities | None, now: datetime.datetime) -> list[Finding]:
    """The same of those who may sign certificates of clients: with an authority all that it has signed ends."""
    ders = () if authorities is None else authorities.certificates
    certificates = [x509.load_der_x509_certificate(der) for der in ders]
    path = Path() if authorities is None else authorities.path
    return [found for one in certificates for found in _of_validity(path, f"{shown_name(one)} ", one, now)]


def _of_certificate(certificate: ServerCertificate, now: datetime.datetime) -> Iterator[Finding]:
    path = certificate.files.chain
    leaf, *chain = x509.load_pem_x509_certificates(certificate.chain)
    yield from _of_validity(path, "", leaf, now)
    if not _alternative_names(leaf):
        text = "has no name or address in subjectAltName: clients refuse it, because they ignore the common name"
        yield Finding(Problem.NO_SAN, str(path), text)
    for above in chain:
        yield from _of_validity(path, f"{shown_name(above)} in its chain ", above, now)


def _of_validity(path: Path, what: str, certificate: x509.Certificate, now: datetime.datetime) -> Iterator[Finding]:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > end:
        yield Finding(Problem.EXPIRED, str(path), f"{what}has expired, on {_shown_time(end)}")
    elif now < begin:
        text = f"{what}is not valid before {_shown_time(begin)}: is this machine's clock right?"
        yield Finding(Problem.NOT_YET_VALID, str(path), text)
    else:
        for days in WARN_DAYS:
            if end - now < days * _DAY <= (end - begin) * WARN_SHARE:
                text = f"{what}ends in less than {days} day{'s' if days > 1 else ''}, on {_shown_time(end)}"
                yield Finding(_ENDS_WITHIN[days], str(path), text)
                return


def _of_routes(routes: Sequence[Route], names: frozenset[str]) -> Iterator[Finding]:
    for number, route in enumerate(routes):
        if not _covers(names, route.server_name):
            text = f"{route.server_name!r}: no certificate has such a name: clients that ask for it refuse the relay"
            yield Finding(Problem.ROUTE_WITHOUT_CERTIFICATE, f"routes.{number}.server_name", text)


def _covers(names: frozenset[str], pattern: str) -> bool:
    """True if one of the certificates' names is one that clients of this route ask for, or a wildcard of such names."""
    return one_label_wildcard(pattern) in names or any(matches(name, pattern) for name in names)


def _alternative_names(leaf: x509.Certificate) -> list[str]:
    """The names and addresses of the leaf's subjectAltName, in lower case."""
    try:
        extension = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    addresses = extension.get_values_for_type(x509.IPAddress)
    return [*map(str.lower, extension.get_values_for_type(x509.DNSName)), *map(str, addresses)]


def expiry_of(certificate: ServerCertificate) -> datetime.datetime:
    """When the first certificate of its chain ends, in UTC: clients refuse all of it from then on."""
    chain = x509.load_pem_x509_certificates(certificate.chain)
    return min(one.not_valid_after_utc for one in chain)


def labels_of(certificate: ServerCertificate) -> list[str]:
    """By which names operators know it: DNS names, or else addresses, or else the name of its file."""
    leaf = x509.load_pem_x509_certificates(certificate.chain)[0]
    return sorted(certificate.names) or _alternative_names(leaf) or [certificate.files.chain.name]


def shown_name(certificate: x509.Certificate) -> str:
    """The common name of a certificate in quotes, or else its whole subject."""
    [*names] = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return repr(str(names[0].value)) if names else certificate.subject.rfc4514_string()


def _shown_time(moment: datetime.datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
