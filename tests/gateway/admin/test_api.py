"""The API as its page describes it: the examples in docs/api.md have the shape of what is answered."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from relay.addresses import Address
from relay.emulator.turn.slow import TurnHost
from relay.gateway.calls.records import record_of
from relay.gateway.calls.store import CallStore, Kept
from relay.plane.api import CloseReason, Upstream
from relay.turn.credentials import StaticCredentials
from tests.support.benches.gateway import running_relay
from tests.support.benches.made_up import MadeUpRelay
from tests.support.waiting import eventually

PAGE = Path(__file__).parent.parent.parent.parent / "docs" / "api.md"
EXAMPLES = [
    json.loads(text) for text in re.findall(r"^```json\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
]
RECORD = 7
# Their keys are reasons and kinds of traffic: not every one is there.
COUNTS = {"drops", "drops_by_traffic", "drops_last_minute"}
# As the compiled plane numbers the fourth connection of its sixth worker; and its id.
BIG = (5 << 56) + 3
BIG_ID = "test-3-0-5"


async def get(address: Address, path: str) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as session, session.get(f"http://{address}{path}") as response:
        assert response.headers["Cache-Control"] == "no-store"
        return response.status, await response.json()


async def relay_of_three(store: CallStore | None = None) -> MadeUpRelay:
    """A bad call that ended, a good one, and one with some loss."""
    relay = MadeUpRelay(store)
    ended, _, lossy = relay.call(1), relay.call(2, username="Mei"), relay.call(BIG, username="o.brien")
    for _ in range(2):
        for made in relay.flows:
            made.talk(lost=60 if made is ended else 5 if made is lossy else 0, drops=1)
        await relay.calls.look()
    relay.end(ended, CloseReason.CLIENT_LOST)
    return relay


def shape(value: Any, key: str = "") -> Any:
    """Names and kinds of values; of a list, those of its first member."""
    if isinstance(value, dict):
        return "counts" if key in COUNTS else {name: shape(one, name) for name, one in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    if isinstance(value, bool) or value is None:
        return value if value is None else "bool"
    return "number" if isinstance(value, int | float) else "text"


def agree(told: Any, given: Any, where: str = "") -> None:
    """None fits anything, and so does an empty list any other."""
    if told is None or given is None or [] in (told, given):
        return
    if isinstance(told, dict) and isinstance(given, dict):
        assert set(told) == set(given), where
        for name in told:
            agree(told[name], given[name], f"{where}.{name}")
    elif isinstance(told, list) and isinstance(given, list):
        agree(told[0], given[0], f"{where}[0]")
    else:
        assert told == given, where


@pytest.mark.parametrize(
    ("number", "path"),
    [
        (0, "/api/flows"),
        (1, f"/api/flows/{BIG_ID}"),
        (1, f"/api/calls/{BIG_ID}"),
        (2, "/api/summary"),
        (3, "/api/history"),
        (4, "/api/cluster"),
        (5, "/api/calls"),
        (6, "/api/calls/test-1/explanation"),
    ],
)
async def test_the_page_describes_the_answers(tmp_path: Path, number: int, path: str) -> None:
    store = CallStore(Kept(tmp_path / "calls.sqlite3"))
    store.start()
    relay = await relay_of_three(store)
    await eventually(lambda: store.written == 1)
    async with relay.served() as address:
        status, answer = await get(address, path)
    await store.stop()
    assert status == 200
    agree(shape(EXAMPLES[number]), shape(answer))


async def test_the_page_describes_the_record() -> None:
    relay = await relay_of_three()
    agree(shape(EXAMPLES[RECORD]), shape(record_of(relay.calls.ended[0])))
    assert len(EXAMPLES) == RECORD + 1


def test_shapes_that_differ_are_seen() -> None:
    agree(shape({"a": [{"b": 1}], "c": None}), shape({"a": [], "c": "x"}))
    for other in ({"a": 1, "c": 1}, {"a": "1"}, {"a": [1]}, {}):
        with pytest.raises(AssertionError):
            agree(shape({"a": 1}), shape(other))


async def test_worst_first() -> None:
    relay = await relay_of_three()
    relay.call(9)  # no RTP, and no window
    async with relay.served() as address:
        _, found = await get(address, "/api/flows")
        assert [flow["id"] for flow in found["flows"]] == [BIG_ID, "test-2", "test-9"]
        assert [flow["mos"] for flow in found["flows"]][1:] == [4.41, None]
        _, found = await get(address, "/api/flows?limit=1")
        assert ([flow["id"] for flow in found["flows"]], found["total"]) == ([BIG_ID], 3)
        _, found = await get(address, "/api/flows?limit=0")
        assert found == {"total": 3, "flows": []}


@pytest.mark.parametrize(
    ("match", "ids"),
    [
        ("MEI", ["test-2"]),
        ("euc1", []),
        ("10.1.2.3", [BIG_ID, "test-2"]),
        ("desk.", [BIG_ID, "test-2"]),
        ("TEST-3", [BIG_ID]),
        ("*", []),
        ("%F0%9F%92%A9", []),
    ],
)
async def test_match(match: str, ids: list[str]) -> None:
    relay = await relay_of_three()
    async with relay.served() as address:
        _, found = await get(address, f"/api/flows?match={match}")
    assert [flow["id"] for flow in found["flows"]] == ids


@pytest.mark.parametrize("limit", ["-1", "x", "1.5", "", "%D9%A3", "1" * 30])
async def test_bad_limit(limit: str) -> None:
    async with MadeUpRelay().served() as address:
        assert await get(address, f"/api/flows?limit={limit}") == (
            400,
            {"error": "limit: expected a number from 0 to 10000"},
        )


@pytest.mark.parametrize(
    "wrong", ["test-77", "2", "other-2", "test", "test-", "x", "-1", "%D9%A3", "1" * 5000, "..%2F..%2Fetc%2Fpasswd"]
)
async def test_no_such_flow(wrong: str) -> None:
    relay = await relay_of_three()
    async with relay.served() as address:
        assert await get(address, f"/api/flows/{wrong}") == (404, {"error": "no such flow"})
        assert await get(address, f"/api/calls/{wrong}") == (404, {"error": "no such call"})


async def test_one_flow_says_what_it_rests_on() -> None:
    relay = await relay_of_three()
    relay.flows[0].streams = {
        key: one.__class__(**{**_fields(one), "payload_type": 96, "clock_hz": 0})
        for key, one in relay.flows[0].streams.items()
    }
    await relay.calls.look()
    async with relay.served() as address:
        _, flow = await get(address, "/api/flows/test-2")
    assert flow["streams"][0]["jitter_ms"] is flow["streams"][0]["clock_hz"] is None
    said = " ".join(flow["assumptions"])
    assert "encrypted" in said
    assert "Payload type 96 is assumed to be Opus" in said
    assert "No clock is known for payload type 96" in said
    assert "one-way delay is not seen" in said


def _fields(one: Any) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__dataclass_fields__}


async def test_a_call_that_ended_is_still_told() -> None:
    relay = await relay_of_three()
    async with relay.served() as address:
        status, flow = await get(address, "/api/flows/TEST-i")
    assert (status, flow["ended"]["reason"], flow["region"]) == (200, "client_lost", "use1")
    assert len(flow["windows"]["at"]) == 3
    assert flow["whole_call"]["downlink"]["lost_percent"] == 24.0


async def test_a_flow_without_rtp_has_no_quality() -> None:
    relay = MadeUpRelay()
    relay.call(5)
    async with relay.served() as address:
        _, flow = await get(address, "/api/flows/test-5")
    assert flow["windows"] is flow["whole_call"] is flow["mos"] is flow["ended"] is None
    assert (flow["streams"], flow["mos_trail"]) == ([], [])


async def test_summary() -> None:
    relay = await relay_of_three()
    relay.call(3, upstream=Upstream("gone", Address("192.0.2.9", 1))).talk()
    await relay.calls.look()
    async with relay.served() as address:
        _, summary = await get(address, "/api/summary")
    assert (summary["calls"], summary["flows"], summary["calls_unscored"]) == (3, 3, 2)
    assert sum(band["calls"] for band in summary["mos_bands"]) == 1
    assert [(one["name"], one["health"], one["up"]) for one in summary["regions"]] == [
        ("use1", "up", 1),
        ("euc1", "up", 1),
    ]
    assert [one["id"] for one in summary["ended_badly"]] == ["test-1"]
    assert summary["drops"] == {"downlink_old": 6}
    assert summary["drops_by_traffic"] == {"media": 6}
    assert summary["looked_at"] <= summary["at"]


async def test_rates_are_over_some_time(monkeypatch: pytest.MonkeyPatch) -> None:
    relay = MadeUpRelay()
    made = relay.call()
    now = 1000.0
    monkeypatch.setattr("relay.gateway.admin.view.time.time", lambda: now)
    assert relay.view.summary()["packets_per_s"] == {"uplink": 0, "downlink": 0}
    made.talk(1, lost=10)
    now += 1
    assert relay.view.summary()["packets_per_s"] == {"uplink": 50, "downlink": 40}
    # Two who ask at once get the same answer, not noise.
    now += 0.01
    assert relay.view.summary()["packets_per_s"] == {"uplink": 50, "downlink": 40}
    now -= 100
    assert relay.view.summary()["packets_per_s"]["uplink"] == 0


async def test_a_real_flow(tmp_path: Path) -> None:
    async with (
        TurnHost(Address("127.0.0.1", 0), StaticCredentials({"trader": "secret"})) as host,
        running_relay(tmp_path, {"region": "use1", "address": host.address}) as relay,
        await relay.open_turn("trader", "secret") as turn,
    ):
        await turn.allocate()
        _, found = await get(relay.admin, "/api/flows")
        [flow] = found["flows"]
        status, one = await get(relay.admin, f"/api/flows/{flow['id']}")
        assert (status, one["client"], one["region"]) == (200, str(turn.local_address), "use1")
        agree(shape(EXAMPLES[1]), shape(one))
        _, summary = await get(relay.admin, "/api/summary")
        assert (summary["flows"], summary["connections"]) == (1, 1)
        await eventually(lambda: any(state.health == "up" for state in relay.gateway.upstreams))
