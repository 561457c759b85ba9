"""What the data plane is told about an Allocate, with a plane that only writes down what it is told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from relay import config
from relay.addresses import Address
from relay.config import Health as HealthSettings
from relay.config import UpstreamServer
from relay.gateway.entitlement import admission as module
from relay.gateway.entitlement.admission import Admission
from relay.gateway.entitlement.verdicts import Entitlement, Outcome
from relay.gateway.flows import Wanted
from relay.gateway.upstreams import UpstreamState
from relay.plane.api import AllocateRequested, Carrier, CloseReason, ConnectionId, Plane
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
from tests.support.gateway import eventually
from tests.support.user_service import user_service

CLIENT = "192.0.2.1"
TRANSACTION = b"transaction!"
ONE, TWO = ConnectionId(1), ConnectionId(2)
STATIC = {"policy": "static", "users": [{"user": "ann", "calls": 1}, {"user": "cid", "regions": ["euc1"]}]}


class WrittenDown:
    """A plane: what it was told, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def admit(self, connection: ConnectionId) -> None:
        self.told.append(("admit", connection))

    def refuse(self, connection: ConnectionId, response: bytes) -> None:
        self.told.append(("refuse", connection, parse_message(response)))

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

    def __init__(self, settings: config.Entitlement) -> None:
        self.plane = WrittenDown()
        self.entitlement = Entitlement(settings, frozenset, lambda _: None)
        self.admission = Admission(cast("Plane", self.plane), self.entitlement)

    def attach(self, connection: ConnectionId = ONE, region: str = "use1", secret: str | None = None) -> None:
        keys: dict[str, Any] = {} if secret is None else {"secret": secret}
        server = UpstreamServer(name="stun1", region=region, address=Address("192.0.2.7", 3478), **keys)
        state = UpstreamState(server, HealthSettings())
        self.admission.on_begun(Wanted(connection, "relay.test", Carrier.TURN, client=CLIENT), state)

    def ask(self, username: str | bytes, connection: ConnectionId = ONE, **given: Any) -> None:
        self.admission.on_requested(AllocateRequested(connection, allocate(username, **given)))


@contextlib.asynccontextmanager
async def bench(**keys: Any) -> AsyncIterator[Bench]:
    opened = Bench(config.Entitlement(**keys))
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


async def test_who_may_is_admitted_at_once() -> None:
    async with bench(**STATIC) as it:
        it.attach()
        it.ask("1795358992:ann")
        assert it.plane.told == [("admit", ONE)]
        assert it.entitlement.counts[Outcome.ADMITTED] == 1


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
        assert it.entitlement.counts[Outcome.BAD_REQUEST] == 1


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
        assert it.entitlement.counts[Outcome.NOT_ENTITLED] == 1


async def test_calls_at_once_until_one_ends() -> None:
    async with bench(**STATIC) as it:
        it.attach()
        it.attach(TWO)
        it.ask("1:ann")
        it.ask("2:ann", TWO)
        [_, (_, _, refused)] = it.plane.told
        assert refused.error == ErrorCode(486, "Allocation Quota Reached: too many calls at once")
        it.admission.on_closed(ONE)
        it.admission.on_requested(AllocateRequested(TWO, allocate("2:ann", transaction=b"another one!")))
        assert it.plane.told[-1] == ("admit", TWO)
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
        it.ask("ann")
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
