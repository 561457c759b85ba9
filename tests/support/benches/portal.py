"""A portal on a free port with the default firms, calls and recordings that a test makes up, and its clients."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from html import unescape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
from aiohttp import web
from sqlalchemy import select

from relay import catalog
from relay.emulator import fixtures
from relay.emulator.faults.board import FaultBoard
from relay.emulator.http.site import Names, Site
from relay.emulator.lines import LineKind
from relay.emulator.login.service import Passwords
from relay.emulator.login.tokens import Tokens
from relay.emulator.portal.logins import FORM_TOKEN
from relay.emulator.portal.portal import Portal
from relay.emulator.signaling.messages import LineStatus, PartyRole
from relay.emulator.signaling.state import Line, LineSpec, Member, Party
from relay.emulator.store import Store, tables
from relay.emulator.store.seeding import seed
from tests.support import brief_stores

NOW = 1_795_802_000.0
ADMIN = ("atlas-admin", "admin")
OTHER_ADMIN = ("borealis-admin", "admin")
TRADER = ("anna", "trader")
# Names and firms of the users in the fixtures.
_KNOWN = {user.id: (user.name, user.firm) for user in fixtures.bundled().users}
brief_stores.shorten()


class Reply:
    """An answer, read to its end."""

    def __init__(self, answer: aiohttp.ClientResponse, body: bytes) -> None:
        self.status = answer.status
        self.headers = answer.headers
        self.cookies = answer.cookies
        self.body = body
        self.text = body.decode("utf-8", "replace")
        self.location = answer.headers.get("Location", "")

    @property
    def words(self) -> str:
        """The text that a person reads, without tags."""
        return " ".join(unescape(re.sub(r"<[^>]*>", " ", self.text)).split())

    def field(self, name: str) -> str:
        """The value of an input of the page."""
        found = re.search(rf'<input[^>]*name="{name}"[^>]*value="([^"]*)"', self.text)
        assert found is not None, f"no field {name} in {self.words[:500]}"
        return unescape(found[1])


class Visitor:
    """A browser without a screen: keeps cookies, fills in forms, and follows no redirects."""

    def __init__(self, http: aiohttp.ClientSession, base: str) -> None:
        self.http = http
        self.base = base

    async def get(self, path: str, **more: Any) -> Reply:
        """A page."""
        async with self.http.get(self.base + path, allow_redirects=False, **more) as answer:
            return Reply(answer, await answer.read())

    async def send(self, path: str, fields: Any, **more: Any) -> Reply:
        """A form as it is given, without a token."""
        async with self.http.post(self.base + path, data=fields, allow_redirects=False, **more) as answer:
            return Reply(answer, await answer.read())

    async def post(self, path: str, fields: Mapping[str, str | list[str]], *, on: str = "", **more: Any) -> Reply:
        """A form of ours: with the token, and the version if there is one, of the page ``on`` or of the same path."""
        page = await self.get(on or path)
        pairs = [(FORM_TOKEN, page.field(FORM_TOKEN))]
        if "version" not in fields and 'name="version"' in page.text:
            pairs.append(("version", page.field("version")))
        for name, value in fields.items():
            pairs += [(name, one) for one in ([value] if isinstance(value, str) else value)]
        return await self.send(path, aiohttp.FormData(pairs), **more)

    async def log_in(self, user: str, password: str, **fields: str) -> Reply:
        """Through the login page."""
        return await self.post("/portal/login", {"name": user, "password": password, **fields})


def _member(user_id: str) -> Member:
    name, firm = _KNOWN.get(user_id, (user_id, "elsewhere"))
    return Member(user_id, name, firm, firm)


class MadeUpPortal:
    """The portal with its database, and what surrounds it."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store = store
        self.folder = folder
        self.now = NOW
        self.calls: list[tuple[LineSpec, Line]] = []
        self.told: list[tuple[str, tuple[str, ...]]] = []
        self.tokens = Tokens(store, clock=lambda: self.now)
        # The throttle's clock does not move by itself.
        self.passwords = Passwords(clock=lambda: self.now)
        self.faults = FaultBoard(catalog.load())
        self.portal = Portal(
            store,
            self.tokens,
            self.passwords,
            self,
            live=self,
            faults=self.faults,
            listener=self,
            clock=lambda: self.now,
        )
        self.base = ""

    # What the portal asks its neighbours

    async def live_lines(self) -> Sequence[tuple[LineSpec, Line]]:
        """The calls that the test has made up."""
        return self.calls

    def media_path(self, row: tables.Recording) -> Path:
        """A file of the test's folder."""
        return self.folder / row.recording_id

    async def on_lines(self, numbers: Collection[str]) -> None:
        """Note what signaling would be told."""
        self.told.append(("lines", tuple(numbers)))

    async def on_logins_ended(self, user_ids: Collection[str]) -> None:
        """Note what signaling would be told."""
        self.told.append(("logins", tuple(user_ids)))

    # What a test makes up

    def call(
        self,
        number: str,
        people: Sequence[str],
        *,
        label: str = "A line",
        kind: LineKind = LineKind.RINGDOWN,
        status: LineStatus = LineStatus.CONNECTED,
        talking: int = 1,
        members: Sequence[str] = (),
        guests: Sequence[str] = (),
    ) -> None:
        """A call that began 80 seconds ago. So many of the people talk.

        ``members`` have the line, too. ``guests`` are in the call and do not have it.
        """
        spec = LineSpec(number, kind, label, tuple(_member(name) for name in [*people, *members] if name not in guests))
        parties = {name: Party(PartyRole.TALKER, talking=place < talking) for place, name in enumerate(people)}
        self.calls.append((spec, Line(status=status, since=self.now - 80, parties=parties)))

    async def record(self, number: int, user: str, firm: str, media: bytes | None, **more: Any) -> str:
        """A recording; the media is there unless it is None."""
        recording_id = f"00000000-0000-4000-8000-{number:012}"
        given: dict[str, Any] = {
            "recording_id": recording_id,
            "call_id": None,
            "user_id": user,
            "firm_id": firm,
            "details": {"note": "made up"},
            "media_type": "audio/ogg",
            "media_bytes": None if media is None else len(media),
            "received_bytes": 0 if media is None else len(media),
            "sha256": None,
            "created_at": self.now - number,
            "completed_at": None if media is None else self.now,
        }
        if media is not None:
            (self.folder / recording_id).write_bytes(media)
        async with self.store.writing() as session:
            session.add(tables.Recording(**{**given, **more}))
        return recording_id

    async def user(self, name: str) -> tables.User:
        """A user as they are stored."""
        async with self.store.reading() as session:
            return await session.get_one(tables.User, name)

    async def audited(self) -> list[tables.AuditEntry]:
        """All entries, oldest first."""
        async with self.store.reading() as session:
            return list((await session.scalars(select(tables.AuditEntry).order_by(tables.AuditEntry.entry_id))).all())

    @contextlib.asynccontextmanager
    async def visitor(self, *login: str) -> AsyncIterator[Visitor]:
        """Someone with a browser of their own; logged in if there are a name and a password."""
        jar = aiohttp.CookieJar(unsafe=True)
        async with aiohttp.ClientSession(cookie_jar=jar) as http:
            visitor = Visitor(http, self.base)
            if login:
                assert (await visitor.log_in(*login)).status == 303
            yield visitor


@contextlib.asynccontextmanager
async def made_up_portal(database: str = ":memory:") -> AsyncIterator[MadeUpPortal]:
    """Serve it on a free port."""
    store = await Store.open(database)
    runner: web.AppRunner | None = None
    made: MadeUpPortal | None = None
    with TemporaryDirectory() as folder:
        try:
            await seed(store, fixtures.bundled())
            made = MadeUpPortal(store, Path(folder))
            site = Site(Names(catalog.load()))
            made.portal.register(site)
            runner = web.AppRunner(site.app, access_log=None)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            made.base = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield made
        finally:
            if runner is not None:
                await runner.cleanup()
            if made is not None:
                made.faults.close()
            await store.close()
