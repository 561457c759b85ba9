"""Certificates in service: renewed while the relay runs, and the old one where the new cannot be used."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from relay.addresses import Address
from relay.config import CertificateFiles, Route
from relay.errors import OperatorError
from relay.gateway.certificates import keeper as module
from relay.gateway.certificates.files import State, read_all
from relay.gateway.certificates.keeper import CertificateKeeper, _Pair
from relay.gateway.file_state import MAX_LOOKS
from relay.plane.certificates import Certificate, ServerCertificate
from relay.tasks import in_daemon_thread
from tests.support.benches.gateway import running_relay
from tests.support.benches.plane import PLANES
from tests.support.certificates_made import DAY, NOW, authority, files_in, signed, write_pair, write_whole
from tests.support.peers.tls_client import TlsClient
from tests.support.waiting import becomes, eventually


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WATCH_INTERVAL_S", 0.01)


class Watched:
    """A folder of certificates with a keeper, and what it has put in service."""

    def __init__(self, folder: Path, routes: Sequence[Route] = ()) -> None:
        self.folder = folder
        self.issuer = authority()
        self.now = NOW
        self.served: list[list[ServerCertificate]] = []
        self.refuses = False
        self.keeper = CertificateKeeper(self._serve, lambda: self.now)
        self.entries = [CertificateFiles(certificate=folder / "*.pem", private_key=folder / "*.key")]
        self.routes = routes

    def _serve(self, certificates: Sequence[ServerCertificate]) -> None:
        if self.refuses:
            raise OperatorError("certificates: ee key too small")
        self.served.append(list(certificates))

    def write(self, stem: str, *names: str, end: datetime.datetime = NOW + 367 * DAY) -> Certificate:
        return write_pair(
            files_in(self.folder, stem), signed(self.issuer, *(names or (stem,)), begin=NOW - 366 * DAY, end=end)
        )

    def take(self) -> None:
        """As at the start, and in a reload."""
        self.keeper.take(self.entries, self.routes, read_all(self.entries))

    @property
    def names(self) -> list[list[str]]:
        """The names in the certificates that serve, in their order."""
        return [sorted(one.names) for one in self.served[-1]] if self.served else []


@contextlib.asynccontextmanager
async def watching(watched: Watched) -> AsyncIterator[None]:
    watched.take()
    watched.keeper.start()
    try:
        yield
    finally:
        await watched.keeper.stop()


async def looked(watched: Watched, times: int = MAX_LOOKS + 2) -> None:
    """Wait until the files have been looked at this often from now on."""
    looks = 0

    def look(entries: Sequence[CertificateFiles], known: Sequence[Certificate]) -> dict[Certificate, State]:
        nonlocal looks
        looks += 1
        return before(entries, known)

    before, module._look = module._look, look
    try:
        await eventually(lambda: looks >= times)
    finally:
        module._look = before


@pytest.mark.parametrize("plane", PLANES)
async def test_a_renewed_certificate_is_served_without_a_signal(tmp_path: Path, plane: str) -> None:
    async with running_relay(tmp_path, Address("127.0.0.1", 9), listen={"plane": plane}) as relay:

        async def serial() -> str:
            client = await TlsClient.open(relay.tls, relay.trust)
            shown = client.tls.getpeercert()
            assert shown is not None
            client.abort()
            return str(shown["serialNumber"])

        before = await serial()
        relay.authority.issue("relay.test", "more.test", "127.0.0.1")
        with capture_logs() as lines:
            await eventually(lambda: "more.test" in relay.gateway.certificates.expiries_s())
        assert await serial() != before
        events = [line["event"] for line in lines]
        assert [event for event in events if event.startswith("certificate")] == ["certificate taken into service"]
        # The web proxy takes clients that ask for the new name to the plane.
        assert "more.test" in relay.gateway.web_proxy._certified


async def test_nothing_is_put_in_service_while_nothing_changes(tmp_path: Path) -> None:
    """On the reference plane other certificates would end all TLS sessions."""
    watched = Watched(tmp_path)
    watched.write("a.test")
    async with watching(watched):
        await looked(watched)
        (tmp_path / "a.test.pem").touch()
        (tmp_path / "a.test.key").touch()
        await looked(watched)
    assert watched.served == []


async def test_certificate_and_key_that_change_one_after_the_other(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    files = watched.write("a.test")
    async with watching(watched):
        certificate = files_in(tmp_path / "aside", "a.test")
        write_pair(certificate, signed(watched.issuer, "b.test"))
        with capture_logs() as lines:
            write_whole(files.chain, certificate.chain.read_bytes())
            await becomes(lambda: watched.keeper.troubles, 1)
            assert list(watched.keeper.expiries_s()) == ["a.test"]
            write_whole(files.private_key, certificate.private_key.read_bytes())
            await becomes(lambda: watched.names, [["b.test"]])
        assert watched.keeper.troubles == 0
        # It was long enough between the two to be told.
        told, taken = lines
        assert (told["log_level"], told["event"]) == ("error", "certificate not taken into service: the old one stays")
        assert "KEY_VALUES_MISMATCH" in told["cause"]
        assert (taken["event"], taken["certificate"]) == ("certificate taken into service", str(files.chain))


async def test_a_bad_one_keeps_the_old_and_others_go_on(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    bad, _ = watched.write("a.test"), watched.write("b.test")
    async with watching(watched):
        with capture_logs() as lines:
            write_whole(bad.chain, b"this is no PEM\n")
            await becomes(lambda: watched.keeper.troubles, 1)
            watched.write("b.test", "b.test", "more.test")
            await becomes(lambda: watched.names, [["a.test"], ["b.test", "more.test"]])
            await looked(watched)
        assert [line["event"] for line in lines] == [
            "certificate not taken into service: the old one stays",
            "certificate taken into service",
        ]
        assert lines[0]["cause"] == f"certificate {bad.chain}: no PEM certificate in it"
        watched.write("a.test", "a.test", "again.test")
        await becomes(lambda: watched.names, [["a.test", "again.test"], ["b.test", "more.test"]])
        assert watched.keeper.troubles == 0


async def test_the_old_file_that_comes_back(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    files = watched.write("a.test")
    content = files.chain.read_bytes()
    async with watching(watched):
        files.chain.unlink()
        await becomes(lambda: watched.keeper.troubles, 1)
        with capture_logs() as lines:
            write_whole(files.chain, content)
            await becomes(lambda: watched.keeper.troubles, 0)
        assert [line["event"] for line in lines] == ["certificate can be used again"]
    assert watched.served == []


async def test_a_new_host_in_the_folder(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    watched.write("b.test")
    async with watching(watched):
        new = signed(watched.issuer, "a.test")
        write_pair(files_in(tmp_path, "a.test"), new)
        await becomes(lambda: watched.names, [["a.test"], ["b.test"]])
        with capture_logs() as lines:
            write_whole(tmp_path / "c.test.pem", b"this is no PEM\n")
            await becomes(lambda: watched.keeper.troubles, 1)
        assert [line["event"] for line in lines] == ["certificate not taken into service: there is no old one"]
        assert watched.names == [["a.test"], ["b.test"]]


async def test_a_folder_that_is_gone_takes_nothing_out_of_service(tmp_path: Path) -> None:
    """Until a reload, which takes what is there."""
    watched = Watched(tmp_path / "hosts")
    for name in ("a.test", "b.test"):
        watched.write(name)
    async with watching(watched):
        shutil.rmtree(tmp_path / "hosts")
        await becomes(lambda: watched.keeper.troubles, 2)
        assert set(watched.keeper.expiries_s()) == {"a.test", "b.test"}
        watched.write("b.test", "b.test", "more.test")
        await becomes(lambda: watched.names, [["b.test", "more.test"], ["a.test"]])
        watched.take()
        assert watched.keeper.troubles == 0
        assert set(watched.keeper.expiries_s()) == {"b.test", "more.test"}


async def test_what_the_plane_refuses(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    watched.write("a.test")
    async with watching(watched):
        watched.refuses = True
        with capture_logs() as lines:
            watched.write("a.test", "b.test")
            await becomes(lambda: watched.keeper.troubles, 1)
        assert lines[-1]["cause"] == "certificates: ee key too small"
        assert list(watched.keeper.expiries_s()) == ["a.test"]
        watched.refuses = False
        watched.write("a.test", "c.test")
        await becomes(lambda: watched.names, [["c.test"]])


async def test_a_reload_while_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read for the old configuration is not for the new one."""
    watched = Watched(tmp_path)
    watched.write("a.test")
    reading, go_on = asyncio.Event(), asyncio.Event()

    async def held(work: Callable[[], object], name: str) -> object:
        done = await in_daemon_thread(work, name)
        if isinstance(done, dict) and any(isinstance(one, ServerCertificate) for one in done.values()):
            reading.set()
            await go_on.wait()
        return done

    async with watching(watched):
        await looked(watched)
        monkeypatch.setattr(module, "in_daemon_thread", held)
        watched.write("a.test", "old.test")
        await reading.wait()
        other = Watched(tmp_path / "other")
        other.write("new.test")
        watched.keeper.take(other.entries, (), read_all(other.entries))
        go_on.set()
        await looked(watched)
        assert watched.served == []
        assert list(watched.keeper.expiries_s()) == ["new.test"]


def test_when_files_are_read() -> None:
    """When they were the same in two looks, and in any case after some looks."""

    def state(number: int) -> State:
        return ((number,), (number,))

    pair = _Pair()
    assert [pair.is_due(state(number)) for number in (1, 1)] == [False, True]
    pair.note_read(state(1))
    assert [pair.is_due(state(number)) for number in (1, 2, 3, 3)] == [False, False, False, True]
    pair.note_read(state(3))
    assert [pair.is_due(state(number)) for number in range(10, 10 + MAX_LOOKS)] == [False] * (MAX_LOOKS - 1) + [True]
    # Back as it was before anybody has read it.
    pair.note_read(state(20))
    assert [pair.is_due(state(number)) for number in (20, 21, 20, 20)] == [False] * 4


async def test_what_needs_attention_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FINDINGS_INTERVAL_S", 0.01)
    watched = Watched(tmp_path, [Route(server_name="elsewhere.test", region="a")])
    files = watched.write("a.test", end=NOW + 31 * DAY)

    def told(lines: Sequence[object]) -> list[tuple[str, str]]:
        return [(line["log_level"], line["problem"]) for line in lines]  # type: ignore[index]

    async with contextlib.AsyncExitStack() as stack:
        with capture_logs() as lines:
            await stack.enter_async_context(watching(watched))
            expected = [("warning", "route_without_certificate")]
            for days, problem in (
                (2, ("warning", "ends_within_30_days")),
                (25, ("warning", "ends_within_7_days")),
                (30.5, ("error", "ends_within_1_day")),
                (31.5, ("error", "expired")),
            ):
                watched.now = NOW + days * DAY
                expected.append(problem)
                await becomes(lambda: told(lines), expected)
            watched.keeper.tell()
            assert told(lines) == expected
        assert watched.keeper.expiries_s() == {"a.test": pytest.approx(-43_200)}
        assert lines[-1]["cause"].startswith(f"{files.chain}: has expired, on ")
        # A renewed one ends it, and the next one that ends is told anew.
        with capture_logs() as lines:
            watched.write("a.test", end=NOW + 400 * DAY)
            await eventually(lambda: watched.served)
            watched.now = NOW + 401 * DAY
            await eventually(lambda: len(lines) == 2)
        assert [line["event"] for line in lines] == ["certificate taken into service", "certificate needs attention"]
