"""The HTTP of the web proxy's connections: one request head in, one page out.

aiohttp's parser says where the head ends. The bytes after it belong to the tunnel, if the CONNECT is granted. Otherwise
they are read and thrown away, and never parsed.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from enum import StrEnum
from http import HTTPStatus

from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpRequestParser, HttpVersion10, RawRequestMessage
from aiohttp.http_exceptions import HttpProcessingError

from relay import deadlines
from relay.gateway.http.closing import READ_BYTES, build_response
from relay.gateway.signaling.http_rules import RELAY_ID

# Against clients that send headers slowly. Browsers send theirs at once, in one segment.
HEAD_TIMEOUT_S = 10.0
# Request line and fields together, and the part of a ClientHello that came with them. The Kerberos ticket of a user in
# many groups takes 12 KB of Proxy-Authorization. Windows allows 48,000 bytes, but real tickets are smaller.
MAX_HEAD_BYTES = 32 * 1024
# The smallest field is "a:" with its line end.
MAX_FIELDS = MAX_HEAD_BYTES // 4


class ProxyOutcome(StrEnum):
    """What became of a connection to the web proxy: a label of metrics, so the set is closed."""

    ADOPTED = "adopted"
    TUNNEL = "tunnel"
    PAC = "pac"
    HOST_REFUSED = "host_refused"
    PORT_REFUSED = "port_refused"
    CREDENTIALS_MISSING = "credentials_missing"
    CREDENTIALS_WRONG = "credentials_wrong"
    TOO_MANY_GUESSES = "too_many_guesses"
    DESTINATION_IP_PROHIBITED = "destination_ip_prohibited"
    DNS_ERROR = "dns_error"
    DNS_TIMEOUT = "dns_timeout"
    CONNECTION_REFUSED = "connection_refused"
    CONNECTION_TIMEOUT = "connection_timeout"
    CONNECTION_FAILED = "connection_failed"
    PLAIN_HTTP = "plain_http"
    METHOD_REFUSED = "method_refused"
    BAD_REQUEST = "bad_request"
    HEAD_TOO_LONG = "head_too_long"
    HEAD_TIMEOUT = "head_timeout"
    CLIENT_CLOSED = "client_closed"
    NETWORK_REFUSED = "network_refused"
    TOO_MANY_CONNECTIONS = "too_many_connections"
    NO_MEMORY = "no_memory"
    DRAINING = "draining"


class ProxyRefusal(Exception):
    """A request that is not served: outcome and status, and a text that says why, and what to do about it."""

    def __init__(self, outcome: ProxyOutcome, status: int, text: str, fields: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.outcome = outcome
        self.status = status
        self.text = text
        self.fields = dict(fields or {})


class ClientGone(Exception):
    """The client closed, or sent nothing whole in time: there is nobody to answer. ``received`` are bytes."""

    def __init__(self, outcome: ProxyOutcome, received: int = 0) -> None:
        super().__init__(outcome)
        self.outcome = outcome
        self.received = received


async def read_head(connected: socket.socket, preread: bytes = b"") -> tuple[RawRequestMessage, bytes]:
    """The first request, and the bytes after its head that came with it. Raises ProxyRefusal or ClientGone.

    ``preread`` has been read from the connection already.
    """
    loop = asyncio.get_running_loop()
    # We bound the whole head ourselves, so the parser need not bound its parts.
    parser = HttpRequestParser(
        BaseProtocol(loop),
        loop,
        2**16,
        max_line_size=MAX_HEAD_BYTES,
        max_field_size=MAX_HEAD_BYTES,
        max_headers=MAX_FIELDS,
    )
    received = 0
    try:
        async with deadlines.timeout(HEAD_TIMEOUT_S):
            while received < MAX_HEAD_BYTES:
                data = preread or await loop.sock_recv(connected, min(READ_BYTES, MAX_HEAD_BYTES - received))
                preread = b""
                if not data:
                    raise ClientGone(ProxyOutcome.CLIENT_CLOSED, received)
                received += len(data)
                messages, _, behind = parser.feed_data(data)
                if messages:
                    request = messages[0][0]
                    # The parser accepts HTTP/0.9 as well, and the path may then be missing altogether.
                    if request.version < HttpVersion10 or not request.path:
                        break
                    return request, behind
            else:
                text = f"The head of this request is longer than the {MAX_HEAD_BYTES} bytes that the relay accepts."
                raise ProxyRefusal(ProxyOutcome.HEAD_TOO_LONG, 431, text)
    except TimeoutError:
        raise ClientGone(ProxyOutcome.HEAD_TIMEOUT) from None
    except OSError:
        raise ClientGone(ProxyOutcome.CLIENT_CLOSED, received) from None
    except (HttpProcessingError, ValueError):
        pass  # the error's message would show the client's bytes
    raise ProxyRefusal(ProxyOutcome.BAD_REQUEST, 400, "The relay cannot read this as an HTTP request.")


def build_established(connection: str) -> bytes:
    """The answer to a CONNECT that is granted; ``connection`` is the id by which the log knows it."""
    return f"HTTP/1.1 200 Connection established\r\n{RELAY_ID}: {connection}\r\n\r\n".encode()


def build_page(refused: ProxyRefusal, connection: str) -> bytes:
    """The answer to a request that is not served. It is plain text, so that no browser runs anything in it."""
    text = f"{refused.status} {HTTPStatus(refused.status).phrase}\n\n{refused.text}\n"
    fields = {"Cache-Control": "no-store", **refused.fields}
    kind = "text/plain; charset=utf-8"
    return build_response(refused.status, text.encode("utf-8"), kind, fields, connection=connection)
