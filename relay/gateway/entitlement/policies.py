"""Where the rules for users come from: the configuration, a file of its own, or nowhere, if everyone may call.

A policy is asked for the Rule of a user. ``rule_now`` answers at once if it can; ``rule`` may wait, with a deadline of
its own. A fourth policy, a service of the firm, is in ``policy_http``. ``Entitlement`` makes the policy that
``entitlement.policy`` names.
"""

from __future__ import annotations

import asyncio
import functools
import json
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import structlog

from relay.config import EntitledUser, parse_users
from relay.errors import OperatorError, RelayError
from relay.gateway.file_state import state_of
from relay.rate_limit import RateLimit
from relay.tasks import Tasks, in_daemon_thread

log = structlog.get_logger()

# Copying a file over another one takes moments, and the operator who has edited a list can wait this long.
WATCH_INTERVAL_S = 2.0
# 100,000 users with all their keys. Not more than read_ahead.READ_BYTES, so a reload finds all of it in memory.
MAX_FILE_BYTES = 16 * 1024 * 1024

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Question:
    """Who wants to call: the user without expiry, the region of their upstream, and the client's address."""

    user: str
    region: str
    client: str


@dataclass(frozen=True, slots=True)
class Rule:
    """What a user may do: at most ``calls`` at once, to upstreams of ``regions``; None for no bound."""

    allowed: bool = True
    calls: int | None = None
    regions: frozenset[str] | None = None


EVERYBODY = Rule()
NOBODY = Rule(allowed=False)


class PolicyUnavailable(RelayError):
    """The rule cannot be found out now. The message is the cause, for the log."""


class Policy(Protocol):
    """A source of rules. ``trouble`` says why it cannot be asked, and is empty while it can."""

    @property
    def trouble(self) -> str:
        """The last cause of PolicyUnavailable, until there is an answer again."""

    def rule_now(self, question: Question) -> Rule | None:
        """The rule, or None if it takes a wait. Raises PolicyUnavailable."""

    async def rule(self, question: Question) -> Rule:
        """The rule, after a wait that has a deadline. Raises PolicyUnavailable."""

    async def close(self) -> None:
        """End background work. Questions under way get their answers first."""


class UserList:
    """Rules by user: an exact name goes before a pattern, and a longer pattern before a shorter one.

    A user who matches nothing may not call. Names are compared as TURN compares them: upper and lower case differ.
    """

    trouble = ""

    def __init__(self, users: Iterable[EntitledUser] = ()) -> None:
        self._exact: dict[str, Rule] = {}
        self._patterns: list[tuple[str, str, Rule]] = []
        for one in users:
            rule = Rule(one.allowed, one.calls, None if one.regions is None else frozenset(one.regions))
            start, star, end = one.user.partition("*")
            if star:
                self._patterns.append((start, end, rule))
            else:
                self._exact[one.user] = rule
        self._patterns.sort(key=lambda pattern: len(pattern[0]) + len(pattern[1]), reverse=True)

    def __len__(self) -> int:
        return len(self._exact) + len(self._patterns)

    def rule_now(self, question: Question) -> Rule:
        """The rule of a user."""
        user = question.user
        if (exact := self._exact.get(user)) is not None:
            return exact
        for start, end, rule in self._patterns:
            if len(user) >= len(start) + len(end) and user.startswith(start) and user.endswith(end):
                return rule
        return NOBODY

    async def rule(self, question: Question) -> Rule:
        """The same."""
        return self.rule_now(question)

    async def close(self) -> None:
        """Nothing runs."""


class NoPolicy:
    """Everyone may call."""

    trouble = ""

    def rule_now(self, question: Question) -> Rule:
        """No bounds."""
        return EVERYBODY

    async def rule(self, question: Question) -> Rule:
        """No bounds."""
        return EVERYBODY

    async def close(self) -> None:
        """Nothing runs."""


def load_users(path: Path) -> UserList:
    """Read a file of users, .json or TOML. Raises OperatorError with one line for each mistake."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise OperatorError(f"{path} (entitlement.file): {(error.strerror or str(error)).lower()}") from None
    if len(content) > MAX_FILE_BYTES:
        raise OperatorError(f"{path} (entitlement.file): expected at most {MAX_FILE_BYTES} bytes")
    return UserList(parse_users(_parse(path, content), source=str(path)))


def _parse(path: Path, content: bytes) -> object:
    kind = "JSON" if path.suffix.lower() == ".json" else "TOML"
    try:
        return json.loads(content) if kind == "JSON" else tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise OperatorError(f"{path} (entitlement.file): not valid {kind}: {error}") from None


class UserFile:
    """A list in a file, which is read again when it has changed. A bad file leaves the list as it was."""

    def __init__(self, path: Path, users: UserList | None = None) -> None:
        """``users`` is the list until the file has been read; None for none."""
        self.path = path
        self.users = users
        self.trouble = ""
        self._seen: tuple[int, ...] | None = None
        self._tasks = Tasks()

    def load(self) -> None:
        """Read the file now. A bad one is logged, once for each cause."""
        self._seen = state_of(self.path)
        self._take(_load(self.path))

    def watch(self) -> None:
        """Read the file in the background whenever it has changed, until ``close``."""
        self._tasks.start(self._watch(), "entitlement file")

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            # In a thread: a network file system may hang.
            seen = await self._read(state_of)
            if seen != self._seen:
                self._seen = seen
                self._take(await self._read(_load))

    async def _read(self, work: Callable[[Path], _T]) -> _T:
        return await in_daemon_thread(functools.partial(work, self.path), "entitlement file")

    def _take(self, loaded: UserList | str) -> None:
        if isinstance(loaded, UserList):
            self.users, self.trouble = loaded, ""
            log.info("list of entitled users read", path=str(self.path), users=len(loaded))
            return
        if loaded != self.trouble:
            stays = "the old list stays" if self.users is not None else "there is no list"
            for line in loaded.splitlines()[:10]:
                log.error("list of entitled users not read: " + stays, cause=line)
        self.trouble = loaded

    def rule_now(self, question: Question) -> Rule:
        """The rule of a user. Raises PolicyUnavailable if there was never a good list."""
        if self.users is None:
            raise PolicyUnavailable(self.trouble)
        return self.users.rule_now(question)

    async def rule(self, question: Question) -> Rule:
        """The same."""
        return self.rule_now(question)

    async def close(self) -> None:
        """Watch no longer."""
        await self._tasks.cancel()


def _load(path: Path) -> UserList | str:
    try:
        return load_users(path)
    except OperatorError as error:
        return str(error)


class Trouble:
    """Says in the log when something begins to fail, and when it works again: at most one line a second."""

    def __init__(self, failing: str, working: str) -> None:
        self.cause = ""
        self._failing = failing
        self._working = working
        self._limit = RateLimit(1)

    def begin(self, cause: str) -> None:
        """It fails. The cause is a text for people."""
        if not self.cause and self._limit.allows(asyncio.get_running_loop().time(), ""):
            log.error(self._failing, cause=cause)
        self.cause = cause

    def end(self) -> None:
        """It works."""
        if self.cause:
            log.info(self._working)
        self.cause = ""
