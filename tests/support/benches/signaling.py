"""A relay in front of an upstream that records what signaling reaches it, and the requests that tests begin with."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from relay.addresses import Address
from tests.support.benches.gateway import Relay, running_relay
from tests.support.peers.raw_http import OK, RecordingUpstream, recording_upstream
from tests.support.peers.tls_client import TlsClient

NO_UPSTREAM = Address("127.0.0.1", 9)
GET = b"GET /a HTTP/1.1\r\nHost: relay.test\r\nConnection: close\r\n"
UPGRADE = (
    b"GET /socket.io/?EIO=4&transport=websocket%s HTTP/1.1\r\nHost: relay.test\r\nConnection: keep-alive, Upgrade\r\n"
)
UPGRADE += b"Upgrade: WebSocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
SWITCH += b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"


@contextlib.asynccontextmanager
async def proxying(
    tmp_path: Path, answer: bytes = OK, **settings: Any
) -> AsyncIterator[tuple[Relay, RecordingUpstream]]:
    """A relay in front of a recording upstream that answers each head with the same bytes."""
    async with (
        recording_upstream(lambda received: answer if b"\r\n\r\n" in received else b"") as upstream,
        running_relay(tmp_path, NO_UPSTREAM, signaling={"upstreams": [upstream.url], **settings}) as relay,
    ):
        yield relay, upstream


async def open_websocket(relay: Relay, query: bytes = b"") -> TlsClient:
    """A client that has asked for a WebSocket of socket.io; the answer is not read yet."""
    client = await TlsClient.open(relay.tls, relay.trust)
    await client.send(UPGRADE % query)
    return client
