"""The first page: the calls that go on now. It is fetched again every two seconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from relay.emulator.apis.entitlement import CLIENT
from relay.emulator.portal import firms
from relay.emulator.portal.neighbours import LiveCalls
from relay.emulator.portal.pages import ROOT, PageError
from relay.emulator.portal.parts import Parts
from relay.emulator.portal.visits import Visit, Visits
from relay.emulator.signaling.state import Line, LineSpec
from relay.emulator.store.tables import LoginSession, Recording, User
from relay.errors import UpstreamError

CALLS = f"{ROOT}calls"
# A screen shows a tenth of it. The page says how many more there are.
MAX_SHOWN = 100
# Names of people in one call that are written out. A hoot has hundreds.
MAX_NAMES = 8
# A dial-tone call has one guest. A database takes some ten thousand values in a query.
MAX_GUESTS = 5000
_DAY_S = 24 * 3600.0


@dataclass(frozen=True)
class CallView:
    """A call as one firm sees it: its own people by name and whether they talk, others by number."""

    spec: LineSpec
    line: Line
    people: tuple[tuple[str, bool], ...]
    more: int
    others: int
    lasts_s: float


class Overview:
    """The pages ``/portal/`` and ``/portal/calls``, which is the part of it that changes."""

    def __init__(self, parts: Parts, live: LiveCalls) -> None:
        self._parts = parts
        self._live = live

    def routes(self, visits: Visits) -> Iterable[tuple[str, str, Any]]:
        """Method, path and handler of each page."""
        yield "GET", ROOT, visits.reading(self._show)
        yield "GET", CALLS, visits.reading(self._calls)

    async def _show(self, visit: Visit) -> web.StreamResponse:
        context = await self._now(visit)
        async with self._parts.store.reading() as session:
            figures = await self._figures(session, visit) if visit.is_admin else {}
        return visit.render("overview.html", {**context, "figures": figures})

    async def _calls(self, visit: Visit) -> web.StreamResponse:
        return visit.render("calls.html", await self._now(visit))

    async def _now(self, visit: Visit) -> Mapping[str, Any]:
        try:
            live = await self._live.live_lines()
        except UpstreamError as error:
            raise PageError(503, "Signaling does not answer", str(error), headers={"Retry-After": "5"}) from error
        firm_id, guests = visit.who.firm_id, await self._guests(visit.who.firm_id, live)
        seen = []
        for spec, line in live:
            names = {each.user_id: each.name for each in spec.members if each.firm_id == firm_id}
            names |= {user_id: name for user_id, name in guests.items() if user_id in line.parties}
            if names if visit.is_admin else visit.who.user_id in names:
                seen.append((spec, line, names))
        seen.sort(key=lambda each: each[1].since, reverse=True)
        calls = [self._view(*each) for each in seen[:MAX_SHOWN]]
        return {"calls": calls, "more_calls": len(seen) - len(calls)}

    async def _guests(self, firm_id: str, live: Sequence[tuple[LineSpec, Line]]) -> dict[str, str]:
        """Names of the firm's users who are in a call on a line that is not theirs: someone has dialled them."""
        guests = [user_id for spec, line in live for user_id in line.parties.keys() - spec.firm_of.keys()]
        if not guests:
            return {}
        async with self._parts.store.reading() as session:
            found = select(User.user_id, User.name).where(
                User.firm_id == firm_id, User.user_id.in_(guests[:MAX_GUESTS])
            )
            return {row.user_id: row.name for row in await session.execute(found)}

    def _view(self, spec: LineSpec, line: Line, names: dict[str, str]) -> CallView:
        own = [(names[user_id], party.talking) for user_id, party in line.parties.items() if user_id in names]
        # Those who talk are named first: a hoot has hundreds who listen.
        own.sort(key=lambda each: not each[1])
        return CallView(
            spec=spec,
            line=line,
            people=tuple(own[:MAX_NAMES]),
            more=max(0, len(own) - MAX_NAMES),
            others=len(line.parties) - len(own),
            lasts_s=self._parts.clock() - line.since,
        )

    async def _figures(self, session: AsyncSession, visit: Visit) -> dict[str, int]:
        firm, now = visit.who.firm_id, self._parts.clock()
        users = select(func.count()).select_from(User).where(User.firm_id == firm)
        logged_in = select(func.count(LoginSession.user_id.distinct())).join(User)
        logged_in = logged_in.where(User.firm_id == firm, LoginSession.kind == CLIENT, LoginSession.expires_at > now)
        lines = select(func.count()).select_from(firms.numbers_of(firm).subquery())
        recordings = select(func.count()).select_from(Recording)
        recordings = recordings.where(Recording.firm_id == firm, Recording.created_at > now - _DAY_S)
        return {
            "users": await session.scalar(users) or 0,
            "with Voice via Web Proxy": await session.scalar(users.where(User.voice_via_web_proxy)) or 0,
            "logged in": await session.scalar(logged_in) or 0,
            "lines": await session.scalar(lines) or 0,
            "recordings in 24 hours": await session.scalar(recordings) or 0,
        }
