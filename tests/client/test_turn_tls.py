"""The TURN client over TLS and UDP against coturn, and over TLS against servers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest

from relay.addresses import Address
from relay.client.links import TlsLink
from relay.client.requests import TurnRequestError
from relay.client.turn import TurnConnection, open_turn_tls, open_turn_udp
from relay.demo.authority import Authority
from relay.errors import UpstreamError
from relay.plane.certificates import Certificate
from tests.support.peers.behind_turn import Inbox, echo_all_sizes, open_echo
from tests.support.peers.coturn import Coturn, open_coturn
from tests.support.peers.uclient import UclientReport, run_uclient


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> Certificate:
    return authority.issue("turn.test", "127.0.0.1")


async def _echo_through(turn: TurnConnection, inbox: Inbox) -> None:
    async with turn, open_echo() as peer:
        assert await turn.binding() == turn.local_address
        await turn.allocate()
        await turn.create_permission(peer)
        await echo_all_sizes(turn, inbox, peer)
        assert await turn.bind_channel(peer) == 0x4000
        await echo_all_sizes(turn, inbox, peer)
        assert await turn.refresh(1200) == 1200


async def test_udp_through_coturn() -> None:
    inbox = Inbox()
    async with open_coturn() as coturn:
        turn = await open_turn_udp(coturn.address, coturn.username, coturn.password, on_data=inbox.put)
        await _echo_through(turn, inbox)
        async with await open_turn_udp(coturn.address, coturn.username, "wrong") as stranger:
            with pytest.raises(TurnRequestError, match="401"):
                await stranger.allocate()


async def test_tls_through_coturn(authority: Authority, certificate: Certificate) -> None:
    inbox = Inbox()
    async with open_coturn(certificate=certificate) as coturn:
        turn = await _open_tls(coturn, authority, inbox)
        await _echo_through(turn, inbox)
        with pytest.raises(UpstreamError, match="certificate"):
            await open_turn_tls(_tls_address(coturn), ssl_context=ssl.create_default_context())
        with pytest.raises(UpstreamError, match=r"other\.test"):
            await open_turn_tls(
                _tls_address(coturn), ssl_context=authority.client_context(), server_hostname="other.test"
            )


def _tls_address(coturn: Coturn) -> Address:
    assert coturn.tls_address is not None
    return coturn.tls_address


async def _open_tls(coturn: Coturn, authority: Authority, inbox: Inbox) -> TurnConnection:
    return await open_turn_tls(
        _tls_address(coturn),
        coturn.username,
        coturn.password,
        ssl_context=authority.client_context(),
        server_hostname="turn.test",
        on_data=inbox.put,
    )


async def test_uclient_through_coturn_over_tls(certificate: Certificate) -> None:
    # The helpers themselves: what they report is known to be true of coturn.
    async def excuses(_: UclientReport) -> bool:
        return True  # nothing of ours is in the way

    async with open_coturn(certificate=certificate) as coturn, open_echo() as peer:
        report = await run_uclient(
            _tls_address(coturn),
            coturn.username,
            coturn.password,
            peer=peer,
            clients=2,
            # The program loses some of what comes at once when it has stood still itself, so little comes.
            messages=5,
            interval_ms=200,
            options=("-t", "-S"),
            excuses=excuses,
        )
        assert (report.sent, report.received, report.lost) == (10, 10, 0)


# TLS, against servers that misbehave


@contextlib.asynccontextmanager
async def open_tls_server(
    certificate: Certificate, answer: bytes, *, closes: bool = True
) -> AsyncIterator[tuple[Address, asyncio.Future[None]]]:
    """A TLS server that sends ``answer`` to each client that has sent something, and closes unless told not to.

    Gives its address and a future: once it is set, a server that does not close reads to the end of the stream.
    """
    go_on: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    serving: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await reader.read(1)
            writer.write(answer)
            if not closes:
                await go_on
                while await reader.read(65536):
                    pass
        writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate.chain, certificate.private_key)
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield Address(*server.sockets[0].getsockname()), go_on
        # Python 3.11 does not wait for the connections of a server that is closed.
        await asyncio.gather(*filter(None, serving))


async def test_server_that_closes_ends_the_connection(authority: Authority, certificate: Certificate) -> None:
    async with open_tls_server(certificate, b"") as (address, _):
        turn = await open_turn_tls(address, ssl_context=authority.client_context())
        with pytest.raises(TurnRequestError, match="server closed"):
            await turn.binding()
        with pytest.raises(UpstreamError, match="server closed"):
            await turn.closed
        await turn.close()


async def test_broken_framing_ends_the_connection(authority: Authority, certificate: Certificate) -> None:
    async with open_tls_server(certificate, b"\x80 is neither STUN nor ChannelData") as (address, _):
        turn = await open_turn_tls(address, ssl_context=authority.client_context())
        with pytest.raises(TurnRequestError, match="framing"):
            await turn.binding()
        with pytest.raises(UpstreamError, match="framing"):
            await turn.closed
        await turn.close()


# Frames of 1 KiB; more than any kernel buffers.
MAX_FRAMES = 16384


async def test_data_is_dropped_behind_a_backlog(authority: Authority, certificate: Certificate) -> None:
    nobody = Address("127.0.0.1", 9)
    async with open_tls_server(certificate, b"", closes=False) as (address, go_on):
        turn = await open_turn_tls(address, ssl_context=authority.client_context())
        turn._timeout_s = 0.05  # of requests, and not of the handshake
        frames = 0
        while not turn.dropped and frames < MAX_FRAMES:
            turn.send(nobody, bytes(1000))
            frames += 1
        # It is not dropped before the bound of 64 KiB, heads and TLS included, and nothing waits beyond.
        assert 56 < frames < MAX_FRAMES
        assert 56 * 1024 < cast("TlsLink", turn._link).backlog_bytes <= 64 * 1024
        # STUN is not dropped: it waits.
        with pytest.raises(TurnRequestError, match="no answer"):
            await turn.binding()
        assert turn.dropped == 1
        go_on.set_result(None)
        dropped = 0
        while turn.dropped != dropped:
            dropped = turn.dropped
            await asyncio.sleep(0)
            turn.send(nobody, bytes(1000))
        await turn.close()


async def test_refused_tcp_port() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as gone:
        gone.bind(("127.0.0.1", 0))
        nobody = Address(*gone.getsockname())
        with pytest.raises(UpstreamError, match=str(nobody)):
            await open_turn_tls(nobody, ssl_context=ssl.create_default_context())


async def test_server_that_resets_at_once() -> None:
    """Each time before or in the handshake; nothing escapes from a callback."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)

        def reset() -> None:
            with contextlib.suppress(BlockingIOError):
                accepted, _ = listener.accept()
                accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
                accepted.close()

        loop.add_reader(listener, reset)
        for _ in range(100):
            with pytest.raises(UpstreamError):
                await open_turn_tls(Address(*listener.getsockname()), ssl_context=ssl.create_default_context())
        loop.remove_reader(listener)


async def test_handshake_has_a_deadline() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(UpstreamError, match=r"no TLS connection within 0\.05 s"):
            await open_turn_tls(
                Address(*silent.getsockname()), ssl_context=ssl.create_default_context(), timeout_s=0.05
            )


def test_certificates_name_what_was_asked_for(tmp_path: Path) -> None:
    issued = Authority(tmp_path).issue("*.relay.test", "::1")
    assert issued.chain.name == "_.relay.test.pem"
    assert issued.private_key.exists()
