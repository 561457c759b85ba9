"""The directory of signaling in the emulator's database, and the records of calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from relay.emulator.lines import LineKind, MemberRole
from relay.emulator.login.tokens import Tokens
from relay.emulator.signaling.directory import Account
from relay.emulator.signaling.state import CallRecord, LineSpec, Member, Stay
from relay.emulator.store import Store, tables

# A line of 800 members has 800 rows, and each of them asks for it when it logs in. A change that another process has
# made in the portal is seen this much later.
KEPT_S = 5.0


class StoreDirectory:
    """See ``directory.Directory``. ``forget`` after a change of lines or members."""

    def __init__(self, store: Store, tokens: Tokens, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._tokens = tokens
        self._clock = clock
        # Bounded by the lines in the database.
        self._kept: dict[str, tuple[float, LineSpec]] = {}
        self._forgotten = 0

    def forget(self) -> None:
        """Read everything again."""
        self._kept.clear()
        self._forgotten += 1

    async def user_of_token(self, token: str) -> Account | None:
        """The user of a client's login."""
        principal = await self._tokens.find(token, "client")
        if principal is None:
            return None
        async with self._store.reading() as session:
            firm = await session.get(tables.Firm, principal.firm_id)
        return Account(
            user_id=principal.user_id,
            name=principal.name,
            firm_id=principal.firm_id,
            firm=firm.name if firm else principal.firm_id,
            region=principal.region,
            login=principal.token_hash,
            ends_at=principal.expires_at,
        )

    async def still_open(self, logins: Collection[str]) -> Collection[str]:
        """Those of these logins that have not ended."""
        return await self._tokens.still_open(logins)

    async def disabled(self, user_ids: Collection[str]) -> Collection[str]:
        """Those who are disabled, or were deleted."""
        users = tables.User
        async with self._store.reading() as session:
            wanted = select(users.user_id).where(users.user_id.in_(list(user_ids)), users.enabled)
            return set(user_ids) - set(await session.scalars(wanted))

    async def lines_of(self, user_id: str) -> tuple[LineSpec, ...]:
        """In the order of their numbers."""
        wanted = select(tables.LineMember.number).where(tables.LineMember.user_id == user_id)
        async with self._store.reading() as session:
            numbers = (await session.scalars(wanted.order_by(tables.LineMember.number))).all()
        found = await self._lines(numbers)
        return tuple(found[number] for number in numbers if number in found)

    async def line(self, number: str) -> LineSpec | None:
        """Kept for a while."""
        return (await self._lines([number])).get(number)

    async def user_of_extension(self, number: str) -> str | None:
        """Someone who can log in."""
        users = tables.User
        async with self._store.reading() as session:
            return await session.scalar(select(users.user_id).where(users.extension == number, users.enabled))

    async def _lines(self, numbers: Iterable[str]) -> dict[str, LineSpec]:
        now, forgotten = self._clock(), self._forgotten
        kept = {number: self._kept.get(number) for number in numbers}
        found = {number: one[1] for number, one in kept.items() if one is not None and one[0] > now}
        if missing := [number for number in kept if number not in found]:
            loaded = await self._load(missing)
            found.update(loaded)
            # What was read before a change must not be kept after it.
            if forgotten == self._forgotten:
                for number in missing:
                    self._kept.pop(number, None)
                self._kept.update({number: (now + KEPT_S, spec) for number, spec in loaded.items()})
        return {number: found[number] for number in kept if number in found}

    async def _load(self, numbers: list[str]) -> dict[str, LineSpec]:
        lines, members, users, firms = tables.Line, tables.LineMember, tables.User, tables.Firm
        people = (
            select(members.number, members.role, users.user_id, users.name, users.firm_id, firms.name.label("firm"))
            .join(users, users.user_id == members.user_id)
            .join(firms, firms.firm_id == users.firm_id)
            .where(members.number.in_(numbers))
            .order_by(members.user_id)
        )
        async with self._store.reading() as session:
            rows = (await session.scalars(select(lines).where(lines.number.in_(numbers)))).all()
            found: dict[str, list[Member]] = {row.number: [] for row in rows}
            for one in await session.execute(people):
                may_talk = one.role == MemberRole.TALKER
                found[one.number].append(Member(one.user_id, one.name, one.firm_id, one.firm, may_talk))
        return {
            row.number: LineSpec(row.number, LineKind(row.kind), row.label, tuple(found[row.number])) for row in rows
        }

    async def on_call_ended(self, record: CallRecord) -> None:
        """Write a record, unless it is written already. See ``directory.OnCallEnded``."""
        async with self._store.reading() as session:
            if await session.get(tables.Call, record.call_id) is not None:
                return
            firms = await self._firms(record)
        call = tables.Call(
            call_id=record.call_id,
            line=record.line,
            kind=record.kind,
            region=record.region,
            started_at=record.started_at,
            answered_at=record.answered_at,
            ended_at=record.ended_at,
            reason=record.end_reason,
        )
        people = [_participant(record, user_id, stay, firms.get(user_id, "")) for user_id, stay in record.participants]
        try:
            async with self._store.writing() as session:
                session.add(call)
                await session.flush()
                session.add_all(people)
        except IntegrityError:
            # Another process was faster.
            async with self._store.reading() as session:
                if await session.get(tables.Call, record.call_id) is None:
                    raise

    async def _firms(self, record: CallRecord) -> dict[str, str]:
        users = tables.User
        wanted = [user_id for user_id, _ in record.participants]
        async with self._store.reading() as session:
            found = await session.execute(select(users.user_id, users.firm_id).where(users.user_id.in_(wanted)))
            return {row.user_id: row.firm_id for row in found}


def _participant(record: CallRecord, user_id: str, stay: Stay, firm_id: str) -> tables.CallParticipant:
    """Someone for whom it only rang has a stay without length, at the end."""
    return tables.CallParticipant(
        call_id=record.call_id,
        user_id=user_id,
        firm_id=firm_id,
        role=stay.role,
        joined_at=record.ended_at if stay.joined_at is None else stay.joined_at,
        left_at=record.ended_at if stay.left_at is None else stay.left_at,
    )
