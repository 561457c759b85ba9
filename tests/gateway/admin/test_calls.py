"""Calls that have ended, over the API: found by user, address and time, told as running ones are, and explained."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from relay.addresses import Address
from relay.config import QualitySettings
from relay.gateway.admin.queries import BadQuery, search_of, zone_of
from relay.gateway.calls.calls import EndedCall
from relay.gateway.calls.database import Search
from relay.gateway.calls.explain import zone_name
from relay.gateway.calls.store import CallStore, Kept
from relay.plane.api import CloseReason
from tests.support.benches.made_up import MadeUpRelay
from tests.support.waiting import eventually


async def get(address: Address, path: str) -> tuple[int, Any]:
    url = URL(f"http://{address}{path}", encoded=True)
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        assert response.headers["Cache-Control"] == "no-store"
        return response.status, await response.json()


@contextlib.asynccontextmanager
async def kept_in(folder: Path) -> AsyncIterator[CallStore]:
    store = CallStore(Kept.of(QualitySettings(), folder))
    store.start()
    try:
        yield store
    finally:
        await store.stop()


async def with_calls(store: CallStore) -> MadeUpRelay:
    """A bad call of a.keller, a good one of Mei, a flow without voice, and one that still runs."""
    relay = MadeUpRelay(store)
    bad = relay.call(1, username="A.Keller")
    good = relay.call(2, username="Mei", client=Address("2001:db8::7", 4711))
    silent, _ = relay.call(3, username="quiet"), relay.call(4, username="a.keller")
    for _ in range(3):
        for made in relay.flows:
            if made is not silent:
                made.talk(lost=60 if made is bad else 0)
        await relay.calls.look()
    relay.end(bad, CloseReason.CLIENT_LOST)
    relay.end(good)
    relay.end(silent, CloseReason.NO_ALLOCATION)
    await eventually(lambda: store.written == 3)
    return relay


def ids(answer: Any) -> list[str]:
    return [call["id"] for call in answer["calls"]]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", ["test-3", "test-2", "test-1"]),
        ("?user=KELLER", ["test-1"]),
        ("?user=%25", []),
        ("?address=10.1.2.3", ["test-3", "test-1"]),
        ("?address=[2001:DB8:0::7]", ["test-2"]),
        ("?from=2020-01-01T00:00:00Z&to=2020-01-02T00:00:00Z", []),
        ("?from=1577836800", ["test-3", "test-2", "test-1"]),
        ("?to=1577836800.5", []),
        ("?limit=0", []),
        ("?user=&address=&from=&to=&before=", ["test-3", "test-2", "test-1"]),
    ],
)
async def test_search(tmp_path: Path, query: str, expected: list[str]) -> None:
    async with kept_in(tmp_path) as store:
        relay = await with_calls(store)
        async with relay.served() as address:
            status, answer = await get(address, f"/api/calls{query}")
    assert (status, ids(answer), answer["next"]) == (200, expected, None)


async def test_a_call_is_found_by_any_moment_of_it_and_by_no_other(tmp_path: Path) -> None:
    async with kept_in(tmp_path) as store:
        relay = await with_calls(store)
        [bad] = [one for one in relay.calls.ended if one.id == "test-1"]
        async with relay.served() as address:
            for moment, expected in (
                (bad.call.started_at - 1, []),
                (bad.call.started_at + 0.01, ["test-1"]),
                (bad.ended_at - 0.01, ["test-1"]),
                (bad.ended_at + 30, []),
            ):
                _, answer = await get(address, f"/api/calls?user=keller&from={moment:.3f}&to={moment:.3f}")
                assert ids(answer) == expected


async def test_pages(tmp_path: Path) -> None:
    async with kept_in(tmp_path) as store:
        relay = await with_calls(store)
        async with relay.served() as address:
            _, first = await get(address, "/api/calls?limit=2")
            _, second = await get(address, f"/api/calls?limit=2&before={first['next']}")
    assert (ids(first), first["next"], ids(second), second["next"]) == (
        ["test-3", "test-2"],
        "test-2",
        ["test-1"],
        None,
    )


async def test_a_call_is_told_alike_while_it_runs_after_its_end_and_after_a_restart(tmp_path: Path) -> None:
    async with kept_in(tmp_path) as store:
        relay = await with_calls(store)
        async with relay.served() as address:
            _, running = await get(address, "/api/calls/test-4")
            _, recent = await get(address, "/api/calls/TEST-i")
            _, silent = await get(address, "/api/calls/test-3")
    async with kept_in(tmp_path) as store:
        again = MadeUpRelay(store)
        async with again.served() as address:
            _, found = await get(address, "/api/calls")
            assert ids(found) == ["test-3", "test-2", "test-1"]
            status, stored = await get(address, "/api/calls/TEST-i")
            assert await get(address, "/api/flows/test-1") == (404, {"error": "no such flow"})
            assert (await get(address, "/api/calls/test-4"))[0] == 404
    assert status == 200
    assert set(running) == set(recent) == set(stored) == set(silent)
    # Numbers of 32 bits: of a figure such as 4.41 nothing is lost.
    assert stored == recent
    assert len(stored["windows"]["at"]) == 4
    assert (stored["ended"]["reason"], running["ended"]) == ("client_lost", None)
    assert (silent["windows"]["at"], silent["whole_call"]["uplink"]["mos_min"]) == ([], None)
    assert running["started_at"].endswith("Z")


async def test_rows_are_those_of_the_calls_that_ended_badly(tmp_path: Path) -> None:
    async with kept_in(tmp_path) as store:
        relay = await with_calls(store)
        async with relay.served() as address:
            _, found = await get(address, "/api/calls?user=keller")
            _, summary = await get(address, "/api/summary")
    assert found["calls"] == summary["ended_badly"]
    assert summary["kept"] == {"written": 3, "lost": 0, "trouble": ""}


async def test_an_explanation(tmp_path: Path) -> None:
    async with kept_in(tmp_path) as store:
        relay = await with_calls(store)
        ended: EndedCall = relay.calls.ended[0]
        async with relay.served() as address:
            status, told = await get(address, "/api/calls/test-1/explanation?utc_offset_minutes=330")
            _, here = await get(address, "/api/calls/test-1/explanation")
            assert await get(address, "/api/calls/test-77/explanation") == (404, {"error": "no such call"})
    assert (status, told["id"], told["times"]) == (200, "test-1", "UTC+05:30")
    said = {one["rule"]: one["text"] for one in told["sentences"]}
    began = datetime.fromtimestamp(ended.call.started_at + 5.5 * 3600, UTC)
    assert f"It began at {began:%H:%M:%S} on " in said["when"]
    assert "lost on the upstream's side" in said["downlink_lost"]
    local = datetime.fromtimestamp(ended.call.started_at).astimezone().tzinfo
    assert local is not None
    assert here["times"] == zone_name(local, ended.call.started_at)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/api/calls?limit=x", "limit: expected a number from 0 to 1000"),
        ("/api/calls?address=10.1", "address: expected an IP address such as 10.1.2.3 or 2001:db8::7, without a port"),
        ("/api/calls?address=10.1.2.3:443", "address: expected an IP address"),
        ("/api/calls?from=10:32", "from: expected a time with its zone, such as 2026-11-28T10:32:00Z, or Unix seconds"),
        ("/api/calls?to=2026-11-28T10:32:00", "to: expected a time with its zone"),
        ("/api/calls?to=2026-02-30T00:00:00Z", "to: expected a time with its zone"),
        ("/api/calls?from=1e9", "from: expected a time with its zone"),
        ("/api/calls?from=%D9%A3", "from: expected a time with its zone"),
        ("/api/calls?from=2&to=1", "from: expected a time that is not after to"),
        ("/api/calls/test-1/explanation?utc_offset_minutes=2000", "utc_offset_minutes: expected a number from -1439"),
        ("/api/calls/test-1/explanation?utc_offset_minutes=%2B60", "utc_offset_minutes: expected a number"),
    ],
)
async def test_bad_values_are_said_in_words(tmp_path: Path, path: str, said: str) -> None:
    async with kept_in(tmp_path) as store:
        relay = await with_calls(store)
        async with relay.served() as address:
            status, answer = await get(address, path)
    assert status == 400
    assert answer["error"].startswith(said)


async def test_calls_that_are_not_kept(tmp_path: Path) -> None:
    relay = MadeUpRelay()
    made = relay.call(1)
    made.talk()
    relay.end(made)
    async with relay.served() as address:
        status, answer = await get(address, "/api/calls")
        assert (status, answer["error"]) == (503, "calls are not kept: see quality.calls in the relay's configuration")
        # What ended a moment ago is known all the same.
        assert (await get(address, "/api/calls/test-1"))[0] == 200
        assert (await get(address, "/api/calls/test-2"))[0] == 404


async def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "calls.sqlite3").mkdir()
    async with kept_in(tmp_path) as store, MadeUpRelay(store).served() as address:
        for path in ("/api/calls", "/api/calls/test-2", "/api/calls/test-2/explanation"):
            status, answer = await get(address, path)
            assert status == 503
            assert "calls.sqlite3 cannot be read" in answer["error"]
        await eventually(lambda: store.trouble)
        assert (await get(address, "/api/summary"))[1]["kept"]["trouble"] == "Is a directory"


# Values


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("1795429800", 1_795_429_800),
        ("1795429800.25", 1_795_429_800.25),
        ("2026-11-23T10:30:00Z", 1_795_429_800),
        ("2026-11-23T11:30:00+01:00", 1_795_429_800),
        # As it comes if nobody has encoded the plus sign.
        ("2026-11-23T11:30:00 01:00", 1_795_429_800),
        ("2026-11-23 10:30:00Z", 1_795_429_800),
        ("", None),
    ],
)
def test_times(given: str, seconds: float | None) -> None:
    assert search_of({"from": given}) == Search(since=seconds)


def test_long_values_are_cut() -> None:
    assert len(search_of({"user": "x" * 10_000}).user) == 200
    assert search_of({"limit": "999999999"}).limit == 1000


def test_zones() -> None:
    assert zone_name(zone_of({"utc_offset_minutes": "-90"}, 0), 0) == "UTC-01:30"
    with pytest.raises(BadQuery):
        zone_of({"utc_offset_minutes": "x"}, 0)
