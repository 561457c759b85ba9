"""The emulator's APIs and recording upload on a free port, with the default fixtures, and a client for both."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from relay.catalog import load
from relay.emulator import fixtures
from relay.emulator.apis.audit import Audit
from relay.emulator.apis.call_data import CallData
from relay.emulator.apis.cti.server import CtiServer
from relay.emulator.apis.management import Management
from relay.emulator.apis.security import Keys
from relay.emulator.apis.signing import SignedRequest, http_date, new_nonce, sign
from relay.emulator.http.site import Names, Site
from relay.emulator.login.tokens import Bearer, Tokens
from relay.emulator.recordings.endpoints import RecordingUpload
from relay.emulator.recordings.recordings import Recordings
from relay.emulator.signaling.hub import Hub
from relay.emulator.signaling.in_store import StoreDirectory
from relay.emulator.signaling.shared import MemoryShared
from relay.emulator.store import Store, tables
from relay.emulator.store.seeding import seed
from tests.support import brief_stores
from tests.support.waiting import eventually

SECRETS = {"atlas-key-1": "atlas-secret-for-a-laptop", "borealis-key-1": "borealis-secret-for-a-laptop"}
ATLAS, BOREALIS = SECRETS
brief_stores.shorten()


@dataclass
class Answer:
    """A whole answer."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The error's code."""
        return str(self.json["error"]["code"])


@dataclass
class Apis:
    """What runs, and a client for it."""

    store: Store
    site: Site
    keys: Keys
    tokens: Tokens
    recordings: Recordings
    hub: Hub
    cti: CtiServer
    http: aiohttp.ClientSession
    port: int = 0
    host: str = field(default="")

    def signed(
        self, method: str, path: str, body: bytes = b"", *, key: str = ATLAS, content_type: str = "application/json"
    ) -> dict[str, str]:
        """The headers of a signed request."""
        request = SignedRequest(method, "http", self.host, path, content_type, body)
        return {
            "Content-Type": content_type,
            **sign(request, key, SECRETS[key], nonce=new_nonce(), date=http_date(time.time())),
        }

    async def send(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        """Send a request as it is."""
        url = f"http://{self.host}{path}"
        # aiohttp wants large bodies to be files.
        data = io.BytesIO(body) if len(body) >= 1 << 20 else body
        async with self.http.request(
            method, url, data=data, headers=headers, skip_auto_headers=["Content-Type"]
        ) as got:
            return Answer(got.status, await got.read(), got.headers)

    async def post(self, path: str, body: object, *, key: str = ATLAS) -> Answer:
        """Send signed JSON."""
        text = json.dumps(body).encode()
        return await self.send("POST", path, text, self.signed("POST", path, text, key=key))

    async def token(self, user: str) -> str:
        """A new login of a user."""
        async with self.store.reading() as session:
            row = await session.get_one(tables.User, user)
        return (await self.tokens.open(row, "client"))[0]

    async def log_in(self, *users: str) -> None:
        """Have users logged in to signaling, each on a connection that is named like the user."""
        for user in users:
            await self.hub.connect(user, {"token": await self.token(user)})
            await self.hub.admit(user)


class NoClients:
    """The hub's delivery, without anybody who listens."""

    async def emit(self, event: str, payload: Any, rooms: list[str]) -> None:
        """Nobody hears it."""

    async def enter(self, connection: str, rooms: Iterable[str]) -> None:
        """There are no rooms."""

    async def drop(self, connection: str) -> None:
        """There is no connection."""

    async def tell_others(self, what: str) -> None:
        """There is no other process."""


@contextlib.asynccontextmanager
async def serving(site: Site) -> AsyncIterator[int]:
    """Serve a site on a free port of 127.0.0.1."""
    # Who is refused in the middle of a body is read for a while, so that they see the answer. Here they all look.
    runner = web.AppRunner(site.app, access_log=None, shutdown_timeout=1, lingering_time=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
        await eventually(lambda: not any("RequestHandler" in repr(task) for task in asyncio.all_tasks()))


@contextlib.asynccontextmanager
async def open_apis(folder: Path, *, database: str = ":memory:") -> AsyncIterator[Apis]:
    """Everything, with the default fixtures."""
    store = await Store.open(database)
    try:
        await seed(store, fixtures.bundled())
        site, keys, tokens = Site(Names(load())), Keys(store), Tokens(store)
        recordings = Recordings(store, folder)
        directory = StoreDirectory(store, tokens)
        hub = Hub(directory, MemoryShared(), NoClients(), directory.on_call_ended)
        cti = CtiServer(store, keys, hub)
        for api in (Management(store, keys), CallData(store, keys), Audit(store, keys), cti):
            api.register(site)
        RecordingUpload(recordings, Bearer(tokens)).register(site)
        await recordings.start()
        try:
            async with serving(site) as port, aiohttp.ClientSession() as http:
                yield Apis(store, site, keys, tokens, recordings, hub, cti, http, port, f"127.0.0.1:{port}")
                await cti.stop()
        finally:
            await recordings.stop()
    finally:
        await store.close()


async def add_call(
    store: Store,
    *people: tuple[str, str],
    ended_at: float,
    answered: bool = True,
    region: str = "use1",
    line: str = "sPK-10000001-100001",
) -> str:
    """A call that has ended, with users of firms."""
    call_id, started_at = str(uuid.uuid4()), ended_at - 10
    async with store.writing() as session:
        session.add(
            tables.Call(
                call_id=call_id,
                line=line,
                kind="ringdown",
                region=region,
                started_at=started_at,
                answered_at=started_at + 2 if answered else None,
                ended_at=ended_at,
                reason="released" if answered else "timeout",
            )
        )
        await session.flush()
        session.add_all(
            tables.CallParticipant(
                call_id=call_id, user_id=user, firm_id=firm, role="caller", joined_at=started_at, left_at=ended_at
            )
            for user, firm in people
        )
    return call_id
