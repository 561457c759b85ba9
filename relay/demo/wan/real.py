"""The ways over a real path: for each two network namespaces and a line between them, and coturn. Needs root."""

from __future__ import annotations

import contextlib
import functools
import secrets
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from relay.addresses import Address
from relay.client.turn import open_turn_tls, open_turn_udp
from relay.demo.authority import Authority
from relay.demo.wan.line import Wan, open_wan
from relay.demo.wan.netns import refusal
from relay.demo.wan.servers import coturn_command, missing_program, relay_command, serving
from relay.demo.wan.way import PATH, RELAY, SEED, TLS, UDP, Way

TURN_NAME, RELAY_NAME = "turn.wan.test", "relay.wan.test"
USERNAME = "trader"
# Namespaces are empty: any port is free.
TURN_PORT, TLS_PORT = 3478, 443
# On the premises: the LAN, on which nothing is lost.
RELAY_ADDRESS = Address("127.0.0.1", 443)


def why_not() -> str | None:
    """Why there can be no real path here, or None."""
    return refusal() or missing_program()


@contextlib.asynccontextmanager
async def real_ways() -> AsyncIterator[list[Way]]:
    """The three ways, each with a path and a TURN server of its own. Raises UpstreamError, or OSError."""
    with tempfile.TemporaryDirectory(prefix="relay-wan-") as name:
        maker = _Maker(Path(name))
        async with maker.stack:
            yield [await maker.udp(), await maker.tls(), await maker.relay()]


class _Maker:
    """Makes the ways, and ends them with its ``stack``."""

    def __init__(self, folder: Path) -> None:
        self.stack = contextlib.AsyncExitStack()
        self._folder = folder
        self._authority = Authority(folder)
        self._certificates = {each: self._authority.issue(each) for each in (TURN_NAME, RELAY_NAME)}
        self._password = secrets.token_urlsafe(16)

    async def udp(self) -> Way:
        """The trader has UDP."""
        line, turn = await self._far_end("udp")
        return self._way(UDP, line, functools.partial(open_turn_udp, turn, USERNAME, self._password))

    async def tls(self) -> Way:
        """TLS from the trader to the TURN server."""
        line, turn = await self._far_end("tls")
        # coturn 4.6.1 may refuse TLS 1.3.
        trust = self._authority.client_context()
        trust.maximum_version = ssl.TLSVersion.TLSv1_2
        return self._tls_way(TLS, line, Address(turn.host, TLS_PORT), TURN_NAME, trust)

    async def relay(self) -> Way:
        """TLS from the trader to the relay on the premises, and UDP from there."""
        line, turn = await self._far_end("relay")
        folder = self._folder / "relay"
        command = relay_command(folder, RELAY_ADDRESS, turn, self._certificates[RELAY_NAME])
        started = serving("the relay", command, line.client_ns, RELAY_ADDRESS, folder / "relay.log")
        await self.stack.enter_async_context(started)
        return self._tls_way(RELAY, line, RELAY_ADDRESS, RELAY_NAME, self._authority.client_context())

    async def _far_end(self, name: str) -> tuple[Wan, Address]:
        """A path, and a TURN server at its far end."""
        folder = self._folder / name
        folder.mkdir()
        line = self.stack.enter_context(open_wan(PATH, seed=SEED))
        udp, tls = Address(line.server_address, TURN_PORT), Address(line.server_address, TLS_PORT)
        command = coturn_command(
            folder, udp, tls, self._certificates[TURN_NAME], username=USERNAME, password=self._password
        )
        await self.stack.enter_async_context(serving("coturn", command, line.server_ns, tls, folder / "coturn.log"))
        return line, udp

    def _tls_way(self, name: str, line: Wan, server: Address, server_name: str, trust: ssl.SSLContext) -> Way:
        connect = functools.partial(
            open_turn_tls, server, USERNAME, self._password, ssl_context=trust, server_hostname=server_name
        )
        return self._way(name, line, connect)

    def _way(self, name: str, line: Wan, connect: Any) -> Way:
        far = self.stack.enter_context(line.server_ns.socket(kind=socket.SOCK_DGRAM))
        far.setblocking(False)
        far.bind((line.server_address, 0))

        def set_loss(loss: float) -> None:
            line.uplink.change(loss=loss)
            line.downlink.change(loss=loss)

        return Way(
            name=name,
            connect=lambda on_data: connect(on_data=on_data),
            far=far,
            run=line.client_ns.run,
            set_loss=set_loss,
            lost_packets=lambda: line.downlink.counters.lost_packets,
        )
