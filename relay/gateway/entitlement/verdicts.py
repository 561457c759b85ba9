"""Who may place calls: asks the policy, compares regions, counts calls at once, and keeps counters and the log.

``decide`` (or ``ask``, with a callback) says what a user may do, ``look_for_room`` whether they may have one more call
at once. ``grant`` gives the call a place once the upstream has granted its allocation, ``release`` takes it back. All
carriers do it in this order: ``admission`` for the TURN user names that the data plane reads, sessions for the user of
their ``open`` message::

    verdict = entitlement.look_for_room(holder, await entitlement.decide(user, region, client))
    ...  # the upstream grants an allocation
    verdict = entitlement.grant(holder, verdict)
    ...
    entitlement.release(holder)

These count the calls of this relay alone. In a cluster, ``ask_for_room`` and ``ask_for_grant`` do the same and then ask
the other relays, within a deadline. Alone, or while nobody can be asked, they answer at once.
"""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import assert_never

from relay import config
from relay.gateway.cluster.calls import SharedCalls
from relay.gateway.entitlement.places import Places
from relay.gateway.entitlement.policies import (
    NoPolicy,
    Policy,
    PolicyUnavailable,
    Question,
    Rule,
    UserFile,
    UserList,
    load_users,
)
from relay.gateway.entitlement.policy_http import UserService, trust
from relay.gateway.lines import Lines
from relay.plane.api import MAX_USERNAME_CHARACTERS
from relay.tasks import Tasks
from relay.wire.stun import ErrorCode

# For each outcome: a trading floor that is shut out must not fill the log. The counters count all.
LINES_PER_S = 20
# In a cluster, places whose allocation has ended are looked for this often, because users may want them elsewhere. A
# relay alone looks when somebody wants one. Ten thousand places take some milliseconds.
LOOK_FOR_ENDED_S = 2.0


class VerdictOutcome(StrEnum):
    """What was decided: a label of metrics and a word of the log, so the set is closed."""

    ADMITTED = "admitted"
    ADMITTED_UNASKED = "admitted_unasked"  # file or service cannot be used, and fail = "open"
    NOT_ENTITLED = "not_entitled"
    REGION = "region"  # allowed, but not in this upstream's region
    TOO_MANY_CALLS = "too_many_calls"
    UNAVAILABLE = "unavailable"  # file or service cannot be used, and fail = "closed"
    BAD_REQUEST = "bad_request"  # an Allocate that cannot be read, or names nobody
    MOBILITY = "mobility"  # a Refresh that takes an allocation over to another connection


# What a TURN client is told. RFC 8656 has 403 for administrative reasons and 486 for a user's quota; RFC 8489 has 400
# for requests that cannot be read.
STUN_ERRORS = {
    VerdictOutcome.NOT_ENTITLED: ErrorCode(403, "Forbidden: not entitled to voice through this relay"),
    VerdictOutcome.REGION: ErrorCode(403, "Forbidden: not entitled to this region"),
    VerdictOutcome.TOO_MANY_CALLS: ErrorCode(486, "Allocation Quota Reached: too many calls at once"),
    VerdictOutcome.UNAVAILABLE: ErrorCode(403, "Forbidden: entitlement cannot be checked now"),
    VerdictOutcome.MOBILITY: ErrorCode(405, "Mobility Forbidden: an allocation stays on its connection here"),
    VerdictOutcome.BAD_REQUEST: ErrorCode(400, "Bad Request: expected an Allocate with a USERNAME"),
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """A decision on one request. The calls of ``user`` are counted, at most ``calls`` at once, or None for any."""

    outcome: VerdictOutcome
    user: str
    region: str
    client: str
    calls: int | None = None
    # The id by which the log knows the connection.
    connection: str = ""

    @property
    def admitted(self) -> bool:
        """True if the user may call."""
        return self.outcome in {VerdictOutcome.ADMITTED, VerdictOutcome.ADMITTED_UNASKED}

    @property
    def error(self) -> ErrorCode | None:
        """How a TURN client is told of a refusal, with a text for people. None if the user may call."""
        return STUN_ERRORS.get(self.outcome)


class Entitlement:
    """Decides for one relay. ``counts`` are decisions from the start, by outcome."""

    def __init__(
        self,
        settings: config.EntitlementSettings,
        allocated: Callable[[Hashable], bool],
        shared: SharedCalls | None = None,
    ) -> None:
        """Raises OperatorError for a CA that cannot be used. ``allocated`` is passed on to Places.

        ``shared`` are the calls at other relays.
        """
        self.counts = dict.fromkeys(VerdictOutcome, 0)
        self._settings = settings
        self._shared = shared
        self._places = Places(allocated, self._on_fewer_places)
        self._lines = Lines(LINES_PER_S)
        self._tasks = Tasks()
        self._looking = Tasks()
        self._policy = self._make_policy(settings, None)

    @property
    def policy(self) -> str:
        """Its name, as configured."""
        return self._settings.policy

    @property
    def asks_for_users(self) -> bool:
        """True if anybody could be refused. Then the data plane waits for us at each first Allocate."""
        return self._settings.policy != "none"

    @property
    def trouble(self) -> str:
        """Why the policy cannot be asked, for people; empty while it can."""
        return self._policy.trouble

    @property
    def calls(self) -> int:
        """How many places are taken, by all users together."""
        return len(self._places)

    # Settings

    def check(self, settings: config.EntitlementSettings) -> None:
        """Look whether ``configure`` would work. Raises OperatorError."""
        if settings.policy == "file" and settings.file == self._settings.file:
            return  # a bad list leaves the old one
        check_entitlement(settings)

    def configure(self, settings: config.EntitlementSettings) -> None:
        """Decide by these from now on. Users who were admitted stay so; files are read and services asked anew.

        Raises OperatorError for a CA that cannot be used.
        """
        before = self._policy
        self._policy = self._make_policy(settings, before)
        self._settings = settings
        self._tasks.start(before.close(), "entitlement")
        self.start()

    def start(self) -> None:
        """Do what the policy does in the background."""
        if isinstance(self._policy, UserFile):
            self._policy.watch()
        if self._shared is not None and not len(self._looking):
            self._looking.start(self._look_for_ended(), "entitlement places")

    async def _look_for_ended(self) -> None:
        while True:
            await asyncio.sleep(LOOK_FOR_ENDED_S)
            self._places.release_ended()

    async def stop(self) -> None:
        """End background work. Questions under way have a deadline. May be repeated."""
        await self._looking.cancel()
        await self._tasks.finish()
        await self._policy.close()

    def _make_policy(self, settings: config.EntitlementSettings, before: Policy | None) -> Policy:
        match settings.policy:
            case "none":
                return NoPolicy()
            case "static":
                return UserList(settings.users)
            case "file":
                assert settings.file is not None
                return _user_file(settings.file, before)
            case "http":
                return UserService(settings)
            case unknown:
                # A policy that is forgotten here must not let everyone call.
                assert_never(unknown)

    # Decisions

    def decide_now(self, username: str, region: str, client: str, connection: str = "") -> Verdict | None:
        """What a user may do; None if the policy must be asked first, by ``decide``."""
        question = self._question(username, region, client)
        try:
            rule = self._policy.rule_now(question)
        except PolicyUnavailable:
            return self._on_unavailable(question, username, connection)
        return None if rule is None else self._judge(rule, question, username, connection)

    async def decide(self, username: str, region: str, client: str, connection: str = "") -> Verdict:
        """What a user may do, within the deadline of the policy.

        ``username`` is as the client gives it, ``region`` the chosen upstream's, ``client`` an IP address,
        ``connection`` the id for the log. A refusal is counted and logged here. A user who is admitted is counted when
        they are granted a place.
        """
        question = self._question(username, region, client)
        try:
            rule = await self._policy.rule(question)
        except PolicyUnavailable:
            return self._on_unavailable(question, username, connection)
        return self._judge(rule, question, username, connection)

    def ask(self, username: str, region: str, client: str, connection: str, then: Callable[[Verdict], None]) -> None:
        """Decide, and call ``then`` with the verdict: at once if the policy knows it, or within its deadline."""
        verdict = self.decide_now(username, region, client, connection)
        if verdict is not None:
            then(verdict)
        else:
            self._tasks.start(self._ask(username, region, client, connection, then), "entitlement")

    async def _ask(
        self, username: str, region: str, client: str, connection: str, then: Callable[[Verdict], None]
    ) -> None:
        then(await self.decide(username, region, client, connection))

    def _question(self, username: str, region: str, client: str) -> Question:
        user = user_of(username) if self._settings.rest_usernames else username
        return Question(unicodedata.normalize("NFC", user), region, client)

    def user_named(self, username: str) -> str:
        """The user whose traffic is counted for a name that an upstream has proven.

        Some servers read a name only up to its first NUL, so one user could have any number of them.
        """
        return self._question(username.partition("\0")[0], "", "").user

    def _judge(self, rule: Rule, question: Question, username: str, connection: str) -> Verdict:
        outcome = VerdictOutcome.ADMITTED
        if not rule.allowed:
            outcome = VerdictOutcome.NOT_ENTITLED
        elif rule.regions is not None and question.region not in rule.regions:
            outcome = VerdictOutcome.REGION
        return self._say(_verdict(outcome, question, connection, rule.calls), username)

    def _on_unavailable(self, question: Question, username: str, connection: str) -> Verdict:
        outcome = VerdictOutcome.ADMITTED_UNASKED if self._settings.fail == "open" else VerdictOutcome.UNAVAILABLE
        return self._say(_verdict(outcome, question, connection), username)

    def bad_request(self, region: str, client: str, connection: str = "") -> Verdict:
        """An Allocate that names nobody."""
        return self._say(Verdict(VerdictOutcome.BAD_REQUEST, "", region, client, connection=connection), "")

    def mobility(self, region: str, client: str, connection: str = "") -> Verdict:
        """A Refresh with a MOBILITY-TICKET (RFC 8016)."""
        return self._say(Verdict(VerdictOutcome.MOBILITY, "", region, client, connection=connection), "")

    def _say(self, verdict: Verdict, username: str) -> Verdict:
        """Count and log a refusal."""
        if verdict.admitted:
            return verdict
        self.counts[verdict.outcome] += 1
        self._lines.info(
            "not entitled",
            verdict.outcome,
            verdict=verdict.outcome.value,
            username=username[:MAX_USERNAME_CHARACTERS],
            region=verdict.region,
            client=verdict.client,
            **({"connection": verdict.connection} if verdict.connection else {}),
        )
        return verdict

    # Places

    def look_for_room(self, holder: Hashable, verdict: Verdict) -> Verdict:
        """Refuse an admitted user who has too many calls already, not counting the holder's. Takes no place."""
        if not verdict.admitted or self._places.has_room(holder, verdict.user, verdict.calls):
            return verdict
        return self._too_many(verdict)

    def _too_many(self, verdict: Verdict) -> Verdict:
        return self._say(replace(verdict, outcome=VerdictOutcome.TOO_MANY_CALLS), verdict.user)

    def grant(self, holder: Hashable, verdict: Verdict) -> Verdict:
        """Give a call that has its allocation a place, or refuse it. The holder keeps the place until ``release``.

        A holder has one place: a second grant takes the first one back. A call that is refused must not go on.
        """
        again = self._places.holds(holder, verdict.user)
        if not self._places.take(holder, verdict.user, verdict.calls):
            return self._too_many(verdict)
        # A client that sends its Allocate again is granted the same call twice.
        return verdict if again else self._count(verdict)

    def _count(self, verdict: Verdict) -> Verdict:
        self.counts[verdict.outcome] += 1
        return verdict

    def release(self, holder: Hashable) -> None:
        """The holder's call, if it had one, is over. May be repeated."""
        self._places.release(holder)

    # Places at all relays

    def ask_for_room(self, holder: Hashable, verdict: Verdict, then: Callable[[Verdict], None]) -> None:
        """As ``look_for_room``, and then whether other relays leave room. ``then`` gets the verdict, now or later."""
        verdict, shared = self.look_for_room(holder, verdict), self._shared
        bounded = verdict.admitted and verdict.calls is not None
        if shared is None or not shared.up or not bounded or self._places.holds(holder, verdict.user):
            then(verdict)
        else:
            self._tasks.start(self._ask_for_room(shared, verdict, then), "entitlement")

    async def _ask_for_room(self, shared: SharedCalls, verdict: Verdict, then: Callable[[Verdict], None]) -> None:
        assert verdict.calls is not None
        one_more = self._places.count(verdict.user) + 1
        then(verdict if await shared.has_room(verdict.user, one_more, verdict.calls) else self._too_many(verdict))

    def ask_for_grant(self, holder: Hashable, verdict: Verdict, then: Callable[[Verdict], None]) -> None:
        """As ``grant``, and then whether other relays leave room. ``then`` gets the verdict, now or later.

        It gets none if the call has ended meanwhile.
        """
        shared = self._shared
        if shared is None or verdict.calls is None or self._places.holds(holder, verdict.user):
            then(self.grant(holder, verdict))
        elif not self._places.take(holder, verdict.user, verdict.calls):
            then(self._too_many(verdict))
        elif shared.up:
            self._tasks.start(self._ask_for_grant(shared, holder, verdict, then), "entitlement")
        else:
            shared.note(verdict.user, self._places.count(verdict.user), bounded=True)
            then(self._count(verdict))

    async def _ask_for_grant(
        self, shared: SharedCalls, holder: Hashable, verdict: Verdict, then: Callable[[Verdict], None]
    ) -> None:
        assert verdict.calls is not None
        granted = await shared.claim(verdict.user, self._places.count, verdict.calls)
        if self._places.holds(holder, verdict.user):  # otherwise the call has ended meanwhile
            if not granted:
                self._places.release(holder)
            then(self._count(verdict) if granted else self._too_many(verdict))

    def _on_fewer_places(self, user: str) -> None:
        if self._shared is not None:
            self._shared.note(user, self._places.count(user))


def _verdict(outcome: VerdictOutcome, question: Question, connection: str, calls: int | None = None) -> Verdict:
    return Verdict(outcome, question.user, question.region, question.client, calls, connection)


def user_of(username: str) -> str:
    """The user of a time-limited name, ``expiry:user``; other names are users as they are."""
    expires, colon, user = username.partition(":")
    return user if colon and expires.isascii() and expires.isdigit() else username


def check_entitlement(settings: config.EntitlementSettings) -> None:
    """Look whether the files that the settings name can be used. Raises OperatorError."""
    match settings.policy:
        case "none" | "static":
            pass  # they name no files
        case "file":
            assert settings.file is not None
            load_users(settings.file)
        case "http":
            trust(settings.ca)
        case unknown:
            assert_never(unknown)


def _user_file(path: Path, before: Policy | None) -> UserFile:
    """The policy for this file. If ``before`` is the same file, its users stay until the file can be read."""
    old = before if isinstance(before, UserFile) and before.path == path else None
    policy = UserFile(path, None if old is None else old.users)
    policy.trouble = "" if old is None else old.trouble
    policy.load()
    return policy
