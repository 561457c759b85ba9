"""How many sessions a source and a user may have, those that were cut included, and who gives way to whom."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from relay.addresses import Address
from relay.config import LimitsSettings
from relay.emulator.turn.slow import TurnHost
from relay.gateway.sessions import parking
from relay.gateway.sessions.allocation import Seat, SessionAllocation
from relay.gateway.sessions.parking import Account, AccountKind, Parking, source_of
from relay.turn.credentials import StaticCredentials
from tests.support.benches.gateway import Relay, running_relay
from tests.support.peers.raw_session import RawSession
from tests.support.waiting import eventually

USERS = {"ann": "secret", "bob": "secret", "1999999999:cat": "secret", "1999999998:cat": "secret"}
HERE, THERE, ELSEWHERE = "127.0.0.1", "127.0.0.2", "127.0.0.3"


@contextlib.asynccontextmanager
async def relay_with(folder: Path, **limits: Any) -> AsyncIterator[Relay]:
    async with (
        TurnHost(Address("127.0.0.1", 0), StaticCredentials(USERS)) as host,
        running_relay(folder, host.address, limits=limits) as relay,
    ):
        yield relay
        await eventually(lambda: not relay.connections)
        await relay.gateway.stop()
        await eventually(lambda: not host.allocations, "allocations were left")
        assert not relay.gateway._sessions._parking._held
        assert not relay.gateway._sessions._parking._keys


@contextlib.asynccontextmanager
async def raw_session(relay: Relay, source: str = HERE) -> AsyncIterator[RawSession]:
    session = await RawSession.open(relay, source=source)
    try:
        yield session
    finally:
        session.abort()


async def ask_to_open(session: RawSession, user: str = "ann", password: str = "secret") -> dict[str, Any]:
    return await session.ask(type="open", username=user, password=password)


async def cut_one(relay: Relay, user: str = "ann", source: str = HERE, *, remain: int = 0) -> str:
    """Open a session and cut it; its token. Others ``remain``."""
    async with raw_session(relay, source) as session:
        token = (await ask_to_open(session, user))["token"]
        session.cut()
        await eventually(lambda: len(relay.gateway._sessions) == remain)
    return str(token)


async def comes_back(relay: Relay, token: str) -> bool:
    async with raw_session(relay, ELSEWHERE) as session:
        answer = await session.ask(type="resume", token=token)
        await session.say_goodbye()
        with contextlib.suppress(EOFError):
            await session.hear_close()
        return bool(answer["type"] == "resumed")


@pytest.mark.parametrize("bound", [{"sessions_per_source": 3}, {"sessions_per_user": 3}])
async def test_the_oldest_that_waits_gives_way(tmp_path: Path, bound: dict[str, int]) -> None:
    async with relay_with(tmp_path, **bound) as relay:
        tokens = [await cut_one(relay) for _ in range(5)]
        assert relay.gateway.flows.tally.parked == 3
        assert [await comes_back(relay, token) for token in tokens] == [False, False, True, True, True]


@pytest.mark.parametrize(
    ("bound", "text"),
    [
        (
            {"sessions_per_source": 2},
            "too many sessions of one source: expected at most 2 (limits.sessions_per_source)",
        ),
        ({"sessions_per_user": 2}, "too many sessions of one user: expected at most 2 (limits.sessions_per_user)"),
    ],
)
async def test_sessions_that_run_do_not_give_way(tmp_path: Path, bound: dict[str, int], text: str) -> None:
    async with relay_with(tmp_path, **bound) as relay, raw_session(relay) as one, raw_session(relay) as two:
        for session in (one, two):
            assert (await ask_to_open(session))["type"] == "opened"
        async with raw_session(relay) as three:
            refused = await ask_to_open(three)
            assert (refused["code"], refused["reason"]) == (486, text)
            assert await three.hear_close() == (1008, "not_entitled")
        await two.ask(type="close")
        await two.say_goodbye()
        await two.hear_close()
        await eventually(lambda: len(relay.gateway._sessions) == 1)
        async with raw_session(relay) as again:
            assert (await ask_to_open(again))["type"] == "opened"
            await again.say_goodbye()
        await one.say_goodbye()


async def test_sources_in_exempt_networks_have_no_bound(tmp_path: Path) -> None:
    async with (
        relay_with(tmp_path, sessions_per_source=1, exempt_networks=[f"{HERE}/32"]) as relay,
        raw_session(relay) as one,
        raw_session(relay) as two,
        raw_session(relay, THERE) as three,
        raw_session(relay, THERE) as four,
    ):
        for session in (one, two, three):
            assert (await ask_to_open(session))["type"] == "opened"
        assert (await ask_to_open(four))["code"] == 486
        for session in (one, two, three):
            await session.say_goodbye()


async def test_user_has_as_many_from_all_addresses_and_under_all_expiries(tmp_path: Path) -> None:
    async with (
        relay_with(tmp_path, sessions_per_user=1) as relay,
        raw_session(relay, HERE) as one,
        raw_session(relay, THERE) as two,
    ):
        assert (await ask_to_open(one, "1999999999:cat"))["type"] == "opened"
        assert (await ask_to_open(two, "1999999998:cat"))["code"] == 486
        await one.say_goodbye()


@pytest.mark.parametrize(("bound", "source"), [("sessions_per_user", THERE), ("sessions_per_source", HERE)])
async def test_name_that_the_upstream_has_not_proven_pushes_nobody_out(tmp_path: Path, bound: str, source: str) -> None:
    async with relay_with(tmp_path, **{bound: 1}) as relay:
        token = await cut_one(relay, "ann")
        for _ in range(3):
            async with raw_session(relay, source) as stranger:
                assert (await ask_to_open(stranger, "ann", "wrong"))["code"] == 401
        await eventually(lambda: not relay.connections)
        assert await comes_back(relay, token)


async def test_who_has_too_many_of_their_own_pushes_no_neighbour_out(tmp_path: Path) -> None:
    async with relay_with(tmp_path, sessions_per_source=2, sessions_per_user=1) as relay, raw_session(relay) as one:
        assert (await ask_to_open(one, "bob"))["type"] == "opened"
        token = await cut_one(relay, "ann", remain=1)
        async with raw_session(relay) as another:
            assert (await ask_to_open(another, "bob"))["code"] == 486
        assert await comes_back(relay, token)
        await one.say_goodbye()


async def test_one_source_cannot_push_out_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parking, "MAX_PARKED", 4)
    async with relay_with(tmp_path) as relay:
        token = await cut_one(relay, "bob", THERE)
        tokens = [await cut_one(relay, "ann", HERE) for _ in range(6)]
        assert relay.gateway.flows.tally.parked == 4
        assert [await comes_back(relay, one) for one in tokens] == [False] * 3 + [True] * 3
        assert await comes_back(relay, token)


async def test_session_that_came_back_counts_once(tmp_path: Path) -> None:
    async with relay_with(tmp_path, sessions_per_source=1, sessions_per_user=1) as relay:
        token = await cut_one(relay)
        for _ in range(3):
            async with raw_session(relay) as session:
                resumed = await session.ask(type="resume", token=token)
                assert resumed["type"] == "resumed"
                token = resumed["token"]
                session.cut()
                await eventually(lambda: not len(relay.gateway._sessions))


# Parking itself


def allocation() -> SessionAllocation:
    return cast("SessionAllocation", type("Made", (), {"seat": Seat()})())


async def test_floor_behind_one_web_proxy() -> None:
    """300 desks with one address and one user name, each with a session: the proxy restarts, and all come back."""
    given_up: list[object] = []
    parked = Parking(lambda one, _: given_up.append(one))
    limits = LimitsSettings()
    parked.bounds = {AccountKind.SOURCE: limits.sessions_per_source, AccountKind.USER: limits.sessions_per_user}
    desks = [allocation() for _ in range(300)]
    for number, desk in enumerate(desks):
        assert parked.hold(desk.seat, source_of("192.0.2.7"))
        assert parked.hold(desk.seat, Account(AccountKind.USER, "floor"))
        parked.park(number.to_bytes(2), desk, None, 10.0)
    assert all(parked.take(number.to_bytes(2)) is not None for number in range(300))
    assert (given_up, len(parked)) == ([], 0)
    # Where each desk has a name of its own there may be four times as many.
    for number in range(1200 - 300):
        one = allocation()
        assert parked.hold(one.seat, source_of("192.0.2.7"))
        assert parked.hold(one.seat, Account(AccountKind.USER, f"desk {number}"))
    assert not parked.hold(allocation().seat, source_of("192.0.2.7"))
    assert parked.hold(allocation().seat, source_of("192.0.2.8"))


def test_sources() -> None:
    assert source_of("192.0.2.7").name == "192.0.2.7"
    assert source_of("2001:db8::7") == source_of("2001:db8::ffff:0:0:8") != source_of("2001:db8:0:1::7")
    assert source_of("fe80::1%lo").name == "fe80::/64"
