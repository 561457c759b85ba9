"""Web proxies as firms have them, between a client and the relay: each spoils what passes in its own way.

They inspect: they end the client's TLS with a certificate of the relay's own test authority, and speak TLS to the relay
anew. ``bad_proxy`` runs one of the four; clients connect to its ``address`` as if it were the relay.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Coroutine
from typing import Any, ClassVar, TypeAlias

from relay.addresses import Address
from relay.emulator.faults.passing import Body, body_of, pieces
from relay.tasks import Tasks
from tests.support.benches.gateway import CERTIFICATE_NAMES, SERVER_NAME, Relay

READ_BYTES = 65536
BUFFER_BYTES = 4096

Reader: TypeAlias = asyncio.StreamReader
Writer: TypeAlias = asyncio.StreamWriter


async def until_one_ends(*both: Coroutine[Any, Any, None]) -> None:
    """Run both until one of them ends; the other is cancelled."""
    tasks = [asyncio.ensure_future(one) for one in both]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class BadProxy:
    """An HTTP proxy that passes one request after the other; what is wrong with it is in the subclasses."""

    # True to hold what comes until 4 KiB or a whole message have come.
    holds: ClassVar[bool] = False

    def __init__(self, relay: Relay) -> None:
        self.address = Address("", 0)
        # What has passed: requests, and answers of 101.
        self.requests = self.upgrades = 0
        self._relay = relay
        self._tasks = Tasks()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        issued = self._relay.authority.issue("proxy.test", *CERTIFICATE_NAMES)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(issued.chain, issued.private_key)
        self._server = await asyncio.start_server(self._on_connection, "127.0.0.1", 0, ssl=context)
        self.address = Address(*self._server.sockets[0].getsockname()[:2])

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        await self._tasks.cancel()
        await self._server.wait_closed()

    def _on_connection(self, reader: Reader, writer: Writer) -> None:
        self._tasks.start(self._serve(reader, writer), "bad proxy")

    async def _serve(self, reader: Reader, writer: Writer) -> None:
        client, relay = (reader, writer), None
        try:
            relay = await asyncio.open_connection(*self._relay.tls, ssl=self._relay.trust, server_hostname=SERVER_NAME)
            await self.carry(client, relay)
        except (OSError, EOFError, asyncio.LimitOverrunError):  # IncompleteReadError is an EOFError
            pass
        finally:
            for _, one in (client, relay or client):
                # An inspecting proxy takes no leave.
                one.transport.abort()

    async def carry(self, client: tuple[Reader, Writer], relay: tuple[Reader, Writer]) -> None:
        """Pass requests and answers until one side ends."""
        while True:
            head = self.rewrite(await client[0].readuntil(b"\r\n\r\n"))
            self.requests += 1
            await self._pass(head, body_of(head), client[0], relay[1])
            answer = await relay[0].readuntil(b"\r\n\r\n")
            if answer.split(b" ")[1] == b"101":
                self.upgrades += 1
                client[1].write(answer)
                await self.tunnel(client, relay)
                return
            await self._pass(answer, body_of(answer, head.split(b" ")[0]), relay[0], client[1])

    def rewrite(self, head: bytes) -> bytes:
        """What becomes of a request's head."""
        return head

    async def tunnel(self, client: tuple[Reader, Writer], relay: tuple[Reader, Writer]) -> None:
        """After a 101: bytes both ways until one side ends."""
        await until_one_ends(self._pump(client[0], relay[1]), self._pump(relay[0], client[1]))

    async def _pump(self, reader: Reader, writer: Writer) -> None:
        held = b""
        while data := await reader.read(READ_BYTES):
            held += data
            if not self.holds or len(held) >= BUFFER_BYTES:
                writer.write(held)
                held = b""
                await writer.drain()

    async def _pass(self, head: bytes, body: Body, reader: Reader, writer: Writer) -> None:
        held = head
        async for piece in pieces(body, reader):
            held += piece
            if not self.holds or len(held) >= BUFFER_BYTES:
                writer.write(held)
                held = b""
                await writer.drain()
        writer.write(held)
        await writer.drain()
        if body == "to the end":
            raise EOFError


class StripsUpgrade(BadProxy):
    """Passes requests without their Upgrade and Connection headers, as many do that inspect."""

    def rewrite(self, head: bytes) -> bytes:
        """The head without them."""
        lines = [line for line in head.split(b"\r\n") if not line.lower().startswith((b"upgrade:", b"connection:"))]
        return b"\r\n".join(lines)


class SwallowsFrames(BadProxy):
    """Passes the 101, and then nothing in either direction."""

    async def tunnel(self, client: tuple[Reader, Writer], relay: tuple[Reader, Writer]) -> None:
        """Take bytes until one side ends."""

        async def swallow(reader: Reader) -> None:
            while await reader.read(READ_BYTES):
                pass

        await until_one_ends(swallow(client[0]), swallow(relay[0]))


class HoldsBack(BadProxy):
    """Passes a message when it is whole, and of a tunnel or a longer message nothing until 4 KiB have come."""

    holds = True


class CutsAtIdle(BadProxy):
    """Passes bytes as they are, and ends a connection that carries none in either direction for ``idle_s``."""

    def __init__(self, relay: Relay, idle_s: float = 60.0) -> None:
        super().__init__(relay)
        self.cuts = 0
        self._idle_s = idle_s

    async def carry(self, client: tuple[Reader, Writer], relay: tuple[Reader, Writer]) -> None:
        """Pass bytes until one side ends, or nobody says anything."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._idle_s) as idle:

                async def pump(reader: Reader, writer: Writer) -> None:
                    while data := await reader.read(READ_BYTES):
                        idle.reschedule(loop.time() + self._idle_s)
                        writer.write(data)
                        await writer.drain()

                await until_one_ends(pump(client[0], relay[1]), pump(relay[0], client[1]))
        except TimeoutError:
            self.cuts += 1


@contextlib.asynccontextmanager
async def bad_proxy(proxy: BadProxy) -> AsyncIterator[BadProxy]:
    """A proxy that serves while the block runs."""
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
