"""OCSP responses stapled to handshakes, as OpenSSL's client sees them, and what happens when there is none."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509 import ocsp
from structlog.testing import capture_logs

from relay.addresses import Address
from relay.errors import OperatorError
from relay.gateway.certificates import stapling as module
from relay.gateway.certificates.stapling import RETRY, Stapler
from relay.plane.certificates import Certificate, ServerCertificate, read_certificate
from tests.support.benches.gateway import Relay, running_relay
from tests.support.certificates_made import DAY, NOW, authority, files_in, signed, write_pair
from tests.support.peers.ocsp import (
    MUST_STAPLE,
    Responder,
    answer_about,
    names_responder,
    openssl_responder,
    responding,
    stapled,
)
from tests.support.waiting import becomes, eventually

NOBODY = Address("127.0.0.1", 9)


class Asked:
    """A certificate that names this responder, and a stapler whose clock the test moves."""

    def __init__(self, folder: Path, responder: Responder, *extensions: x509.ExtensionType) -> None:
        self.issuer, self.responder, self.now = authority(), responder, NOW
        made = signed(self.issuer, "a.test", extensions=[names_responder(responder.url), *extensions])
        self.leaf = made[0]
        self.files = write_pair(files_in(folder, "made"), made, self.issuer.certificate)
        self.certificate = read_certificate(self.files)
        self.served: list[Sequence[ServerCertificate]] = []
        self.stapler = Stapler(self.served.append, lambda: self.now)

    def answer(self, **how: Any) -> bytes:
        self.responder.answer = answer_about(self.leaf, self.issuer, **how)
        return self.responder.answer

    @property
    def staples(self) -> list[bytes]:
        """What has been put in service, one after the other."""
        return [one.staple for certificates in self.served for one in certificates]

    async def look(self) -> None:
        """As the stapler does once a minute."""
        await self.stapler._look(lambda _: True)


@contextlib.asynccontextmanager
async def asked(folder: Path, *extensions: x509.ExtensionType) -> AsyncIterator[Asked]:
    async with responding() as responder:
        bench = Asked(folder, responder, *extensions)
        assert [one.staple for one in bench.stapler.take([bench.certificate])] == [b""]
        yield bench


async def test_asked_at_once_and_again_after_half_of_the_time(tmp_path: Path) -> None:
    async with asked(tmp_path) as bench:
        first = bench.answer(end=NOW + 4 * DAY)
        await bench.look()
        assert bench.staples == [first]
        assert bench.stapler.expiries_s() == {"a.test": (4 * DAY).total_seconds()}
        bench.now = NOW + 2 * DAY - datetime.timedelta(seconds=1)
        await bench.look()
        assert len(bench.responder.questions) == 1
        bench.now = NOW + 2 * DAY
        second = bench.answer(begin=NOW + DAY, end=NOW + 8 * DAY)
        await bench.look()
        assert bench.staples == [first, second]
        # A reload, and a renewal of another certificate, keep what is known, and ask nothing.
        assert [one.staple for one in bench.stapler.take([bench.certificate])] == [second]
        await bench.look()
        assert len(bench.responder.questions) == 2
        assert [one.staple for one in bench.stapler.take([bench.certificate], asks=False)] == [b""]


async def test_the_old_one_serves_until_it_ends(tmp_path: Path) -> None:
    async with asked(tmp_path) as bench:
        first = bench.answer(end=NOW + 4 * DAY)
        await bench.look()
        bench.responder.status = 503
        with capture_logs() as lines:
            for bench.now in (NOW + 2 * DAY, NOW + 2 * DAY + RETRY, NOW + 4 * DAY - RETRY):
                await bench.look()
            assert bench.staples == [first]
            bench.now = NOW + 4 * DAY
            await bench.look()
            assert bench.staples == [first, b""]
            assert bench.stapler.expiries_s() == {"a.test": 0.0}
            bench.responder.status = 200
            bench.now += RETRY
            again = bench.answer(begin=bench.now, end=bench.now + DAY)
            await bench.look()
        assert bench.staples == [first, b"", again]
        told, good = lines
        assert (told["log_level"], told["event"]) == ("warning", "no new OCSP response")
        assert told["cause"] == "expected status 200, but it is 503."
        assert told["responder"] == bench.responder.url
        assert good["event"] == "OCSP response stapled again"


async def test_a_failing_responder_is_left_alone_for_a_while(tmp_path: Path) -> None:
    async with asked(tmp_path) as bench:
        bench.responder.answer = b"this is no answer"
        await bench.look()
        bench.now += RETRY - datetime.timedelta(seconds=1)
        await bench.look()
        assert len(bench.responder.questions) == 1
        bench.now = NOW + RETRY
        await bench.look()
        assert len(bench.responder.questions) == 2


async def test_a_revoked_certificate_is_an_error_and_loses_its_staple(tmp_path: Path) -> None:
    async with asked(tmp_path) as bench:
        first = bench.answer()
        await bench.look()
        bench.answer(status=ocsp.OCSPCertStatus.REVOKED)
        bench.now = NOW + DAY / 2
        with capture_logs() as lines:
            await bench.look()
        assert bench.staples == [first, b""]
        [line] = lines
        assert line["log_level"] == "error"
        assert line["cause"].startswith("revoked by its issuer on")


async def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    async with asked(tmp_path) as bench:
        bench.answer()
        bench.responder.status = 302
        bench.responder.headers = {"Location": f"{bench.responder.url}elsewhere"}
        with capture_logs() as lines:
            await bench.look()
        assert len(bench.responder.questions) == 1
        assert [line["cause"] for line in lines] == ["expected status 200, but it is 302."]


async def test_an_answer_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    async with asked(tmp_path) as bench:
        bench.responder.answer = bytes(module.MAX_ANSWER_BYTES + 1)
        with capture_logs() as lines:
            await bench.look()
        assert [line["cause"] for line in lines] == ["expected an answer of at most 65536 bytes."]


async def test_a_responder_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_TIMEOUT_S", 0.05)
    async with asked(tmp_path) as bench:
        bench.responder.may_answer.clear()
        with capture_logs() as lines:
            await bench.look()
        assert [line["cause"] for line in lines] == ["no answer within 0.05 s."]


# ---- A whole relay


def in_service(*files: Certificate) -> list[dict[str, str]]:
    return [{"certificate": str(one.chain), "private_key": str(one.private_key)} for one in files]


async def test_openssl_client_and_responder(tmp_path: Path) -> None:
    """The certificate that the name chooses has its staple, on TLS 1.2 and 1.3, and the others have none."""
    issuer = authority()
    async with openssl_responder(tmp_path / "responder", issuer) as (url, serve):
        made = signed(issuer, "a.test", extensions=[names_responder(url)])
        await serve(made[0])
        files = write_pair(files_in(tmp_path, "a"), made, issuer.certificate)
        plain = write_pair(files_in(tmp_path, "b"), signed(issuer, "b.test"), issuer.certificate)
        async with running_relay(tmp_path, NOBODY, certificates=in_service(plain, files)) as relay:
            await eventually(lambda: relay.gateway.stapler.expiries_s()["a.test"] > 0)
            await settles(relay, "a.test", "good")
            for version in ("-tls1_2", "-tls1_3"):
                assert await stapled(relay.tls, "a.test", version) == "good"
                assert await stapled(relay.tls, "b.test", version) == "none"


async def settles(relay: Relay, name: str, status: str) -> None:
    """Workers take new certificates one after the other."""
    for _ in range(50):
        if await stapled(relay.tls, name) == status:
            return
    raise AssertionError(f"{name} is never {status}")


async def test_must_staple_is_there_from_the_first_handshake_on(tmp_path: Path) -> None:
    async with asked(tmp_path, MUST_STAPLE) as bench:
        bench.answer()
        async with running_relay(tmp_path, NOBODY, certificates=in_service(bench.files)) as relay:
            assert await stapled(relay.tls, "a.test") == "good"


async def test_must_staple_without_an_answer_starts_and_says_so(tmp_path: Path) -> None:
    async with asked(tmp_path, MUST_STAPLE) as bench:
        bench.responder.status = 500
        with capture_logs() as lines:
            async with running_relay(tmp_path, NOBODY, certificates=in_service(bench.files)) as relay:
                assert await stapled(relay.tls, "a.test") == "none"
        [line] = [line for line in lines if line["event"] == "no new OCSP response"]
        assert line["log_level"] == "error"
        assert "Clients that know must-staple refuse the relay until there is one." in line["cause"]


@pytest.mark.parametrize("sections", [{"listen": {"plane": "reference"}}, {"ocsp": {"stapling": False}}])
async def test_must_staple_is_refused_where_nothing_is_stapled(tmp_path: Path, sections: dict[str, Any]) -> None:
    async with asked(tmp_path, MUST_STAPLE) as bench:
        with pytest.raises(OperatorError, match="must-staple"):
            async with running_relay(tmp_path, NOBODY, certificates=in_service(bench.files), **sections):
                pass


async def test_a_renewed_must_staple_without_responder_keeps_the_old(tmp_path: Path) -> None:
    async with asked(tmp_path, MUST_STAPLE) as bench:
        bench.answer()
        async with running_relay(tmp_path, NOBODY, certificates=in_service(bench.files)) as relay:
            write_pair(bench.files, signed(bench.issuer, "a.test", extensions=[MUST_STAPLE]), bench.issuer.certificate)
            await becomes(lambda: relay.gateway.certificates.troubles, 1)
            assert await stapled(relay.tls, "a.test") == "good"
