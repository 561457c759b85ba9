"""Authorities of clients' certificates: the file is judged and watched, and a bad new one keeps the old in service."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from relay.ca.certificates import certificate_pem
from relay.errors import OperatorError
from relay.gateway.certificates import client_ca as module
from relay.gateway.certificates.client_ca import MAX_AUTHORITIES, ClientCa, read_authorities
from relay.plane.client_certificates import ClientAuthorities
from tests.support.certificates_made import DAY, NOW, authority, signed, write_whole
from tests.support.client_certificates import trusted, write_authorities
from tests.support.waiting import becomes, eventually


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WATCH_INTERVAL_S", 0.01)


def test_the_file_is_read(tmp_path: Path) -> None:
    one, other = authority(), authority()
    path = write_authorities(tmp_path / "ca.pem", one, other, one)
    found = read_authorities(path)
    assert (found.path, found.certificates) == (path, trusted(one, other).certificates)
    assert found.digest() != trusted(one).digest()


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    path, issuer = tmp_path / "ca.pem", authority()

    def mistake() -> str:
        with pytest.raises(OperatorError) as refused:
            read_authorities(path)
        text = str(refused.value)
        assert text.startswith(f"listen.client_ca: {path}: ")
        return text.removeprefix(f"listen.client_ca: {path}: ")

    assert mistake() == "No such file or directory"
    for content in (b"", b"this is no PEM\n", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        path.write_bytes(content)
        assert mistake() == "no PEM certificate in it, or one that cannot be read"
    path.write_bytes(certificate_pem(issuer.certificate) + certificate_pem(signed(issuer, common_name="desk 17")[0]))
    assert mistake() == "'desk 17': expected certificates of authorities (basicConstraints CA:TRUE)"
    path.write_bytes(certificate_pem(issuer.certificate) * (MAX_AUTHORITIES + 1))
    assert mistake() == f"{MAX_AUTHORITIES + 1} certificates: expected at most {MAX_AUTHORITIES}"
    path.write_bytes(b"#" * 1024 * 1024 + b"\n")
    assert mistake() == "expected at most 1048576 bytes"


class Watched:
    """A file with its keeper, and what that has put in service."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.old = authority()
        write_authorities(path, self.old)
        self.served: list[ClientAuthorities | None] = []
        self.refuses = False
        self.now = NOW
        self.keeper = ClientCa(path, self._serve, lambda: self.now)

    def _serve(self, authorities: ClientAuthorities | None) -> None:
        if self.refuses:
            raise OperatorError("certificates: no memory")
        self.served.append(authorities)

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        self.keeper.start()
        try:
            yield
        finally:
            await self.keeper.stop()


async def test_a_new_file_is_taken_without_a_signal(tmp_path: Path) -> None:
    watched, new = Watched(tmp_path / "ca.pem"), authority()
    async with watched.watching():
        with capture_logs() as lines:
            write_authorities(watched.path, watched.old, new)
            await becomes(lambda: len(watched.served), 1)
        assert watched.keeper.authorities == watched.served[0]
        assert watched.keeper.authorities == ClientAuthorities(watched.path, trusted(watched.old, new).certificates)
        assert [(line["event"], line["count"]) for line in lines] == [("client authorities taken into service", 2)]


async def test_a_bad_file_keeps_the_old_ones_and_says_so(tmp_path: Path) -> None:
    watched, new = Watched(tmp_path / "ca.pem"), authority()
    async with watched.watching():
        with capture_logs() as lines:
            write_whole(watched.path, b"this is no PEM\n")
            await eventually(lambda: watched.keeper.trouble)
            watched.path.unlink()
            await eventually(lambda: "No such file" in watched.keeper.trouble)
            write_authorities(watched.path, watched.old)
            await becomes(lambda: watched.keeper.trouble, "")
            assert watched.served == []
            watched.refuses = True
            write_authorities(watched.path, new)
            await becomes(lambda: watched.keeper.trouble, "certificates: no memory")
        refused = "client authorities not taken into service: the old ones stay"
        again = "client authorities can be used again"
        assert [line["event"] for line in lines] == [refused, refused, again, refused]
        assert lines[0]["log_level"] == "error"
        assert watched.keeper.authorities == ClientAuthorities(watched.path, trusted(watched.old).certificates)


async def test_a_reload_takes_the_file_at_once_or_not_at_all(tmp_path: Path) -> None:
    watched, new = Watched(tmp_path / "ca.pem"), authority()
    write_authorities(watched.path, new)
    watched.keeper.take(watched.keeper.read())
    assert watched.served == [ClientAuthorities(watched.path, trusted(new).certificates)]
    watched.path.write_bytes(b"")
    with pytest.raises(OperatorError, match="no PEM certificate"):
        watched.keeper.read()
    assert watched.keeper.authorities == watched.served[0]
    watched.refuses = True
    with pytest.raises(OperatorError, match="no memory"):
        watched.keeper.take(trusted(watched.old))
    assert watched.keeper.authorities == watched.served[0]


def test_authorities_that_end_are_told(tmp_path: Path) -> None:
    watched = Watched(tmp_path / "ca.pem")
    write_authorities(watched.path, authority(days=60, now=NOW - 50 * DAY), watched.old)
    watched.keeper.take(watched.keeper.read())

    def told() -> list[tuple[str, str]]:
        with capture_logs() as lines:
            watched.keeper.tell()
        return [(line["log_level"], line["problem"]) for line in lines]

    assert told() == []
    assert watched.keeper.expiry_s() == pytest.approx(10 * DAY.total_seconds(), abs=1)
    watched.now = NOW + 4 * DAY
    assert told() == [("warning", "ends_within_7_days")]
    assert told() == []
    watched.now = NOW + 11 * DAY
    assert told() == [("error", "expired")]
    assert (watched.keeper.expiry_s() or 0) < 0


def test_without_a_file_there_is_nothing(tmp_path: Path) -> None:
    keeper = ClientCa(None, lambda _: None)
    assert (keeper.authorities, keeper.read(), keeper.expiry_s(), keeper.trouble) == (None, None, None, "")
