"""What the data plane is told about an Allocate, with a plane that only writes down what it is told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from relay import config
from relay.addresses import Address
from relay.config import HealthSettings, UpstreamServer
from relay.gateway.calls.ids import CallIds
from relay.gateway.entitlement import admission as module
from relay.gateway.entitlement.admission import TurnAdmission
from relay.gateway.entitlement.verdicts import Entitlement, VerdictOutcome
from relay.gateway.routing.flows import Wanted
from relay.gateway.routing.upstreams import UpstreamState
from relay.plane.api import (
    AllocateGranted,
    AllocateRequested,
    AllocationNamed,
    Carrier,
    CloseReason,
    ConnectionId,
    Plane,
)
from relay.turn.credentials import long_term_key, rest_password
from relay.wire.stun import (
    AttributeType,
    ErrorCode,
    Message,
    MessageClass,
    Method,
    build_message,
    parse_message,
)
from tests.support.peers.user_service import user_service
from tests.support.waiting import eventually

CLIENT = "192.0.2.1"
TRANSACTION = b"transaction!"
ONE, TWO = ConnectionId(1), ConnectionId(2)
STATIC = {"policy": "static", "users": [{"user": "ann", "calls": 1}, {"user": "cid", "regions": ["euc1"]}]}


class WrittenDown:
    """A plane: what it was told, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.shared: list[tuple[ConnectionId, str]] = []
        # Connections whose allocation has ended.
        self.ended: set[Any] = set()

    def admit(self, connection: ConnectionId) -> None:
        self.told.append(("admit", connection))

    def refuse(self, connection: ConnectionId, response: bytes) -> None:
        self.told.append(("refuse", connection, parse_message(response)))

    def answer(self, connection: ConnectionId, response: bytes) -> None:
        self.told.append(("answer", connection, parse_message(response)))

    def share(self, connection: ConnectionId, user: str) -> None:
        self.shared.append((connection, user))

    def close(self, connection: ConnectionId, reason: CloseReason) -> None:
        self.told.append(("close", connection, reason))

    @property
    def refusal(self) -> Message:
        """The only thing that it was told."""
        [(verb, _, message)] = self.told
        assert verb == "refuse"
        return cast("Message", message)


class Bench:
    """A plane, and what decides for it."""

    def __init__(self, settings: config.EntitlementSettings) -> None:
        self.plane = WrittenDown()
        self.entitlement = Entitlement(settings, lambda holder: holder not in self.plane.ended)
        self.ids = CallIds("test")
        self.admission = TurnAdmission(cast("Plane", self.plane), self.entitlement, self.ids)

    def attach(self, connection: ConnectionId = ONE, region: str = "use1", secret: str | None = None) -> None:
        keys: dict[str, Any] = {} if secret is None else {"secret": secret}
        server = UpstreamServer(name="stun1", region=region, address=Address("192.0.2.7", 3478), **keys)
        state = UpstreamState(server, HealthSettings())
        self.admission.on_begun(Wanted(connection, "relay.test", Carrier.TURN, client=CLIENT), state)

    def ask(self, username: str | bytes, connection: ConnectionId = ONE, **given: Any) -> None:
        self.admission.on_requested(AllocateRequested(connection, allocate(username, **given)))

    def grant(self, connection: ConnectionId = ONE, transaction: bytes = TRANSACTION) -> None:
        """The upstream grants what was asked for."""
        granted = build_message(Method.ALLOCATE, MessageClass.SUCCESS, transaction)
        self.admission.on_granted(AllocateGranted(connection, granted))

    def call(self, username: str, connection: ConnectionId = ONE, transaction: bytes = TRANSACTION) -> Message:
        """An Allocate that goes through to the upstream, which grants it: what the client is answered."""
        self.ask(username, connection, transaction=transaction)
        assert self.plane.told.pop() == ("admit", connection)
        self.grant(connection, transaction)
        answered = [told for told in self.plane.told if told[0] == "answer"]
        return cast("Message", answered[-1][2])


@contextlib.asynccontextmanager
async def bench(**keys: Any) -> AsyncIterator[Bench]:
    opened = Bench(config.EntitlementSettings(**keys))
    opened.entitlement.start()
    try:
        yield opened
    finally:
        opened.admission.stop()
        await opened.entitlement.stop()


def allocate(
    username: str | bytes | None, *, key: bytes | None = None, transaction: bytes = TRANSACTION, **given: Any
) -> bytes:
    name = username.encode() if isinstance(username, str) else username
    attributes = [] if name is None else [(AttributeType.USERNAME, name), (AttributeType.REALM, b"firm.example")]
    return build_message(Method.ALLOCATE, MessageClass.REQUEST, transaction, attributes, integrity_key=key, **given)


async def test_a_refusal_says_which_connection_of_the_log_it_is() -> None:
    with capture_logs() as lines:
        async with bench(**STATIC) as it:
            it.attach()
            it.ask("bob")
            told = it.plane.refusal.text(AttributeType.SOFTWARE)
    [line] = [line for line in lines if line["event"] == "not entitled"]
    assert (line["connection"], told) == (it.ids.id_of(ONE), f"cloud9-relay {it.ids.id_of(ONE)}")


async def test_a_user_who_is_proven_shares_what_one_user_may_carry() -> None:
    async with bench(policy="static", users=[{"user": "*"}]) as it:
        it.attach(ONE)
        it.attach(TWO)
        it.ask("1795358992:ann")
        assert it.plane.shared == []  # anybody can name her
        it.grant()
        it.call("ann", TWO)
        assert it.plane.shared == [(ONE, "ann"), (TWO, "ann")]


@pytest.mark.parametrize(
    ("name", "user"),
    [("ann", "ann"), ("1795358992:ann", "ann"), ("ann\0two", "ann"), ("\0", ""), ("a\u0308nn", "\u00e4nn")],
)
async def test_users_share_also_where_nobody_is_asked(name: str, user: str) -> None:
    async with bench() as it:
        it.admission.on_named(AllocationNamed(ONE, name))
        assert it.plane.shared == ([(ONE, user)] if user else [])


@pytest.mark.parametrize("name", [b"ann\0", b"ann\0two", b"ann\n", b"ann\x7f", b"ann\xc2\x85", b"a" * 509])
async def test_names_that_servers_may_shorten_are_refused(name: bytes) -> None:
    """To them one user would have any number of names."""
    async with bench(policy="static", users=[{"user": "*", "calls": 1}]) as it:
        it.attach()
        it.ask(name)
        assert it.plane.refusal.error == ErrorCode(400, "Bad Request: expected an Allocate with a USERNAME")


async def test_a_call_that_comes_back_needs_a_place() -> None:
    async with bench(**STATIC) as it:
        it.attach(ONE)
        it.attach(TWO)
        refreshed = build_message(Method.REFRESH, MessageClass.SUCCESS, b"refreshed...")
        assert it.call("ann", ONE).message_class is MessageClass.SUCCESS
        # It was given up, and the place is still there.
        it.plane.ended = {ONE}
        it.plane.told.clear()
        it.admission.on_granted(AllocateGranted(ONE, refreshed))
        assert it.plane.told == [("answer", ONE, parse_message(refreshed))]
        assert it.call("ann", TWO).message_class is MessageClass.SUCCESS
        it.plane.ended.clear()
        it.plane.told.clear()
        it.admission.on_granted(AllocateGranted(ONE, refreshed))
        [(_, _, refusal), closed] = it.plane.told
        assert (refusal.method, refusal.message_class) == (Method.REFRESH, MessageClass.ERROR)
        assert (refusal.error.code, refusal.transaction_id) == (486, b"refreshed...")
        assert closed == ("close", ONE, CloseReason.NOT_ENTITLED)
        assert it.entitlement.calls == 1


async def test_an_allocate_that_is_sent_again_counts_once() -> None:
    """Over CONNECT-UDP a client sends it again when the answer is slow, and the upstream answers both."""
    async with bench(**STATIC) as it:
        it.attach()
        it.call("ann")
        it.grant()
        assert [told[0] for told in it.plane.told] == ["answer", "answer"]
        assert (it.entitlement.counts[VerdictOutcome.ADMITTED], it.entitlement.calls) == (1, 1)


async def test_who_may_is_admitted_at_once() -> None:
    async with bench(**STATIC) as it:
        it.attach()
        it.ask("1795358992:ann")
        assert it.plane.told == [("admit", ONE)]
        # It may be anyone: the upstream has not confirmed the user yet.
        assert (it.entitlement.counts[VerdictOutcome.ADMITTED], it.entitlement.calls) == (0, 0)
        it.grant()
        [_, (verb, connection, answered)] = it.plane.told
        assert (verb, connection, answered.message_class) == ("answer", ONE, MessageClass.SUCCESS)
        assert (it.entitlement.counts[VerdictOutcome.ADMITTED], it.entitlement.calls) == (1, 1)


@pytest.mark.parametrize(
    ("username", "error"),
    [
        ("bob", ErrorCode(403, "Forbidden: not entitled to voice through this relay")),
        ("cid", ErrorCode(403, "Forbidden: not entitled to this region")),
        (b"\xff", ErrorCode(400, "Bad Request: expected an Allocate with a USERNAME")),
        (b"", ErrorCode(400, "Bad Request: expected an Allocate with a USERNAME")),
    ],
)
async def test_who_may_not_is_told_why(username: str | bytes, error: ErrorCode) -> None:
    async with bench(**STATIC) as it:
        it.attach()
        it.ask(username)
        refusal = it.plane.refusal
        assert (refusal.method, refusal.message_class) == (Method.ALLOCATE, MessageClass.ERROR)
        assert (refusal.transaction_id, refusal.error) == (TRANSACTION, error)
        # Nobody can sign it.
        assert refusal.integrity_offsets == {}


@pytest.mark.parametrize("request_bytes", [b"\x00\x03\x00\x01\x21\x12\xa4\x42" + TRANSACTION, allocate(None)])
async def test_a_request_that_names_nobody(request_bytes: bytes) -> None:
    async with bench(policy="static", users=[{"user": "*"}]) as it:
        it.attach()
        it.admission.on_requested(AllocateRequested(ONE, request_bytes))
        assert it.plane.refusal.transaction_id == TRANSACTION
        assert it.entitlement.counts[VerdictOutcome.BAD_REQUEST] == 1


async def test_who_is_refused_is_closed_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REFUSED_CLOSE_S", 0.01)
    async with bench(**STATIC) as it:
        it.attach()
        it.ask("bob")
        await eventually(lambda: len(it.plane.told) == 2)
        assert it.plane.told[1] == ("close", ONE, CloseReason.NOT_ENTITLED)


async def test_who_comes_with_another_name_in_time_may_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REFUSED_CLOSE_S", 0.05)
    async with bench(**STATIC) as it:
        it.attach()
        it.attach(TWO)
        it.ask("bob")
        it.ask("bob", TWO)
        it.ask("ann", transaction=b"another one!")
        # The other one's end shows that the time has passed.
        await eventually(lambda: ("close", TWO, CloseReason.NOT_ENTITLED) in it.plane.told)
        assert ("close", ONE, CloseReason.NOT_ENTITLED) not in it.plane.told
        assert ("admit", ONE) in it.plane.told


async def test_a_request_that_comes_again_is_answered_again_and_counted_once() -> None:
    async with bench(**STATIC) as it:
        it.attach()
        it.ask("bob")
        it.ask("bob")
        assert it.plane.told[0] == it.plane.told[1]
        assert it.entitlement.counts[VerdictOutcome.NOT_ENTITLED] == 1


async def test_calls_at_once_until_one_ends() -> None:
    async with bench(**STATIC) as it:
        it.attach()
        it.attach(TWO)
        assert it.call("1:ann").message_class is MessageClass.SUCCESS
        it.ask("2:ann", TWO)
        [_, (_, _, refused)] = it.plane.told
        assert refused.error == ErrorCode(486, "Allocation Quota Reached: too many calls at once")
        it.admission.on_closed(ONE)
        it.admission.on_requested(AllocateRequested(TWO, allocate("2:ann", transaction=b"another one!")))
        assert it.plane.told[-1] == ("admit", TWO)
        it.grant(TWO, b"another one!")
        assert it.entitlement.calls == 1
        it.admission.on_closed(TWO)
        assert it.entitlement.calls == 0


@pytest.mark.parametrize("kind", [AttributeType.MESSAGE_INTEGRITY, AttributeType.MESSAGE_INTEGRITY_SHA256])
async def test_a_refusal_is_signed_where_the_secret_is_known(kind: int) -> None:
    key = long_term_key("1:bob", "firm.example", rest_password("s3cret", "1:bob"))
    async with bench(**STATIC) as it:
        it.attach(secret="s3cret")
        it.ask("1:bob", key=key, integrity_kind=kind)
        assert it.plane.refusal.has_integrity(key, kind)


async def test_nothing_is_signed_for_who_has_not_the_password() -> None:
    async with bench(**STATIC) as it:
        it.attach(secret="s3cret")
        it.ask("1:bob", key=b"a guess")
        assert it.plane.refusal.integrity_offsets == {}


async def test_a_flow_that_is_not_known_is_let_be() -> None:
    async with bench(**STATIC) as it:
        it.ask("ann")
        it.attach()
        it.admission.on_closed(ONE)
        it.ask("ann")
        assert (it.plane.told, it.entitlement.calls) == ([], 0)


# Whose place it is

OTHER = b"another one!"
TOO_MANY = ErrorCode(486, "Allocation Quota Reached: too many calls at once")
PATTERN = {"policy": "static", "users": [{"user": "*", "calls": 1}]}


async def test_who_only_asks_keeps_nobody_out() -> None:
    """With a wrong password, as often as they like: the upstream answers 401, and nothing was theirs."""
    async with bench(**STATIC) as it:
        for number in range(100):
            stranger = ConnectionId(10 + number)
            it.attach(stranger)
            it.ask("ann", stranger)
            assert it.plane.told.pop() == ("admit", stranger)
        it.attach()
        assert it.call("ann").message_class is MessageClass.SUCCESS
        assert it.entitlement.calls == 1


async def test_an_allocate_on_a_running_call_that_names_another_user_changes_nothing() -> None:
    async with bench(**PATTERN) as it:
        it.attach()
        it.attach(TWO)
        it.call("ann")
        # The upstream answers 437 or 441.
        it.ask("bob", transaction=OTHER)
        assert it.plane.told[-1][0] == "admit"
        it.ask("ann", TWO)
        assert it.plane.told[-1][2].error == TOO_MANY
        three = ConnectionId(3)
        it.attach(three)
        assert it.call("bob", three).message_class is MessageClass.SUCCESS
        assert it.entitlement.calls == 2


async def test_of_two_allocates_at_once_the_second_that_succeeds_is_one_too_many() -> None:
    async with bench(**STATIC) as it:
        for connection in (ONE, TWO):
            it.attach(connection)
            it.ask("ann", connection)
        assert it.plane.told == [("admit", ONE), ("admit", TWO)]
        it.plane.told.clear()
        it.grant(TWO)
        it.grant(ONE)
        [(_, _, granted), (verb, connection, refused), end] = it.plane.told
        assert granted.message_class is MessageClass.SUCCESS
        assert (verb, connection, refused.error, refused.transaction_id) == ("answer", ONE, TOO_MANY, TRANSACTION)
        # At once: the upstream would serve it, and the plane leaves the allocation to be released.
        assert end == ("close", ONE, CloseReason.NOT_ENTITLED)
        assert (
            it.entitlement.counts[VerdictOutcome.ADMITTED],
            it.entitlement.counts[VerdictOutcome.TOO_MANY_CALLS],
        ) == (1, 1)
        it.admission.on_closed(ONE)
        assert it.entitlement.calls == 1


async def test_a_refusal_in_place_of_a_grant_is_signed_where_the_secret_is_known() -> None:
    key = long_term_key("1:ann", "firm.example", rest_password("s3cret", "1:ann"))
    async with bench(**STATIC) as it:
        for connection in (ONE, TWO):
            it.attach(connection, secret="s3cret")
            it.ask("1:ann", connection, key=key)
        it.grant(ONE)
        it.grant(TWO)
        [refused] = [told[2] for told in it.plane.told if told[0] == "answer" and told[1] == TWO]
        assert refused.has_integrity(key, AttributeType.MESSAGE_INTEGRITY)


async def test_invented_names_give_no_calls() -> None:
    """A name is worth something once the upstream has granted it, and then it is the one that was granted."""
    async with bench(**PATTERN) as it:
        it.attach()
        it.attach(TWO)
        assert it.call("ann").message_class is MessageClass.SUCCESS
        it.ask("ann", TWO)
        assert it.plane.told[-1][2].error == TOO_MANY
        # Two names for one transaction: the upstream grants the first, and we would count the second.
        three = ConnectionId(3)
        it.attach(three)
        it.ask("cid", three)
        it.ask("dan", three)
        assert it.plane.told[-1][2].error == ErrorCode(400, "Bad Request: expected an Allocate with a USERNAME")
        it.grant(three)
        assert it.entitlement._places.count("cid") == 1
        assert it.entitlement._places.count("dan") == 0


async def test_a_name_cannot_push_out_the_one_that_was_asked_for_before() -> None:
    async with bench(**PATTERN) as it:
        it.attach()
        it.ask("ann")
        for number in range(2 * module.MAX_ASKED):
            it.ask(f"name{number}", transaction=number.to_bytes(12))
        verbs = [told[0] for told in it.plane.told]
        assert verbs == ["admit"] * module.MAX_ASKED + ["refuse"] * (module.MAX_ASKED + 1)
        it.ask("bob")
        assert it.plane.told[-1][0] == "refuse"
        it.grant()
        assert (it.entitlement._places.count("ann"), it.entitlement.calls) == (1, 1)


async def test_what_was_asked_for_long_ago_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ASKED_S", 0.0)
    async with bench(**PATTERN) as it:
        it.attach()
        for number in range(3 * module.MAX_ASKED):
            it.ask("ann", transaction=number.to_bytes(12))
        assert {told[0] for told in it.plane.told} == {"admit"}
        assert len(it.admission._flows[ONE].asked) == 1


async def test_an_allocation_cannot_be_taken_over_from_another_connection() -> None:
    """Its place would end with that connection, and the call would go on without one."""
    async with bench(**PATTERN) as it:
        it.attach()
        attributes = [(AttributeType.USERNAME, b"ann"), (AttributeType.MOBILITY_TICKET, b"ticket")]
        request = build_message(Method.REFRESH, MessageClass.REQUEST, TRANSACTION, attributes)
        it.admission.on_requested(AllocateRequested(ONE, request))
        refusal = it.plane.refusal
        assert (refusal.method, refusal.transaction_id) == (Method.REFRESH, TRANSACTION)
        assert refusal.error == ErrorCode(405, "Mobility Forbidden: an allocation stays on its connection here")


async def test_a_grant_for_nobody_is_refused() -> None:
    """An upstream that wants no credentials would let everybody in, past the list."""
    async with bench(**PATTERN) as it:
        it.attach()
        it.grant()
        told, end = it.plane.told
        assert (told[0], told[2].error.code, end) == ("answer", 400, ("close", ONE, CloseReason.NOT_ENTITLED))
        assert it.entitlement.calls == 0


async def test_a_call_that_was_released_frees_its_place_and_takes_one_again() -> None:
    async with bench(**STATIC) as it:
        it.attach()
        it.attach(TWO)
        it.call("ann")
        it.plane.ended.add(ONE)  # Refresh with lifetime 0, or the lifetime has passed
        assert it.call("ann", TWO).message_class is MessageClass.SUCCESS
        it.ask("ann", transaction=OTHER)
        assert it.plane.told[-1][2].error == TOO_MANY
        it.plane.ended = {TWO}
        assert it.call("ann", transaction=b"one more one").message_class is MessageClass.SUCCESS
        assert it.entitlement.calls == 1


async def test_a_grant_that_comes_twice_is_one_call() -> None:
    """Over CONNECT-UDP the client sends its request again, and the upstream its answer."""
    async with bench(**STATIC) as it:
        it.attach()
        it.call("ann")
        assert it.call("ann").message_class is MessageClass.SUCCESS
        assert it.entitlement.calls == 1


async def test_a_call_goes_over_to_the_user_whom_the_upstream_grants_it() -> None:
    async with bench(**PATTERN) as it:
        it.attach()
        it.call("ann")
        it.call("bob", transaction=OTHER)
        assert (it.entitlement._places.count("ann"), it.entitlement._places.count("bob")) == (0, 1)


# A policy that takes its time


async def test_the_answer_of_a_service_is_waited_for() -> None:
    async with user_service() as service, bench(policy="http", url=service.url) as it:
        it.attach()
        it.attach(TWO)
        it.ask("ann")
        it.ask("ann", TWO)
        assert it.plane.told == []
        await eventually(lambda: len(it.plane.told) == 2)
        assert sorted(it.plane.told) == [("admit", ONE), ("admit", TWO)]
        assert dict(service.asked[0].query) == {"user": "ann", "region": "use1", "client": CLIENT}
        assert len(service.asked) == 1
        # Now it is known.
        it.ask("ann", transaction=OTHER)
        assert len(it.plane.told) == 3


async def test_a_connection_that_ends_while_its_policy_is_asked_gets_no_place() -> None:
    async with user_service() as service, bench(policy="http", url=service.url) as it:
        it.attach()
        service.hang()
        it.ask("ann")
        await eventually(lambda: service.asked)
        it.admission.on_closed(ONE)
        service.release()
        await it.entitlement.stop()
        assert (it.plane.told, it.entitlement.calls) == ([], 0)


@pytest.mark.parametrize("fail", ["closed", "open"])
async def test_a_service_that_says_nothing(fail: str) -> None:
    async with user_service() as service, bench(policy="http", url=service.url, fail=fail, timeout_s=0.05) as it:
        it.attach()
        service.hang()
        it.ask("ann")
        await eventually(lambda: it.plane.told)
        if fail == "open":
            assert it.plane.told == [("admit", ONE)]
        else:
            assert it.plane.refusal.error == ErrorCode(403, "Forbidden: entitlement cannot be checked now")


async def test_stopping_cancels_what_was_to_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REFUSED_CLOSE_S", 0.01)
    async with bench(**STATIC) as it:
        it.attach()
        it.ask("bob")
    passed = asyncio.Event()
    asyncio.get_running_loop().call_later(0.05, passed.set)
    await passed.wait()
    assert len(it.plane.told) == 1
