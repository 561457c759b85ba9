"""What the gateway knows of its upstreams: rise and fall, both probes together, and a list that changes."""

from __future__ import annotations

from typing import Any

import pytest

from relay.addresses import Address
from relay.config import HealthSettings, UpstreamServer
from relay.gateway.routing.flows import Flows, Wanted
from relay.gateway.routing.upstreams import Health, RiseAndFall, Upstreams, UpstreamState
from relay.plane.api import Carrier, ConnectionId

SETTINGS = HealthSettings(rise=2, fall=3)
UNKNOWN, UP, DOWN = Health.UNKNOWN, Health.UP, Health.DOWN


def server(name: str = "stun1", **keys: Any) -> UpstreamServer:
    return UpstreamServer.model_validate({"name": name, "address": "192.0.2.7:3478", **keys})


def upstreams_of(*servers: UpstreamServer) -> Upstreams:
    upstreams = Upstreams()
    upstreams.configure(servers, SETTINGS)
    return upstreams


# One probe


@pytest.mark.parametrize(
    ("probes", "healths"),
    [
        # The first success counts at once: clients are waiting.
        ("+", [UP]),
        # The first failures do not.
        ("---", [UNKNOWN, UNKNOWN, DOWN]),
        ("-+", [UNKNOWN, UP]),
        ("+--+---", [UP, UP, UP, UP, UP, UP, DOWN]),
        ("---+-++", [UNKNOWN, UNKNOWN, DOWN, DOWN, DOWN, DOWN, UP]),
        ("+!", [UP, DOWN]),
        ("!", [DOWN]),
        ("!+!++", [DOWN, DOWN, DOWN, DOWN, UP]),
    ],
)
def test_rise_and_fall(probes: str, healths: list[Health]) -> None:
    judged, seen, changes = RiseAndFall(SETTINGS), [], 0
    for probe in probes:
        changed = judged.on_success() if probe == "+" else judged.on_failure(certain=probe == "!")
        changes += changed
        seen.append(judged.health)
    assert seen == healths
    assert changes == sum(before is not after for before, after in zip([UNKNOWN, *seen], seen, strict=False))


@pytest.mark.parametrize(
    ("probes", "settled"), [("", False), ("+", True), ("+-", False), ("+---", True), ("---+", False), ("---++", True)]
)
def test_settled_when_the_last_probe_says_what_is_known(probes: str, settled: bool) -> None:
    judged = RiseAndFall(SETTINGS)
    for probe in probes:
        judged.on_success() if probe == "+" else judged.on_failure()
    assert judged.settled is settled


# One upstream


def test_both_probes_taken_together() -> None:
    state = UpstreamState(server(secret="hunter2"), SETTINGS)
    allocate = state.allocate
    assert allocate is not None
    assert state.health is UNKNOWN
    seen = []
    for probe in ("binding +", "allocate -", "allocate +", "allocate +", "binding -"):
        judged = allocate if probe.startswith("allocate") else state.life
        judged.on_success() if probe.endswith("+") else judged.on_failure(certain=True)
        seen.append(state.health)
    assert seen == [UP, DOWN, DOWN, UP, DOWN]


@pytest.mark.parametrize(
    ("keys", "allocates", "releases"),
    [({}, False, False), ({"secret": "x"}, True, True), ({"username": "a", "password": "b"}, True, False)],
)
def test_what_credentials_allow(keys: dict[str, str], allocates: bool, releases: bool) -> None:
    state = UpstreamState(server(**keys), SETTINGS)
    assert (state.allocate is not None) is allocates
    plain = state.for_plane()
    assert (plain.name, plain.address, plain.releases_allocations) == ("stun1", Address("192.0.2.7", 3478), releases)


def test_name_without_an_address_is_down() -> None:
    state = UpstreamState(server(address="turn.example.com:3478"), SETTINGS)
    state.life.on_success()
    assert (state.address, state.health) == (None, DOWN)
    state.address = Address("192.0.2.8", 3478)
    assert state.health is UP


def test_round_trip_time_is_smoothed() -> None:
    state = UpstreamState(server(), SETTINGS)
    state.on_rtt(0.008)
    assert state.rtt_s == 0.008
    state.on_rtt(0.016)
    assert state.rtt_s == pytest.approx(0.009)


# All of them


def test_by_name_and_in_the_order_of_the_file() -> None:
    upstreams = upstreams_of(server("b"), server("a"))
    assert [state.name for state in upstreams] == ["b", "a"]
    found = upstreams.get("a")
    assert found is not None
    assert found.name == "a"
    assert upstreams.get("c") is None


def test_any_healthy() -> None:
    upstreams = upstreams_of(server("a"), server("b"))
    first, second = upstreams
    seen = [upstreams.any_healthy]
    first.life.on_failure(certain=True)
    seen.append(upstreams.any_healthy)
    second.life.on_success()
    seen.append(upstreams.any_healthy)
    second.life.on_failure(certain=True)
    seen.append(upstreams.any_healthy)
    assert seen == [False, False, True, False]


def test_new_list_keeps_what_is_known() -> None:
    upstreams = upstreams_of(server("stays"), server("goes"), server("moves"))
    before = {state.name: state for state in upstreams}
    for state in before.values():
        state.life.on_success()
    upstreams.configure([server("comes"), server("moves", address="192.0.2.9:3478"), server("stays")], SETTINGS)
    assert [(state.name, state.health) for state in upstreams] == [
        ("comes", UNKNOWN),
        ("moves", UNKNOWN),
        ("stays", UP),
    ]
    assert upstreams.get("stays") is before["stays"]


def test_flows_of_before_a_reload_still_count() -> None:
    upstreams = upstreams_of(server())
    flows = Flows(upstreams)
    [before] = upstreams
    before.life.on_success()
    flows.begin(Wanted(ConnectionId(1), "", Carrier.TURN), lambda _: None)
    for address in ("192.0.2.9:3478", "192.0.2.7:3478"):
        upstreams.configure([server(address=address)], SETTINGS)
        [state] = upstreams
        assert (state is before, state.flows) == (False, 1)
    # Away, and back before its flow has ended.
    upstreams.configure([], SETTINGS)
    upstreams.configure([server()], SETTINGS)
    [state] = upstreams
    assert state.flows == 1
    flows.end(ConnectionId(1))
    assert state.flows == 0


def test_new_settings_of_the_same_address() -> None:
    upstreams = upstreams_of(server(secret="old"))
    [state] = upstreams
    state.life.on_success()
    assert state.allocate is not None
    state.allocate.on_failure(certain=True)
    state.flows = 7

    # New credentials are judged anew; the rest is the same server.
    upstreams.configure([server(secret="new", region="use1")], SETTINGS)
    assert upstreams.get("stun1") is state
    assert (state.settings.region, state.health, state.flows) == ("use1", UP, 7)

    # New thresholds count from the next probe on.
    upstreams.configure([server(secret="new", region="use1")], HealthSettings(fall=1))
    state.life.on_failure()
    assert state.health is DOWN

    upstreams.configure([server()], SETTINGS)
    assert state.allocate is None
