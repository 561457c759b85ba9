"""The state that several signaling processes share, in Redis.

Each change of a line is optimistic: WATCH, read, decide, and MULTI/EXEC, again if another process was faster. In the
same transaction stand the line's deadline, the call's place and the record of a call that has ended, so whichever
process is killed at whichever moment, another finds what is left to do.

    line:NUMBER      the line, as JSON             deadlines        when each line wants to be asked
    call:ID          the number of its line        live             numbers of lines with a call
    guest:USER       lines of others               records, ended   records of calls to be written; when they ended
    session:USER     the session, as JSON          vanished         when each vanished session ends
    users:PROCESS    who is connected there        processes        when each has last said that it lives
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import asdict, replace
from typing import Any, cast

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import RedisError, WatchError

from relay.emulator.signaling.messages import LineStatus, PresenceStatus
from relay.emulator.signaling.shared import RECORD_PATIENCE_S, Decide, Session, guests_change, same_session, vanished
from relay.emulator.signaling.state import (
    CallRecord,
    Decision,
    Line,
    LineSpec,
    dump_line,
    dump_record,
    load_line,
    load_record,
)
from relay.errors import OperatorError, UpstreamError

# The library's pipelines have types for some methods only.
Pipe = Any
PREFIX = "c9so:"
# Redis on the same machine answers in less than a millisecond. A client waits twice this long for an acknowledgement.
TIMEOUT_S = 5.0
# After a restart of Redis, each connection of the pool is found to be closed when it is used next: it is opened again,
# and what was asked is asked again. A second failure is told. So is a timeout, at once: its client has waited enough.
RETRIES = 1
# Each attempt fails only because another process has changed the same line in the millisecond between: twenty in a row
# are not chance.
MAX_ATTEMPTS = 20
# A process beats each second. One that has been silent this long is dead, or too slow to be of use.
DEAD_AFTER_S = 5.0
# Sessions of a dead process, or of the due, are handled in portions, so that no answer of Redis is large.
PORTION = 500


def open_redis(url: str) -> Redis:
    """A client for this URL. Raises OperatorError if it is not one."""
    try:
        return Redis.from_url(
            url,
            decode_responses=True,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            retry=Retry(NoBackoff(), RETRIES, supported_errors=(LostConnection,)),
        )
    except ValueError as error:
        raise OperatorError(f"--redis: {error}; expected redis://host:port/database") from None


async def require_redis(url: str) -> None:
    """Raises OperatorError unless a Redis answers there. Later its absence is borne; at a start it is a mistake."""
    async with open_redis(url) as redis:
        try:
            await redis.ping()
        except (RedisError, OSError, TimeoutError) as error:
            told = f"--redis: {error or type(error).__name__}"
            raise OperatorError(f"{told}; start Redis, or choose another with --redis") from None


@contextlib.asynccontextmanager
async def _told() -> AsyncIterator[None]:
    try:
        yield
    except (RedisError, OSError, TimeoutError) as error:
        raise UpstreamError(f"Redis: {error or type(error).__name__}") from error


class RedisShared:
    """For several processes. ``process`` names this one."""

    def __init__(self, redis: Redis, process: str, *, prefix: str = PREFIX, dead_after_s: float = DEAD_AFTER_S) -> None:
        self._redis = redis
        self._process = process
        self._prefix = prefix
        self._dead_after_s = dead_after_s
        # Two requests of this process for one line would only make each other's attempt fail.
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    def _key(self, *parts: str) -> str:
        return self._prefix + ":".join(parts)

    async def _change(self, key: str, attempt: Callable[[Pipe, str | None], Awaitable[Any]]) -> Any:
        """Try a transaction on one key until no other process comes between."""
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock, _told(), self._redis.pipeline() as opened:
            pipe: Pipe = opened
            for _ in range(MAX_ATTEMPTS):
                try:
                    await pipe.watch(key)
                    return await attempt(pipe, cast("str | None", await pipe.get(key)))
                except WatchError:
                    continue
                finally:
                    await pipe.reset()
        raise UpstreamError(f"Redis: {key} was changed by others {MAX_ATTEMPTS} times in a row")

    # Lines

    async def read_lines(self, numbers: Iterable[str]) -> dict[str, Line]:
        """See ``Shared``; the other methods too."""
        numbers = list(numbers)
        if not numbers:
            return {}
        async with _told():
            found = await self._redis.mget([self._key("line", number) for number in numbers])
        return {number: _load_line(raw) for number, raw in zip(numbers, cast("list[str | None]", found), strict=True)}

    async def change_line(self, spec: LineSpec, decide: Decide) -> Decision:
        """Decide and store."""

        async def attempt(pipe: Pipe, raw: str | None) -> Decision:
            decision = decide(_load_line(raw))
            if decision.changed:
                pipe.multi()
                self._store(pipe, spec, decision)
                await pipe.execute()
            return decision

        return cast("Decision", await self._change(self._key("line", spec.number), attempt))

    def _store(self, pipe: Pipe, spec: LineSpec, decision: Decision) -> None:
        number, line = spec.number, decision.line
        pipe.set(self._key("line", number), json.dumps(dump_line(line), separators=(",", ":")))
        if (deadline := line.deadline) is not None:
            pipe.zadd(self._key("deadlines"), {number: deadline})
        else:
            pipe.zrem(self._key("deadlines"), number)
        if line.status is LineStatus.IDLE:
            pipe.srem(self._key("live"), number)
        else:
            pipe.sadd(self._key("live"), number)
        if line.call is not None and decision.before.call is None:
            pipe.set(self._key("call", line.call.call_id), number)
        elif line.call is None and decision.before.call is not None:
            pipe.delete(self._key("call", decision.before.call.call_id))
        came, left = guests_change(spec, decision)
        for user_id in came:
            pipe.sadd(self._key("guest", user_id), number)
        for user_id in left:
            pipe.srem(self._key("guest", user_id), number)
        if (record := decision.ended) is not None:
            pipe.hset(self._key("records"), record.call_id, json.dumps(dump_record(record)))
            pipe.zadd(self._key("ended"), {record.call_id: record.ended_at})

    async def due_lines(self, now: float) -> list[str]:
        """Numbers whose deadline has come."""
        return await self._due("deadlines", now)

    async def _due(self, name: str, now: float) -> list[str]:
        async with _told():
            found = await self._redis.zrangebyscore(self._key(name), "-inf", now, start=0, num=PORTION)
        return cast("list[str]", found)

    async def _members(self, *parts: str) -> list[str]:
        async with _told():
            return sorted(cast("set[str]", await self._redis.smembers(self._key(*parts))))

    async def live_lines(self) -> list[str]:
        """Numbers of lines with a call."""
        return await self._members("live")

    async def guest_lines(self, user_id: str) -> list[str]:
        """Numbers of the lines of others."""
        return await self._members("guest", user_id)

    async def line_of_call(self, call_id: str) -> str | None:
        """The number of a call's line."""
        async with _told():
            return cast("str | None", await self._redis.get(self._key("call", call_id)))

    # Sessions

    async def open_session(self, session: Session) -> Session | None:
        """Replace the user's session."""

        async def attempt(pipe: Pipe, raw: str | None) -> Session | None:
            former = _load_session(raw)
            opened = replace(session, presence=former.presence) if former else session
            pipe.multi()
            pipe.set(self._key("session", session.user_id), _dump_session(opened))
            pipe.zrem(self._key("vanished"), session.user_id)
            if former is not None and former.process != session.process:
                pipe.srem(self._key("users", former.process), session.user_id)
            pipe.sadd(self._key("users", session.process), session.user_id)
            await pipe.execute()
            return former

        return cast("Session | None", await self._change(self._key("session", session.user_id), attempt))

    async def sessions(self, user_ids: Iterable[str]) -> dict[str, Session]:
        """Those who have one."""
        user_ids = list(user_ids)
        if not user_ids:
            return {}
        async with _told():
            found = await self._redis.mget([self._key("session", user_id) for user_id in user_ids])
        loaded = [_load_session(raw) for raw in cast("list[str | None]", found)]
        return {session.user_id: session for session in loaded if session is not None}

    async def set_presence(self, user_id: str, presence: PresenceStatus) -> None:
        """Only with a session."""

        async def attempt(pipe: Pipe, raw: str | None) -> None:
            if (session := _load_session(raw)) is not None:
                pipe.multi()
                pipe.set(self._key("session", user_id), _dump_session(replace(session, presence=presence)))
                await pipe.execute()

        await self._change(self._key("session", user_id), attempt)

    async def vanish(self, user_id: str, connection: str, until: float) -> bool:
        """Only if it is still this connection."""

        async def attempt(pipe: Pipe, raw: str | None) -> bool:
            session = _load_session(raw)
            if session is None or session.connection != connection:
                return False
            lost = vanished(session, until)
            pipe.multi()
            pipe.set(self._key("session", user_id), _dump_session(lost))
            pipe.zadd(self._key("vanished"), {user_id: lost.vanished_until or until})
            await pipe.execute()
            return True

        return bool(await self._change(self._key("session", user_id), attempt))

    async def end_session(self, session: Session) -> bool:
        """Only if nothing has changed."""

        async def attempt(pipe: Pipe, raw: str | None) -> bool:
            if not same_session(_load_session(raw), session):
                return False
            pipe.multi()
            pipe.delete(self._key("session", session.user_id))
            pipe.zrem(self._key("vanished"), session.user_id)
            pipe.srem(self._key("users", session.process), session.user_id)
            await pipe.execute()
            return True

        return bool(await self._change(self._key("session", session.user_id), attempt))

    async def due_sessions(self, now: float) -> list[Session]:
        """Vanished, and the time is up."""
        found = await self.sessions(await self._due("vanished", now))
        return [one for one in found.values() if one.vanished_until is not None and one.vanished_until <= now]

    async def next_due(self) -> float | None:
        """The first deadline of all."""
        async with _told(), self._redis.pipeline(transaction=False) as pipe:
            for name in ("deadlines", "vanished"):
                pipe.zrange(self._key(name), 0, 0, withscores=True)
            firsts = await pipe.execute()
        return min((score for first in firsts for _, score in first), default=None)

    # Records

    async def unwritten_records(self, now: float) -> list[CallRecord]:
        """Older than ``RECORD_PATIENCE_S``."""
        call_ids = await self._due("ended", now - RECORD_PATIENCE_S)
        if not call_ids:
            return []
        async with _told():
            found = await self._redis.hmget(self._key("records"), call_ids)
        return [load_record(json.loads(raw)) for raw in found if raw is not None]

    async def record_written(self, call_id: str) -> None:
        """Forget a record."""
        async with _told(), self._redis.pipeline() as pipe:
            pipe.hdel(self._key("records"), call_id)
            pipe.zrem(self._key("ended"), call_id)
            await pipe.execute()

    # Processes

    async def beat(self, now: float) -> bool:
        """Also register it, the first time."""
        async with _told(), self._redis.pipeline() as pipe:
            pipe.zscore(self._key("processes"), self._process)
            pipe.zadd(self._key("processes"), {self._process: now})
            before, _ = await pipe.execute()
        return before is not None

    async def bury_dead(self, now: float, grace_s: float) -> int:
        """Processes that have been silent for ``dead_after_s``."""
        buried = 0
        for process in await self._due("processes", now - self._dead_after_s):
            if process != self._process:
                buried += await self.bury(process, now + grace_s)
        return buried

    async def leave(self, until: float) -> None:
        """Others need not wait until they miss this process."""
        await self.bury(self._process, until)

    async def bury(self, process: str, until: float) -> int:
        """Let all sessions of a process vanish, and forget it. If two processes do so at once, nothing is wrong."""
        user_ids = await self._members("users", process)
        buried = 0
        for start in range(0, len(user_ids), PORTION):
            for session in (await self.sessions(user_ids[start : start + PORTION])).values():
                if session.process == process and session.is_connected:
                    buried += await self.vanish(session.user_id, session.connection, until)
        async with _told(), self._redis.pipeline() as pipe:
            pipe.delete(self._key("users", process))
            pipe.zrem(self._key("processes"), process)
            await pipe.execute()
        return buried

    async def close(self) -> None:
        """Close all connections."""
        await self._redis.aclose()


def _load_line(raw: str | None) -> Line:
    return load_line(json.loads(raw)) if raw is not None else Line()


def _dump_session(session: Session) -> str:
    return json.dumps(asdict(session))


def _load_session(raw: str | None) -> Session | None:
    if raw is None:
        return None
    fields = json.loads(raw)
    return Session(**{**fields, "presence": PresenceStatus(fields["presence"])})
