"""A program that uses the CTI API, with a WebSocket library that is not the server's."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from relay.emulator.apis.nonces import Nonces
from relay.emulator.apis.signing import SignedRequest, http_date, new_nonce, sign
from relay.emulator.apis.verifying import ApiKey, check, parse_authorization

HEAR_TIMEOUT_S = 60.0


class CtiClient:
    """Signs what it sends, and checks the signature of everything that it hears."""

    def __init__(self, socket: ClientConnection, signed: SignedRequest, key: str, secret: str) -> None:
        self.socket = socket
        self.signed, self.key, self.secret = signed, key, secret
        self._nonces = Nonces()

    def sealed(self, message_type: str, body: Any, *, key: str | None = None, **changes: Any) -> dict[str, Any]:
        """A message in its envelope. ``changes`` are fields of what is signed."""
        text = body if isinstance(body, str) else json.dumps(body)
        request = replace(self.signed, body=text.encode(), **changes)
        headers = sign(request, key or self.key, self.secret, nonce=new_nonce(), date=http_date(time.time()))
        return {"headers": headers, "messageType": message_type, "messageBody": text}

    async def send(self, message_type: str, body: Any, **changes: Any) -> None:
        """Send a message."""
        await self.socket.send(json.dumps(self.sealed(message_type, body, **changes)))

    async def hear(self, message_type: str | None = None) -> Any:
        """The body of the next message; of the next of this type, if one is given."""
        async with asyncio.timeout(HEAR_TIMEOUT_S):
            while True:
                envelope = json.loads(await self.socket.recv())
                self._check(envelope)
                if message_type in {None, envelope["messageType"]}:
                    return json.loads(envelope["messageBody"])

    async def ask(self, message_type: str, body: Any) -> Any:
        """Send a request for a snapshot, and return it."""
        await self.send(message_type, body)
        return await self.hear(message_type)

    async def rejected(self, message_type: str, body: Any, **changes: Any) -> Any:
        """Send a message that is to be rejected, and return the rejection."""
        await self.send(message_type, body, **changes)
        return await self.hear("rejection")

    async def closed(self) -> tuple[int, str]:
        """Read until the server has closed; its code and reason."""
        async with asyncio.timeout(HEAR_TIMEOUT_S):
            with contextlib.suppress(ConnectionClosed):
                while True:
                    await self.socket.recv()
        return self.socket.close_code or 0, self.socket.close_reason or ""

    def _check(self, envelope: dict[str, Any]) -> None:
        headers = envelope["headers"]
        signed = replace(self.signed, body=envelope["messageBody"].encode())
        credentials = parse_authorization(headers["Authorization"])
        key = ApiKey(self.key, self.secret, "")
        check(signed, credentials, headers["Date"], key, nonces=self._nonces, now=time.time())


@contextlib.asynccontextmanager
async def open_cti(host: str, key: str, secret: str, **changes: Any) -> AsyncIterator[CtiClient]:
    """Connect and sign the handshake. ``changes`` are fields of what is signed."""
    signed = SignedRequest("GET", "ws", host, "/api")
    headers = sign(replace(signed, **changes), key, secret, nonce=new_nonce(), date=http_date(time.time()))
    async with connect(f"ws://{host}/api", additional_headers=headers, compression=None, proxy=None) as socket:
        yield CtiClient(socket, signed, key, secret)
