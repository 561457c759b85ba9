"""The rules that explain a call: each says its sentence where the figures show it, and nothing where they do not."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from datetime import UTC, timedelta, timezone
from typing import Any

import pytest

from relay.gateway.calls import explain as module
from relay.gateway.calls.explain import DROPS, ENDS, HARMLESS_DROPS, NOTHING_SEEN, Told, explain, rules, zone_name
from relay.plane.api import CloseReason, DropReason
from relay.quality.stream import Direction
from tests.support.benches.made_up import MadeUpCall, MadeUpRelay

# 10:30:00 in UTC.
BEGAN = 1_795_429_800.0
CALL: dict[str, Any] = {
    "id": "test-1",
    "client": "10.1.2.3:50000",
    "username": "a.keller",
    "server_name": "desk.relay.test",
    "carrier": "turn",
    "upstream": "use1-stun1",
    "region": "use1",
    "started_at": "2026-11-23T10:30:00.000Z",
    "age_s": 30.0,
    "retransmissions": 0,
    "drops": {},
    "drops_by_traffic": {},
    "link": {"rtt_ms": 0.4, "rtt_variation_ms": 0.1, "retransmits": 0, "unsent_bytes": 0},
    "window_s": 5.0,
    "whole_call": {
        way: {
            "expected": 1500,
            "lost_percent": 0.0,
            "late_percent": 0.0,
            "jitter_ms": 0.5,
            "mos_min": 4.4,
            "mos_mean": 4.4,
        }
        for way in ("uplink", "downlink")
    },
    "windows": {
        "at": [BEGAN + 5 * number for number in range(1, 7)],
        **{
            way: {"lost_percent": [0.0] * 6, "late_percent": [0.0] * 6, "jitter_ms": [0.5] * 6, "mos": [4.4] * 6}
            for way in ("uplink", "downlink")
        },
        "queue_ms": [0.3] * 6,
        "rtt_ms": [0.4] * 6,
        "drops": [0] * 6,
    },
    "ended": {"at": "2026-11-23T10:30:30.000Z", "reason": "client_closed", "detail": ""},
}


def told(change: Callable[[dict[str, Any]], object] = lambda _: None) -> Told:
    call = copy.deepcopy(CALL)
    change(call)
    return Told(call, UTC)


def whole(way: str, **figures: Any) -> Callable[[dict[str, Any]], object]:
    return lambda call: call["whole_call"][way].update(figures)


def worst_at(call: dict[str, Any], value: float, *names: str, number: int = 2) -> float:
    column = call["windows"]
    for name in names:
        column = column[name]
    column[number] = value
    return value


# The rules, in their order


def test_who() -> None:
    assert module.who(told()) == (
        "a.keller called from 10.1.2.3:50000, asking for desk.relay.test. The call went to the upstream use1-stun1 in "
        "use1, over turn."
    )
    nobody = told(lambda call: call.update(username="", server_name="", upstream="", region="", carrier="connect-udp"))
    assert module.who(nobody) == (
        "A client without a user name called from 10.1.2.3:50000. The call went to an address that the client named, "
        "over connect-udp."
    )


def test_when() -> None:
    said = "It began at 10:30:00 on Monday, 23 November 2026, and ended at 10:30:30, after 30 seconds."
    assert module.when(told()) == said
    elsewhere = dataclasses.replace(told(), zone=timezone(timedelta(hours=5, minutes=30)))
    assert module.when(elsewhere) == said.replace("10:30", "16:00")
    running = told(lambda call: call.update(ended=None, age_s=3723.0))
    assert module.when(running).endswith("2026, and has gone on for 1 hour and 2 minutes.")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.2, "less than a second"),
        (1, "1 second"),
        (61, "1 minute and 1 second"),
        (3600, "1 hour"),
        (7322, "2 hours and 2 minutes"),
    ],
)
def test_how_long(seconds: float, said: str) -> None:
    assert module._duration(seconds) == said


def test_sound() -> None:
    assert module.sound(told()) == "It sounded good: the lowest MOS of any five seconds was 4.40."

    def bad(call: dict[str, Any]) -> None:
        whole("downlink", mos_min=2.1)(call)
        worst_at(call, 2.1, "downlink", "mos")

    assert (
        module.sound(told(bad))
        == "It sounded bad: the lowest MOS was 2.10, in the voice to the client, around 10:30:15."
    )
    assert module.sound(told(lambda call: call.update(whole_call=None, windows=None))) == "It carried no voice."
    unknown = told(lambda call: [whole(way, mos_min=None)(call) for way in ("uplink", "downlink")])
    assert module.sound(unknown).startswith("How it sounded is not known: ")


def test_bad_periods() -> None:
    assert module.bad_periods(told()) == ""
    assert module.bad_periods(told(lambda call: call.update(windows=None))) == ""

    def bad(*numbers: int) -> Told:
        return told(lambda call: [worst_at(call, 2.0, "uplink", "mos", number=number) for number in numbers])

    assert module.bad_periods(bad(0)) == "It was bad from 10:30:00 to 10:30:05."
    assert module.bad_periods(bad(1, 2, 5)) == "It was bad from 10:30:05 to 10:30:15, from 10:30:25 to 10:30:30."
    often = told(
        lambda call: call["windows"].update(
            at=[BEGAN + 5 * number for number in range(1, 12)],
            uplink={"mos": [2.0, 4.0] * 5 + [2.0]},
            downlink={"mos": [None] * 11},
        )
    )
    assert module.bad_periods(often).endswith(", and at 3 more times.")


def test_one_way() -> None:
    assert module.one_way(told()) == ""
    assert module.one_way(told(lambda call: call.update(whole_call=None))) == ""
    assert module.one_way(told(whole("downlink", expected=0))).startswith("No voice came from the upstream: ")
    assert module.one_way(told(whole("uplink", expected=0))).startswith("No voice came from the client: ")


def test_uplink_lost() -> None:
    def lost(call: dict[str, Any]) -> None:
        whole("uplink", lost_percent=2.0)(call)
        worst_at(call, 12.0, "uplink", "lost_percent")

    assert module.uplink_lost(told()) == module.uplink_lost(told(whole("uplink", lost_percent=0.09))) == ""
    assert module.uplink_lost(told(lost)) == (
        "Of the voice from the client 2.0 % never came (30 packets), most of it around 10:30:15. It was lost on the "
        "client's side, before the relay: in the client itself, or on its way to the web proxy. TCP, which brings it "
        "here, loses nothing."
    )


def test_uplink_late() -> None:
    assert module.uplink_late(told()) == ""
    said = module.uplink_late(told(whole("uplink", late_percent=1.5)))
    assert said.startswith(
        "Of the voice from the client 1.5 % came too late to be played. The client's link held it back"
    )


@pytest.mark.parametrize(
    ("drops", "media", "said"),
    [
        ({}, 0, "It was lost on the upstream's side: it did not reach the relay."),
        # What was dropped for another reason, or was no voice, is not what was missing.
        ({"uplink_full": 90}, 90, "It was lost on the upstream's side"),
        ({"downlink_old": 90}, 0, "It was lost on the upstream's side"),
        (
            {"downlink_old": 100, "downlink_full": 70},
            170,
            "The relay dropped 150 of them, because the client did not take",
        ),
        (
            {"downlink_old": 60},
            60,
            "The relay dropped 60 of them, because the client did not take them in time. The others",
        ),
        ({"downlink_rate": 200}, 200, "The relay dropped 150 of them, because more came in a second than one flow may"),
        (
            {"downlink_rate": 50},
            50,
            "The relay dropped 50 of them, because more came in a second than one flow may carry.",
        ),
    ],
)
def test_downlink_lost(drops: dict[str, int], media: int, said: str) -> None:
    def lost(call: dict[str, Any]) -> None:
        whole("downlink", lost_percent=10.0)(call)
        call.update(drops=drops, drops_by_traffic={"media": media})

    assert module.downlink_lost(told()) == ""
    assert module.downlink_lost(told(lost)).startswith(
        f"Of the voice to the client 10.0 % was missing (150 packets). {said}"
    )


@pytest.mark.parametrize(
    ("queue_ms", "said"), [(90.0, "It had waited in the relay"), (5.0, "It came late from the upstream's side")]
)
def test_downlink_late(queue_ms: float, said: str) -> None:
    def late(call: dict[str, Any]) -> None:
        whole("downlink", late_percent=3.0)(call)
        worst_at(call, 20.0, "downlink", "late_percent", number=0)
        worst_at(call, queue_ms, "queue_ms")

    assert module.downlink_late(told()) == ""
    expected = f"Of the voice to the client 3.0 % left too late to be played, most of it around 10:30:05. {said}"
    assert module.downlink_late(told(late)).startswith(expected)


def test_queue() -> None:
    assert module.queue(told()) == module.queue(told(lambda call: call.update(windows=None))) == ""
    said = module.queue(told(lambda call: worst_at(call, 131.072, "queue_ms")))
    assert (
        said == "Voice waited for the client, up to 131 ms around 10:30:15: its link, or the client itself, was slow."
    )


def test_jitter() -> None:
    assert module.jitter(told()) == module.jitter(told(whole("uplink", jitter_ms=None))) == ""
    said = module.jitter(told(lambda call: [whole(way, jitter_ms=42.0)(call) for way in ("uplink", "downlink")]))
    assert said == "The voice from the client (42 ms) and to the client (42 ms) came unevenly: this is its mean jitter."


def test_client_link() -> None:
    assert module.client_link(told()) == module.client_link(told(lambda call: call.update(link=None))) == ""
    said = module.client_link(told(lambda call: call["link"].update(retransmits=7)))
    assert said == "The client's link was not good: the relay had to send 7 segments to it again."
    said = module.client_link(told(lambda call: worst_at(call, 250.0, "rtt_ms")))
    assert said == "The client's link was not good: its round trip was up to 250 ms."


def test_dropped() -> None:
    assert module.dropped(told()) == ""
    drops = {"downlink_old": 3, "uplink_oversize": 1, "downlink_duplicate": 9, "of a newer relay": 2}
    assert module.dropped(told(lambda call: call.update(drops=drops))) == (
        "The relay dropped 3 packets: they waited for the client until they were worth nothing; 1 packet: the client's "
        "packets were longer than the way to the upstream carries."
    )
    assert module.dropped(told(lambda call: call.update(drops={"downlink_duplicate": 9}))) == ""


def test_upstream_slow() -> None:
    assert module.upstream_slow(told()) == ""
    assert module.upstream_slow(told(lambda call: call.update(retransmissions=1))).startswith(
        "1 STUN request to the upstream"
    )
    assert module.upstream_slow(told(lambda call: call.update(retransmissions=4))).startswith("4 STUN requests to the ")


def test_end() -> None:
    assert module.end(told()) == "The client closed it in the usual way."
    assert module.end(told(lambda call: call.update(ended=None))) == "It is still running."
    silent = {"at": "2026-11-23T10:30:30.000Z", "reason": "upstream_silent", "detail": "no answer to Refresh"}
    said = "The relay closed it, because the upstream no longer answered (no answer to Refresh)."
    assert module.end(told(lambda call: call.update(ended=silent))) == said
    newer = {**silent, "reason": "of_a_newer_relay", "detail": ""}
    assert module.end(told(lambda call: call.update(ended=newer))) == "It ended as of_a_newer_relay."


# All of them


def test_every_reason_has_its_sentence() -> None:
    assert set(ENDS) == set(CloseReason)
    assert set(DROPS) | HARMLESS_DROPS == set(DropReason)


def test_each_rule_has_a_test_of_its_own() -> None:
    assert {f"test_{rule.__name__}" for rule in rules()} - set(globals()) == set()


def test_where_nothing_is_wrong_it_says_so_and_claims_no_more() -> None:
    said = explain(CALL, UTC)
    assert [one.rule for one in said] == ["who", "when", "sound", "nothing_seen", "end"]
    assert said[3].text == NOTHING_SEEN
    silent = {**CALL, "whole_call": None, "windows": None}
    assert [one.rule for one in explain(silent, UTC)] == ["who", "when", "sound", "end"]


async def told_of(made: MadeUpCall, relay: MadeUpRelay) -> dict[str, str]:
    """What the view tells of a call that has ended, explained."""
    relay.end(made, CloseReason.CLIENT_LOST)
    call = await relay.view.call(relay.id(made.connection))
    assert call is not None
    return {one.rule: one.text for one in explain(call, UTC)}


async def test_a_call_as_the_relay_tells_it_a_slow_client() -> None:
    relay = MadeUpRelay()
    made = relay.call(1)
    for lost in (0, 100, 0):
        made.talk(lost=lost, drops=lost, queue_us=200_000 if lost else 256)
        await relay.calls.look()
    said = await told_of(made, relay)
    assert set(said) == {"who", "when", "sound", "bad_periods", "downlink_lost", "queue", "dropped", "end"}
    assert "The relay dropped 100 of them" in said["downlink_lost"]
    assert said["end"] == "The client was lost: its connection was reset, or it no longer answered."


async def test_a_call_as_the_relay_tells_it_a_bad_upstream() -> None:
    relay = MadeUpRelay()
    made = relay.call(1)
    for lost in (0, 100, 0):
        made.talk(lost=lost)
        await relay.calls.look()
    said = await told_of(made, relay)
    assert set(said) == {"who", "when", "sound", "bad_periods", "downlink_lost", "end"}
    assert "lost on the upstream's side" in said["downlink_lost"]


async def test_a_call_as_the_relay_tells_it_one_way_or_none() -> None:
    relay = MadeUpRelay()
    one_way, silent = relay.call(1), relay.call(2)
    one_way.talk(directions=[Direction.UPLINK])
    await relay.calls.look()
    running = await relay.view.call("test-2")
    assert running is not None
    assert [one.rule for one in explain(running, UTC)] == ["who", "when", "sound", "end"]
    relay.end(silent)
    assert "one_way" in await told_of(one_way, relay)


@pytest.mark.parametrize(("minutes", "said"), [(0, "UTC"), (60, "UTC+01:00"), (-210, "UTC-03:30"), (330, "UTC+05:30")])
def test_zones_have_names(minutes: int, said: str) -> None:
    assert zone_name(timezone(timedelta(minutes=minutes)), BEGAN) == said
