"""A firm's web proxy, as bad as the board says: CONNECT, and what goes wrong on the way.

Life of a connection: its request's head → 407, or a name that is not found → the tunnel → TLS is ended or not → bytes.
It opens tunnels only to the emulator's hosts and to this machine.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import ssl
from collections import Counter
from collections.abc import Callable

import structlog

from relay import deadlines
from relay.addresses import Address, parse_address
from relay.ca.certificates import Issuer
from relay.emulator.faults import inspection, pumps
from relay.emulator.faults.board import Fault, FaultBoard
from relay.emulator.faults.kinds import Hop, Kind
from relay.errors import OperatorError
from relay.tasks import Tasks

log = structlog.get_logger()

MAX_CONNECTIONS = 1024
# A head of CONNECT with credentials has some hundred bytes.
MAX_HEAD_BYTES = 16_384
HEAD_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 10.0
HANDSHAKE_TIMEOUT_S = 10.0


class NameNotFound(Exception):
    """There is no such host."""


class Forbidden(Exception):
    """The proxy does not open tunnels to this host."""


class _Refused(Exception):
    def __init__(self, status: int, reason: str, text: str, *fields: str) -> None:
        super().__init__(text)
        self.counted = str(status)
        lines = [f"HTTP/1.1 {status} {reason}", "Content-Type: text/plain", "Connection: close", *fields]
        self.answer = "\r\n".join([*lines, f"Content-Length: {len(text)}", "", text]).encode()


# Where a host is. Raises NameNotFound or Forbidden.
Resolve = Callable[[str, int], Address]


class WebProxy:
    """``start`` it on an address and ``close`` it. ``counts`` says what became of connections.

    ``issuer`` is an authority that desks trust, and ``trust`` what the proxy itself trusts where it ends TLS.
    """

    def __init__(self, board: FaultBoard, resolve: Resolve, issuer: Issuer, trust: ssl.SSLContext) -> None:
        self.address = Address("", 0)
        self.counts: Counter[str] = Counter()
        self._board = board
        self._resolve = resolve
        self._trusted = inspection.Certificates(issuer)
        self._foreign = inspection.Certificates(inspection.foreign_issuer())
        self._trust = trust
        self._tasks = Tasks()
        self._server: asyncio.Server | None = None

    async def start(self, address: Address) -> None:
        """Listen. Raises OperatorError if the address cannot be bound."""
        try:
            self._server = await asyncio.start_server(self._on_connection, *address, limit=MAX_HEAD_BYTES)
        except OSError as error:
            raise OperatorError(f"web proxy on {address}: {error.strerror or error}") from error
        self.address = Address(*self._server.sockets[0].getsockname()[:2])

    async def close(self) -> None:
        """End all connections. May be repeated."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
            await self._tasks.cancel()
            await server.wait_closed()

    def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._tasks) >= MAX_CONNECTIONS:
            self.counts["too_many"] += 1
            writer.transport.abort()
            return
        self._tasks.start(self._serve(reader, writer), "web proxy")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            host, server = await self._open(reader, writer)
            try:
                await self._carry(host, (reader, writer), server)
            finally:
                server[1].transport.abort()
        except _Refused as refused:
            self.counts[refused.counted] += 1
            writer.write(refused.answer)
            with contextlib.suppress(OSError, TimeoutError):
                async with deadlines.timeout(HEAD_TIMEOUT_S):
                    await writer.drain()
                    writer.write_eof()
                    await reader.read()
        except inspection.NotHttp:
            self.counts["not_http"] += 1
        except (OSError, EOFError, ValueError, TimeoutError, asyncio.LimitOverrunError):
            self.counts["broken"] += 1
        finally:
            writer.transport.abort()

    # The tunnel is opened

    async def _open(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[str, pumps.Ends]:
        async with deadlines.timeout(HEAD_TIMEOUT_S):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        target = _target(head)
        self._check_credentials(head)
        address = self._find(target)
        try:
            async with deadlines.timeout(CONNECT_TIMEOUT_S):
                server = await asyncio.open_connection(*address)
        except TimeoutError:
            raise _Refused(504, "Gateway Timeout", f"{target} does not answer.") from None
        except OSError as error:
            raise _Refused(502, "Bad Gateway", f"{target} cannot be reached: {error.strerror or error}") from None
        self.counts["tunnels"] += 1
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        return target.host, server

    def _check_credentials(self, head: str) -> None:
        fault = self._board.find(Hop.WEB_PROXY, Kind.PROXY_AUTHENTICATION)
        if fault is None or _has_credentials(head, fault):
            return
        text = "This proxy wants a name and a password."
        raise _Refused(407, "Proxy Authentication Required", text, 'Proxy-Authenticate: Basic realm="web proxy"')

    def _find(self, target: Address) -> Address:
        try:
            return self._resolve(*target)
        except NameNotFound:
            raise _Refused(503, "Service Unavailable", f"{target.host}: name not found.") from None
        except Forbidden:
            text = f"{target.host} is neither a host of the vendor nor this machine."
            raise _Refused(403, "Forbidden", text) from None

    # Bytes pass

    async def _carry(self, host: str, client: pumps.Ends, server: pumps.Ends) -> None:
        foreign = self._board.find(Hop.WEB_PROXY, Kind.FOREIGN_CERTIFICATE)
        stripped = self._board.find(Hop.WEB_PROXY, Kind.UPGRADE_STRIPPED)
        if foreign is None and stripped is None:
            cut = await pumps.carry(client, server, self._board)
        else:
            asked = (self._trusted if foreign is None else self._foreign).answer(host)
            await client[1].start_tls(asked.context, ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S)
            await server[1].start_tls(
                self._trust, server_hostname=asked.name, ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S
            )
            self.counts["inspected"] += 1
            cut = await inspection.pass_http(client, server, self._board)
        self.counts["cut"] += cut


def _target(head: str) -> Address:
    method, _, rest = head.partition(" ")
    if method != "CONNECT":
        text = "This proxy opens tunnels only."
        raise _Refused(405, "Method Not Allowed", text, "Allow: CONNECT")
    try:
        return parse_address(rest.partition(" ")[0])
    except ValueError as error:
        raise _Refused(400, "Bad Request", str(error).encode("ascii", "replace").decode()) from None


def _has_credentials(head: str, fault: Fault) -> bool:
    expected = f"{fault.setting.username}:{fault.setting.password}".encode()
    for line in head.split("\r\n")[1:]:
        name, _, value = line.partition(":")
        if name.strip().lower() == "proxy-authorization":
            scheme, _, text = value.strip().partition(" ")
            given = base64.b64encode(expected).decode()
            return scheme.lower() == "basic" and hmac.compare_digest(text.strip().encode(), given.encode())
    return False
