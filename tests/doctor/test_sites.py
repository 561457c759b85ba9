"""Sites step by step: TCP, tunnels, TLS and its certificate, HTTP; each with a world in which it fails."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from relay.addresses import Address
from relay.catalog import Service
from relay.client.connect import Proxy
from relay.demo.authority import Authority
from relay.doctor.plan import Plan
from relay.doctor.probes.sites import reach
from relay.doctor.seen import SiteSeen, Step, TlsFault
from relay.plane.certificates import Certificate
from relay.tasks import Tasks
from tests.support.benches.doctor import context_of, site_plan
from tests.support.certificates_made import DAY, NOW, authority, files_in, signed, write_pair, write_whole
from tests.support.network.ports import reserved_address
from tests.support.peers.connect_proxy import connect_proxy
from tests.support.peers.squid import needs_squid, open_squid

HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Answers = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def say_hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(HELLO)
    await writer.drain()


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")


async def speak_no_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"SSH-2.0-OpenSSH\r\n\r\n")
    await writer.drain()


@contextlib.asynccontextmanager
async def serving(certificate: Certificate | None, answers: Answers = say_hello) -> AsyncIterator[Address]:
    """A server with this certificate, or without TLS."""
    tasks = Tasks()
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate.chain, certificate.private_key)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError, EOFError):
                await answers(reader, writer)
        finally:
            writer.transport.abort() if context is None else writer.close()

    server = await asyncio.start_server(
        lambda reader, writer: tasks.start(serve(reader, writer), "server") and None, "127.0.0.1", 0, ssl=context
    )
    try:
        yield Address(*server.sockets[0].getsockname()[:2])
    finally:
        server.close()
        await tasks.cancel()
        await server.wait_closed()


async def reached(plan: Plan, proxy: Proxy | None = None) -> SiteSeen:
    return await reach(context_of(plan), plan.sites[0], proxy)


def step_of(seen: SiteSeen) -> Step | None:
    return None if seen.failure is None else seen.failure.step


async def test_a_good_site_is_reached(tmp_path: Path) -> None:
    trusted = Authority(tmp_path)
    async with serving(trusted.issue("127.0.0.1")) as address:
        seen = await reached(site_plan(trusted.ca_certificate, address))
    assert (seen.way, seen.failure, seen.http_status) == ("direct", None, 200)
    assert seen.tls is not None
    assert (seen.tls.fault, seen.tls.expected, seen.tls.public) == (None, True, False)
    assert "throw-away CA" in seen.tls.issuer


async def test_nobody_listens(tmp_path: Path) -> None:
    trusted = Authority(tmp_path)
    with reserved_address() as address:
        seen = await reached(site_plan(trusted.ca_certificate, address))
    assert step_of(seen) is Step.TCP
    assert seen.failure is not None
    assert "refused" in seen.failure.text


async def test_a_host_for_media_is_asked_nothing_over_http(tmp_path: Path) -> None:
    trusted = Authority(tmp_path)
    async with serving(trusted.issue("127.0.0.1"), hang_up) as address:
        seen = await reached(site_plan(trusted.ca_certificate, address, service=Service.MEDIA))
    assert (seen.failure, seen.http_status) == (None, 0)


@pytest.mark.parametrize(("answers", "words"), [(hang_up, "closed the connection"), (speak_no_http, "not HTTP/1.1")])
async def test_a_site_does_not_answer_in_http(tmp_path: Path, answers: Answers, words: str) -> None:
    trusted = Authority(tmp_path)
    async with serving(trusted.issue("127.0.0.1"), answers) as address:
        seen = await reached(site_plan(trusted.ca_certificate, address))
    assert step_of(seen) is Step.HTTP
    assert seen.failure is not None
    assert words in seen.failure.text
    assert seen.tls is not None


async def test_a_port_without_tls(tmp_path: Path) -> None:
    trusted = Authority(tmp_path)
    async with serving(None, speak_no_http) as address:
        seen = await reached(site_plan(trusted.ca_certificate, address))
    assert step_of(seen) is Step.TLS
    assert seen.tls is None


# Certificates


async def test_an_authority_that_nobody_knows(tmp_path: Path) -> None:
    """And its name is seen, though the connection is refused."""
    trusted, other = Authority(tmp_path), tmp_path / "other"
    other.mkdir()
    async with serving(Authority(other).issue("127.0.0.1")) as address:
        seen = await reached(site_plan(trusted.ca_certificate, address))
    assert step_of(seen) is Step.TLS
    assert seen.tls is not None
    assert (seen.tls.fault, seen.tls.expected) == (TlsFault.UNTRUSTED, False)
    assert seen.tls.issuer == "cloud9-relay throw-away CA"


async def test_an_authority_in_between_that_this_machine_trusts(tmp_path: Path) -> None:
    """As with a firm's inspecting proxy, whose authority is installed on every desktop."""
    trusted, other = Authority(tmp_path), tmp_path / "other"
    other.mkdir()
    between = Authority(other)
    async with serving(between.issue("127.0.0.1")) as address:
        plan = site_plan(trusted.ca_certificate, address)
        plan.trust.load_verify_locations(cafile=str(between.ca_certificate))
        seen = await reached(plan)
    assert seen.failure is None
    assert seen.tls is not None
    assert (seen.tls.fault, seen.tls.expected) == (None, False)


@pytest.mark.parametrize(
    ("name", "ends", "fault"),
    [
        ("*.xhoot.test", NOW - DAY, TlsFault.EXPIRED),
        ("*.other.test", NOW + DAY, TlsFault.WRONG_NAME),
        # A wildcard is one label.
        ("*.test", NOW + DAY, TlsFault.WRONG_NAME),
        ("*.xhoot.test", NOW + DAY, None),
    ],
)
async def test_a_certificate_is_judged_by_time_and_name(
    tmp_path: Path, name: str, ends: object, fault: TlsFault | None
) -> None:
    from relay.ca.certificates import certificate_pem

    issuer = authority()
    made = signed(issuer, name, end=ends)  # type: ignore[arg-type]
    files = write_pair(files_in(tmp_path, "server"), made, issuer.certificate)
    ca = tmp_path / "ca.pem"
    write_whole(ca, certificate_pem(issuer.certificate))
    async with serving(files) as address:
        seen = await reached(site_plan(ca, address, name="a.xhoot.test"))
    assert seen.tls is not None
    assert (seen.tls.fault, seen.tls.expected) == (fault, True)
    assert seen.tls.names == (name,)
    assert (seen.failure is None) == (fault is None)


# Through a web proxy


async def test_through_a_proxy_with_a_login(tmp_path: Path) -> None:
    trusted = Authority(tmp_path)
    async with serving(trusted.issue("127.0.0.1")) as address, connect_proxy() as proxy:
        seen = await reached(site_plan(trusted.ca_certificate, address), Proxy.parse(proxy.url))
        assert (seen.way, seen.failure, seen.http_status) == (f"through {proxy.address}", None, 200)
        assert proxy.asked == [str(address)]


async def test_a_proxy_wants_a_login(tmp_path: Path) -> None:
    trusted = Authority(tmp_path)
    async with serving(trusted.issue("127.0.0.1")) as address, connect_proxy() as proxy:
        offers = "".join(f"Proxy-Authenticate: {one}\r\n" for one in ("Negotiate", "NTLM", 'Basic realm="a, b=c"'))
        proxy.refuses = f"HTTP/1.1 407 Login\r\n{offers}Content-Length: 0\r\n\r\n".encode()
        seen = await reached(site_plan(trusted.ca_certificate, address), Proxy(proxy.address))
    assert seen.failure is not None
    assert (seen.failure.step, seen.failure.status) == (Step.PROXY, 407)
    assert seen.failure.logins == ("negotiate", "ntlm", "basic")


@pytest.mark.parametrize("status", [403, 503])
async def test_a_proxy_refuses(tmp_path: Path, status: int) -> None:
    trusted = Authority(tmp_path)
    with reserved_address() as address:
        async with connect_proxy() as proxy:
            proxy.refuses = f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n".encode()
            seen = await reached(site_plan(trusted.ca_certificate, address), Proxy(proxy.address))
    assert seen.failure is not None
    assert (seen.failure.step, seen.failure.status, seen.failure.logins) == (Step.PROXY, status, ())


async def test_there_is_no_proxy(tmp_path: Path) -> None:
    trusted = Authority(tmp_path)
    with reserved_address() as address, reserved_address() as nobody:
        seen = await reached(site_plan(trusted.ca_certificate, address), Proxy(nobody))
    assert seen.failure is not None
    assert (seen.failure.step, seen.failure.status) == (Step.PROXY, 0)


@needs_squid
async def test_a_real_proxy_with_a_login(tmp_path: Path) -> None:
    trusted = Authority(tmp_path)
    async with serving(trusted.issue("127.0.0.1")) as address, open_squid() as squid:
        plan = site_plan(trusted.ca_certificate, address)
        known = await reached(plan, Proxy(squid.address, squid.username, squid.password))
        assert (known.failure, known.http_status) == (None, 200)
        for proxy in (Proxy(squid.address), Proxy(squid.address, squid.username, "wrong")):
            unknown = await reached(plan, proxy)
            assert unknown.failure is not None
            assert (unknown.failure.step, unknown.failure.status) == (Step.PROXY, 407)
            assert unknown.failure.logins == ("basic",)
