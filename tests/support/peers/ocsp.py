"""Who answers for certificates: a responder that says what a test wants, and OpenSSL's; and a client that looks."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509 import ocsp
from cryptography.x509.oid import AuthorityInformationAccessOID

from relay.addresses import Address
from relay.ca.certificates import Issuer, certificate_pem, key_pem
from relay.sockaddr import from_sockaddr
from tests.support.certificates_made import DAY, NOW
from tests.support.network.ports import reserved_address

READY_TIMEOUT_S = 60.0
# OpenSSL's list of certificates has this for the time of one that was never revoked.
_NEVER = ""


def names_responder(url: str) -> x509.AuthorityInformationAccess:
    """The extension by which a certificate names its responder."""
    location = x509.UniformResourceIdentifier(url)
    return x509.AuthorityInformationAccess([x509.AccessDescription(AuthorityInformationAccessOID.OCSP, location)])


MUST_STAPLE = x509.TLSFeature([x509.TLSFeatureType.status_request])


def answer_about(
    certificate: x509.Certificate,
    issuer: Issuer,
    *,
    status: ocsp.OCSPCertStatus = ocsp.OCSPCertStatus.GOOD,
    begin: datetime.datetime = NOW - DAY,
    end: datetime.datetime | None = NOW + DAY,
    signer: Issuer | None = None,
    with_signer: bool = False,
) -> bytes:
    """What an issuer, or ``signer`` in its place, says of a certificate: DER."""
    revoked = status is ocsp.OCSPCertStatus.REVOKED
    by = signer or issuer
    builder = ocsp.OCSPResponseBuilder().add_response(
        cert=certificate,
        issuer=issuer.certificate,
        algorithm=hashes.SHA1(),
        cert_status=status,
        this_update=begin,
        next_update=end,
        revocation_time=NOW - DAY if revoked else None,
        revocation_reason=None,
    )
    builder = builder.responder_id(ocsp.OCSPResponderEncoding.HASH, by.certificate)
    if with_signer:
        builder = builder.certificates([by.certificate])
    return builder.sign(by.key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


@dataclass
class Responder:
    """Answers each question with ``answer``, and keeps the questions. ``status`` is that of HTTP."""

    url: str = ""
    answer: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    questions: list[bytes] = field(default_factory=list)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)

    async def on_request(self, request: web.Request) -> web.Response:
        assert request.headers["Content-Type"] == "application/ocsp-request"
        self.questions.append(await request.read())
        self.asked.set()
        await self.may_answer.wait()
        return web.Response(body=self.answer, status=self.status, headers=self.headers)


@contextlib.asynccontextmanager
async def responding() -> AsyncIterator[Responder]:
    """A responder while the block runs."""
    responder = Responder()
    responder.may_answer.set()
    app = web.Application()
    app.router.add_post("/", responder.on_request)
    app.router.add_get("/elsewhere", responder.on_request)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        responder.url = f"http://{from_sockaddr(runner.addresses[0])}/"
        yield responder
    finally:
        await runner.cleanup()


def _files_of(folder: Path, issuer: Issuer) -> tuple[Path, Path, Path]:
    folder.mkdir()
    index, authority, key = folder / "index.txt", folder / "ca.pem", folder / "ca.key"
    authority.write_bytes(certificate_pem(issuer.certificate))
    key.write_bytes(key_pem(issuer.key))
    index.write_text("")
    return index, authority, key


@contextlib.asynccontextmanager
async def openssl_responder(folder: Path, issuer: Issuer) -> AsyncIterator[tuple[str, Any]]:
    """OpenSSL's responder: its URL, and a function that tells it of a certificate before the first question."""
    index, authority, key = _files_of(folder, issuer)

    def know(certificate: x509.Certificate) -> None:
        ends = f"{certificate.not_valid_after_utc:%y%m%d%H%M%SZ}"
        with index.open("a") as file:
            file.write(f"V\t{ends}\t{_NEVER}\t{certificate.serial_number:X}\tunknown\t/CN=made\n")

    with reserved_address() as address:
        url = f"http://{address}/"
        process: asyncio.subprocess.Process | None = None

        async def serve(certificate: x509.Certificate) -> None:
            nonlocal process
            know(certificate)
            process = await asyncio.create_subprocess_exec(
                "openssl", "ocsp", "-port", str(address.port), "-index", str(index), "-CA", str(authority),
                "-rsigner", str(authority), "-rkey", str(key), "-ndays", "7",
                stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            assert process.stderr is not None
            async with asyncio.timeout(READY_TIMEOUT_S):
                while b"waiting for OCSP client connections" not in await process.stderr.readline():
                    assert process.returncode is None, "openssl ocsp has ended"

        try:
            yield url, serve
        finally:
            if process is not None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
                process._transport.close()  # type: ignore[attr-defined]


async def stapled(server: Address, name: str, *options: str) -> str:
    """What OpenSSL's client says of the staple that it gets: the certificate's status, or that there is none."""
    process = await asyncio.create_subprocess_exec(
        "openssl", "s_client", "-connect", str(server), "-servername", name, "-status", *options,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    said, _ = await process.communicate()
    lines = [line.strip() for line in said.decode(errors="replace").splitlines()]
    if "OCSP response: no response sent" in lines:
        return "none"
    [status] = [line.removeprefix("Cert Status: ") for line in lines if line.startswith("Cert Status: ")]
    return status
