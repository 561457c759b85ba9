"""A site by one way, step by step: TCP, the tunnel of a proxy, TLS with its certificate, HTTP."""

from __future__ import annotations

import asyncio
import functools
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID

from relay import deadlines
from relay.addresses import Address
from relay.catalog import Service
from relay.client.connect import Proxy, connect_tls
from relay.doctor.failures import chain_of, failure_of
from relay.doctor.plan import Site
from relay.doctor.probes.context import Context
from relay.doctor.probes.stream import HttpStream
from relay.doctor.seen import Failure, SiteSeen, Step, TlsFault, TlsSeen, way_name
from relay.errors import UpstreamError
from relay.logs import printable

# X509_V_ERR_… of OpenSSL.
_UNTRUSTED_CODES = frozenset({2, 18, 19, 20, 21, 24})
_EXPIRED_CODES = frozenset({9, 10})
_NAME_CODES = frozenset({62, 63, 64})


@dataclass(frozen=True, slots=True)
class Server:
    """Where a site is, by one way, and its name in TLS."""

    address: Address
    name: str
    proxy: Proxy | None


async def reach(context: Context, site: Site, proxy: Proxy | None) -> SiteSeen:
    """Try all steps. Hosts for media are asked nothing over HTTP: they have no reason to answer."""
    way = way_name(proxy)
    server = Server(context.server_of(site, proxy), site.name, proxy)
    if proxy is None and not context.is_known(site.name):
        return SiteSeen(site.name, way, Failure(Step.NAME, "the name has no address"))
    async with context.slots:
        tcp_ms = await _tcp(server.address if proxy is None else proxy.address, context.plan.limits.probe_s)
        if isinstance(tcp_ms, str):
            return SiteSeen(site.name, way, Failure(Step.TCP if proxy is None else Step.PROXY, tcp_ms))
        stream, tls, failure = await handshake(context, server)
        if stream is None:
            return SiteSeen(site.name, way, failure, tls, tcp_ms=tcp_ms)
        try:
            if site.service is Service.MEDIA:
                return SiteSeen(site.name, way, None, tls, tcp_ms=tcp_ms)
            async with deadlines.timeout(context.plan.limits.probe_s):
                answer = await stream.get("/", site.name)
        except (UpstreamError, TimeoutError) as error:
            text = str(error) or "no answer to a request"
            return SiteSeen(site.name, way, Failure(Step.HTTP, text), tls, tcp_ms=tcp_ms)
        finally:
            stream.close()
    return SiteSeen(site.name, way, None, tls, answer.head.status, tcp_ms)


async def _tcp(address: Address, timeout_s: float) -> float | str:
    """The time that a connection takes in ms, or what went wrong."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    try:
        async with deadlines.timeout(timeout_s):
            transport, _ = await loop.create_connection(asyncio.Protocol, *address)
    except TimeoutError:
        return f"{address}: no answer within {timeout_s:g} s"
    except OSError as error:
        return f"{address}: {printable(error.strerror or str(error))}"
    took_ms = (loop.time() - started) * 1000
    transport.abort()
    return took_ms


async def handshake(context: Context, server: Server) -> tuple[HttpStream | None, TlsSeen | None, Failure | None]:
    """Shake hands: a stream if the certificate is accepted, and what was seen of the certificate in any case.

    The authority that the plan expects is tried first, alone: so one that was put in between is seen, also if this
    machine trusts it.
    """
    expected: bool | None = None
    fault: ssl.SSLCertVerificationError | None = None
    failure: Failure | None = None
    for context_, is_expected in _contexts(context):
        try:
            stream = await _open(context, server, context_)
        except UpstreamError as error:
            failure, fault = failure_of(error), _verification(error)
            if fault is None:
                return None, None, failure
            if is_expected and fault.verify_code not in _UNTRUSTED_CODES:
                expected = True
                break
            expected = False if is_expected else expected
            continue
        return stream, _seen(stream, None, True if is_expected else expected), None
    return None, await _unverified(context, server, fault, expected), failure


def _contexts(context: Context) -> list[tuple[ssl.SSLContext, bool]]:
    expected = context.plan.expected
    first = [] if expected is None else [(_only(expected), True)]
    return [*first, (context.plan.trust, False)]


@functools.cache
def _only(authorities: Path) -> ssl.SSLContext:
    """A context that trusts these alone."""
    return ssl.create_default_context(cafile=str(authorities))


async def _open(context: Context, server: Server, trust: ssl.SSLContext) -> HttpStream:
    return await connect_tls(
        HttpStream,
        server.address,
        ssl_context=trust,
        server_hostname=server.name,
        timeout_s=context.plan.limits.probe_s,
        proxy=server.proxy,
    )


def _verification(error: BaseException) -> ssl.SSLCertVerificationError | None:
    return next((one for one in chain_of(error) if isinstance(one, ssl.SSLCertVerificationError)), None)


async def _unverified(
    context: Context, server: Server, fault: ssl.SSLCertVerificationError | None, expected: bool | None
) -> TlsSeen | None:
    """The certificate that was refused. Nothing is asked over this connection."""
    anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anyone.check_hostname = False
    anyone.verify_mode = ssl.CERT_NONE
    try:
        stream = await _open(context, server, anyone)
    except UpstreamError:
        return None
    stream.close()
    return _seen(stream, fault, expected)


def _seen(stream: HttpStream, fault: ssl.SSLCertVerificationError | None, expected: bool | None) -> TlsSeen | None:
    der = stream.transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
    try:
        certificate = x509.load_der_x509_certificate(der)
        names = _names(certificate)
        public = _is_logged(certificate)
    except ValueError:
        return None
    return TlsSeen(
        subject=_title(certificate.subject),
        issuer=_title(certificate.issuer),
        names=names,
        not_after=certificate.not_valid_after_utc,
        fault=None if fault is None else _fault(fault),
        fault_text="" if fault is None else printable(fault.verify_message),
        public=public,
        expected=expected,
    )


def _fault(error: ssl.SSLCertVerificationError) -> TlsFault:
    if error.verify_code in _UNTRUSTED_CODES:
        return TlsFault.UNTRUSTED
    if error.verify_code in _EXPIRED_CODES:
        return TlsFault.EXPIRED
    return TlsFault.WRONG_NAME if error.verify_code in _NAME_CODES else TlsFault.OTHER


def _title(name: x509.Name) -> str:
    """Common name and organization, as people know an authority."""
    parts = [
        str(one.value)
        for kind in (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME)
        for one in name.get_attributes_for_oid(kind)
    ]
    return printable(", ".join(dict.fromkeys(parts))) or "no name"


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(printable(name) for name in found.get_values_for_type(x509.DNSName))


def _is_logged(certificate: x509.Certificate) -> bool:
    """Public authorities log what they sign, and embed the proof (RFC 6962 section 3.3). Browsers insist on it."""
    try:
        certificate.extensions.get_extension_for_class(x509.PrecertificateSignedCertificateTimestamps)
    except x509.ExtensionNotFound:
        return False
    return True
