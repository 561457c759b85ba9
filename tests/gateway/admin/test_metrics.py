"""The metrics: every label value is there from the start, and the figures are those of the plane and the upstreams."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from relay import __version__
from relay.addresses import Address
from relay.config import HealthSettings, UpstreamServer
from relay.emulator.turn.slow import TurnHost
from relay.gateway.admin.metrics import Metrics, RelayCollector
from relay.gateway.admin.view import View
from relay.gateway.balancers import BalancerTotals
from relay.gateway.calls.calls import Calls
from relay.gateway.calls.records import Records
from relay.gateway.routing.flows import FailoverOutcome, ResumeOutcome, Tally, UpgradeOutcome
from relay.gateway.routing.upstreams import Upstreams
from relay.plane.api import (
    Carrier,
    CloseReason,
    ConnectionId,
    DropReason,
    Latency,
    Snapshot,
    Totals,
    Traffic,
    Upstream,
)
from relay.plane.certificates import HandshakeFailure
from relay.turn.credentials import StaticCredentials
from tests.support.benches.gateway import Relay, running_relay
from tests.support.benches.made_up import MadeUpCall, MadeUpRelay, nobody_asked
from tests.support.peers.behind_turn import Inbox, open_echo
from tests.support.waiting import eventually

Samples = dict[tuple[str, str], float]


def samples_of(text: str) -> Samples:
    """Every sample by its name and its label values, joined by commas in the order of the label names."""
    return {
        (sample.name, ",".join(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def samples_of_snapshot(snapshot: Snapshot, *, draining: bool = False) -> Samples:
    upstreams = Upstreams()
    servers = [
        UpstreamServer(name=name, region="use1", address=Address("192.0.2.7", port))
        for port, name in enumerate(("up", "down", "new"), 3478)
    ]
    upstreams.configure(servers, HealthSettings())
    up, down, _ = upstreams
    up.life.on_success()
    up.on_rtt(0.25)
    down.life.on_failure(certain=True)
    calls = Calls(lambda: snapshot, upstreams.region_of)
    view = View(lambda: snapshot, calls, upstreams, Records(None), lambda: draining, entitlement=nobody_asked())
    return samples_of(Metrics(RelayCollector(view)).render().decode())


NOTHING = Snapshot(0, (), Totals(), 0, {}, {})


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("relay_connections_closed_total", CloseReason),
        ("relay_handshake_failures_total", HandshakeFailure),
        ("relay_drops_total", DropReason),
        ("relay_drops_by_traffic_total", Traffic),
    ],
)
def test_every_reason_is_there_from_the_start(name: str, values: type[StrEnum]) -> None:
    samples = samples_of_snapshot(NOTHING)
    assert {label: value for (family, label), value in samples.items() if family == name} == dict.fromkeys(values, 0)


def test_every_figure_is_there_from_the_start() -> None:
    samples = samples_of_snapshot(NOTHING)
    for name in ("relay_packets_total", "relay_bytes_total"):
        assert (samples[name, "uplink"], samples[name, "downlink"]) == (0, 0)
    for name in (
        "relay_draining",
        "relay_connections",
        "relay_connections_accepted_total",
        "relay_retransmissions_total",
        "relay_calls",
        "relay_call_records_written_total",
        "relay_call_records_lost_total",
        "relay_calls_kept_total",
        "relay_calls_not_kept_total",
        "relay_log_lines_lost_total",
        "relay_queue_delay_seconds_count",
    ):
        assert samples[name, ""] == 0
    assert samples["relay_info", __version__] == 1


def test_checks_of_balancers_are_no_connections_and_no_counter_goes_back() -> None:
    closed, balancers = {CloseReason.HANDSHAKE_FAILED: 1}, BalancerTotals()
    shown = [Snapshot(0, (), Totals(), 1, closed, {})]
    upstreams = Upstreams()
    view = View(
        lambda: shown[-1],
        Calls(lambda: shown[-1], upstreams.region_of),
        upstreams,
        Records(None),
        lambda: False,
        entitlement=nobody_asked(),
        balancers=balancers,
    )
    metrics = Metrics(RelayCollector(view))

    def counted() -> tuple[float, float]:
        samples = samples_of(metrics.render().decode())
        closed = samples["relay_connections_closed_total", "handshake_failed"]
        return samples["relay_connections_accepted_total", ""], closed

    # Until it is known what it is, it counts. A counter that goes back would look like a restart.
    assert counted() == (1, 1)
    balancers.closed[CloseReason.HANDSHAKE_FAILED] += 1
    assert counted() == (1, 1)
    shown.append(Snapshot(0, (), Totals(), 2, {CloseReason.HANDSHAKE_FAILED: 2}, {}))
    assert counted() == (1, 1)
    shown.append(Snapshot(0, (), Totals(), 4, {CloseReason.HANDSHAKE_FAILED: 3}, {}))
    assert counted() == (3, 2)


def test_figures_are_those_of_the_snapshot() -> None:
    totals = Totals(1, 2, 3, 4, 5, {DropReason.UPLINK_FULL: 6}, {Traffic.MEDIA: 11})
    queue_delay = Latency([(100, 2), (150, 3), (2_000_000, 1)], 2_000_900)
    snapshot = Snapshot(
        7, (), totals, 8, {CloseReason.SLOW_CLIENT: 9}, {HandshakeFailure.NOT_TLS: 10}, queue_delay=queue_delay
    )
    samples = samples_of_snapshot(snapshot, draining=True)
    expected = {
        ("relay_packets_total", "uplink"): 1,
        ("relay_bytes_total", "uplink"): 2,
        ("relay_packets_total", "downlink"): 3,
        ("relay_bytes_total", "downlink"): 4,
        ("relay_retransmissions_total", ""): 5,
        ("relay_drops_total", "uplink_full"): 6,
        ("relay_connections", ""): 7,
        ("relay_connections_accepted_total", ""): 8,
        ("relay_connections_closed_total", "slow_client"): 9,
        ("relay_handshake_failures_total", "not_tls"): 10,
        ("relay_draining", ""): 1,
        ("relay_drops_by_traffic_total", "media"): 11,
        ("relay_queue_delay_seconds_bucket", "0.0001"): 2,
        ("relay_queue_delay_seconds_bucket", "0.0002"): 5,
        ("relay_queue_delay_seconds_bucket", "1.0"): 5,
        ("relay_queue_delay_seconds_bucket", "+Inf"): 6,
        ("relay_queue_delay_seconds_sum", ""): 2.0009,
    }
    assert {key: samples[key] for key in expected} == expected


async def test_windows_of_calls() -> None:
    relay = MadeUpRelay()
    for number, lost in enumerate((0, 0, 40)):
        relay.call(number).talk(lost=lost, jitter_us=4000)
    relay.call(3)  # without RTP
    await relay.calls.look()
    await relay.calls.look()  # silence, which has no score
    samples = samples_of(Metrics(RelayCollector(relay.view)).render().decode())
    expected = {
        ("relay_calls", ""): 3,
        ("relay_call_mos_count", "uplink"): 3,
        ("relay_call_mos_bucket", "downlink,3.6"): 1,
        ("relay_call_mos_bucket", "downlink,4.34"): 1,
        ("relay_call_mos_bucket", "downlink,+Inf"): 3,
        ("relay_call_missing_ratio_bucket", "downlink,0.1"): 2,
        ("relay_call_missing_ratio_bucket", "downlink,0.2"): 3,
        ("relay_call_missing_ratio_sum", "downlink"): 0.16,
        ("relay_call_jitter_seconds_bucket", "downlink,0.002"): 0,
        ("relay_call_jitter_seconds_bucket", "downlink,0.005"): 3,
    }
    assert {key: samples[key] for key in expected} == pytest.approx(expected)


def test_upstreams() -> None:
    samples = samples_of_snapshot(NOTHING)
    names = ("up", "down", "new")
    assert [samples["relay_upstream_up", f"use1,{name}"] for name in names] == [1, 0, 0]
    assert samples["relay_upstream_rtt_seconds", "use1,up"] == 0.25
    # A round trip that nobody has measured is not nought.
    assert ("relay_upstream_rtt_seconds", "use1,new") not in samples


def test_flows_by_upstream_and_carrier() -> None:
    flow = MadeUpCall(ConnectionId(1)).snapshot()
    up, elsewhere = Upstream("up", Address("192.0.2.7", 3478)), Upstream("192.0.2.9:3478", Address("192.0.2.9", 3478))
    flows = [
        replace(flow, carrier=carrier, upstream=upstream)
        for carrier, upstream, count in (
            (Carrier.TURN, up, 3),
            (Carrier.SESSION, up, 2),
            (Carrier.CONNECT_UDP, up, 1),
            (Carrier.CONNECT_UDP, elsewhere, 1),
        )
        for _ in range(count)
    ]
    samples = samples_of_snapshot(replace(NOTHING, flows=flows))
    found = {key[1]: value for key, value in samples.items() if key[0] == "relay_flows"}
    # Carrier, region, upstream. An address that a client has chosen is not a label.
    assert len(found) == 4 * len(Carrier)
    expected = {"turn,use1,up": 3, "session,use1,up": 2, "connect-udp,use1,up": 1, "connect-udp,,": 1}
    assert {label: value for label, value in found.items() if value} == expected


def test_what_happened_to_carriers() -> None:
    tally = Tally()
    tally.upgrades[Carrier.SESSION, UpgradeOutcome.ACCEPTED] += 5
    tally.upgrades[Carrier.CONNECT_UDP, UpgradeOutcome.FORBIDDEN] += 4
    tally.resumptions[ResumeOutcome.RESUMED] += 3
    tally.failovers[FailoverOutcome.MOVED] += 2
    tally.parked = 1
    relay = MadeUpRelay()
    relay.view.tally = tally
    samples = samples_of(Metrics(RelayCollector(relay.view)).render().decode())
    expected = {
        ("relay_upgrades_total", "session,accepted"): 5,
        ("relay_upgrades_total", "connect-udp,forbidden"): 4,
        ("relay_upgrades_total", "websocket,draining"): 0,
        ("relay_session_resumptions_total", "resumed"): 3,
        ("relay_session_resumptions_total", "expired"): 0,
        ("relay_session_failovers_total", "moved"): 2,
        ("relay_sessions_parked", ""): 1,
    }
    assert {key: samples[key] for key in expected} == expected


def test_the_process_is_measured_too() -> None:
    samples = samples_of_snapshot(NOTHING)
    assert samples["process_open_fds", ""] > 0
    assert samples["process_resident_memory_bytes", ""] > 0


async def scrape(relay: Relay) -> Samples:
    async with aiohttp.ClientSession() as session, session.get(f"http://{relay.admin}/metrics") as response:
        assert response.status == 200
        assert response.content_type == "text/plain"
        return samples_of(await response.text())


async def test_certificates(tmp_path: Path) -> None:
    async with running_relay(tmp_path, Address("127.0.0.1", 9)) as relay:
        samples = await scrape(relay)
        # A throw-away certificate is valid for a day.
        for name in ("relay.test", "*.relay.test"):
            assert 0 < samples["relay_certificate_expiry_seconds", name] <= 86_400
        assert samples["relay_certificate_troubles", ""] == 0


async def test_figures_after_traffic(tmp_path: Path) -> None:
    credentials = StaticCredentials({"trader": "secret"})
    inbox = Inbox()
    async with (
        TurnHost(Address("127.0.0.1", 0), credentials, allow_loopback_peers=True) as host,
        open_echo() as peer,
        running_relay(tmp_path, {"name": "use1-stun1", "region": "use1", "address": host.address}) as relay,
    ):
        before = await scrape(relay)
        async with await relay.open_turn("trader", "secret", on_data=inbox.put) as turn:
            await turn.allocate()
            await turn.bind_channel(peer)
            for _ in range(5):
                turn.send(peer, bytes(182))
                await inbox.get()
            during = await scrape(relay)
        await eventually(lambda: not relay.connections)
        after = await scrape(relay)

    def growth(name: str, label: str) -> tuple[float, float]:
        return during[name, label] - before[name, label], after[name, label] - before[name, label]

    # Two Allocate requests (the first is answered 401), a ChannelBind and five packets; the Refresh of the end.
    again = growth("relay_retransmissions_total", "")
    assert growth("relay_packets_total", "uplink") == (8 + again[0], 9 + again[1])
    assert growth("relay_packets_total", "downlink") == (8, 9)
    # ChannelData of 4 + 182 bytes without its padding, and STUN besides.
    assert growth("relay_bytes_total", "uplink")[0] > 5 * 186
    assert growth("relay_flows", "turn,use1,use1-stun1") == (1, 0)
    assert growth("relay_connections", "") == (1, 0)
    assert growth("relay_connections_accepted_total", "") == (1, 1)
    assert growth("relay_connections_closed_total", "client_closed") == (0, 1)
