"""Checks of carriers, and of how voice sounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from relay.doctor.checks.base import Check, Remedy
from relay.doctor.plan import Plan
from relay.doctor.report import Actor, Area, Item, Status, Voice
from relay.doctor.seen import CarrierSeen, Seen, Untested, VoiceSeen
from relay.quality.playout import play

PROXY = (Area.VOICE_PROXY,)
# ITU-T G.107 Annex B: many users are dissatisfied below R 70, which is 3.6.
MIN_MOS = 3.6
# G.114 calls 150 ms from mouth to ear good; recorders of trader voice want 30 ms of jitter. 1 % of loss is heard.
MAX_DELAY_MS, MAX_JITTER_MS, MAX_MISSING_PERCENT = 150.0, 30.0, 1.0
# A packet that leaves this late is late at the listener's, whatever the network does: the jitter buffer of a phone.
MAX_OWN_LATENESS_MS = 60.0


class Carriers(Check):
    """Voice over the web proxy has a carrier that works.

    **Tested:** each carrier of the relay: it is opened, and asked for this machine's address. Without a relay: TURN
    over TLS at one media host of each region. That the vendor's hosts take it is assumed, not documented, so
    silence there is no failure.

    **Why:** a client behind a firewall that blocks UDP has no voice without one. Which carriers pass says what the
    proxy does: one that inspects TLS passes WebSocket at best.

    **Change:** exempt the relay's name from TLS inspection, and let the web proxy open tunnels to it.
    """

    code = "CARRIERS"

    def items(self, plan: Plan, seen: Seen) -> Iterator[Item]:
        """One for each carrier."""
        if isinstance(seen.carriers, Untested):
            yield self.item("carriers", PROXY, Status.NOT_TESTED, seen.carriers.why)
            return
        works = any(one.answered for one in seen.carriers)
        for one in seen.carriers:
            yield self._of_carrier(one, works)

    def _of_carrier(self, one: CarrierSeen, works: bool) -> Item:
        subject = one.carrier
        if one.answered:
            return self.item(subject, PROXY, Status.OK, one.detail or one.way)
        if not one.certain:
            told = "no answer to TURN, which the vendor does not document there"
            return self.item(subject, PROXY, Status.NOT_TESTED, told, decides=not works)
        if one.failure is None:
            return self.item(subject, PROXY, Status.NOT_TESTED, one.detail, decides=False)
        status = Status.WARNING if works else Status.FAILED
        return self.item(subject, PROXY, status, f"{one.failure.step}: {one.failure.text}", decides=not works)

    def remedy(self, plan: Plan, seen: Seen, bad: Sequence[Item]) -> Remedy:
        """The proxy, or the relay."""
        assert not isinstance(seen.carriers, Untested)
        if any(one.answered for one in seen.carriers):
            works = ", ".join(one.carrier for one in seen.carriers if one.answered)
            change = f"Voice works over {works}. For the others, exempt the relay's name from TLS inspection."
        else:
            change = "Let tunnels to the relay pass without TLS inspection, and see that the relay's upstreams are up."
        return Remedy(Actor.WEB_PROXY, change)


class VoiceQuality(Check):
    """Voice sounds good over each path that works.

    **Tested:** 50 packets a second for some seconds over UDP and over each carrier, from one allocation of this
    machine to another, up the path and down again: a call between two desks of this network. It needs credentials
    of TURN.

    **Why:** a path that passes packets may still lose them, or hold them up. Over TCP nothing is lost, but what is
    late cannot be played.

    **Change:** loss and jitter over UDP come from a full or bad line, or from Wi-Fi. Over a web proxy, lateness
    comes from loss between the client and the relay, or from inspection: put the relay on the same LAN.
    """

    code = "VOICE-QUALITY"

    def items(self, plan: Plan, seen: Seen) -> Iterator[Item]:
        """One for each path."""
        if isinstance(seen.voice, Untested):
            yield self.item("voice", (Area.VOICE_UDP, Area.VOICE_PROXY), Status.NOT_TESTED, seen.voice.why)
            return
        for heard in seen.voice:
            yield self._of_path(heard)

    def _of_path(self, heard: VoiceSeen) -> Item:
        areas = (Area.VOICE_UDP,) if heard.over_udp else PROXY
        if heard.fault:
            return self.item(heard.path, areas, Status.NOT_TESTED, f"no call could be placed: {heard.fault}")
        figures = figures_of(heard)
        told = describe(figures)
        if heard.late_ms > MAX_OWN_LATENESS_MS:
            why = f"this machine was too busy: packets left up to {heard.late_ms:.0f} ms late"
            return self.item(heard.path, areas, Status.NOT_TESTED, why)
        return self.item(heard.path, areas, Status.OK if _is_good(heard, figures) else Status.WARNING, told)

    def remedy(self, plan: Plan, seen: Seen, bad: Sequence[Item]) -> Remedy:
        """The line."""
        if any(Area.VOICE_UDP in item.areas for item in bad):
            return Remedy(Actor.NETWORK, "Find where packets are lost or late: the line, Wi-Fi, or a full uplink.")
        change = "Find what holds packets up between here and the relay: loss, Wi-Fi, inspection, or a slow proxy."
        return Remedy(Actor.NETWORK, change)


def figures_of(heard: VoiceSeen) -> Voice:
    """The figures of a path. ``jitter_ms`` is what 99 of 100 packets stay within, beyond the median."""
    played = play(heard.delays_ms)
    p50, p99 = played.delay_p50_ms, played.delay_p99_ms
    return Voice(
        path=heard.path,
        sent=played.sent,
        lost_percent=100 * played.lost / played.sent if played.sent else 0.0,
        delay_p50_ms=p50,
        delay_p99_ms=p99,
        jitter_ms=None if p50 is None or p99 is None else p99 - p50,
        mos=played.mos,
        delays_ms=heard.delays_ms,
    )


def _is_good(heard: VoiceSeen, figures: Voice) -> bool:
    missing = play(heard.delays_ms).missing_percent
    if figures.mos is None or missing is None or figures.delay_p50_ms is None or figures.jitter_ms is None:
        return False
    return (
        figures.mos >= MIN_MOS
        and missing < MAX_MISSING_PERCENT
        and figures.delay_p50_ms <= MAX_DELAY_MS
        and figures.jitter_ms <= MAX_JITTER_MS
    )


def describe(figures: Voice) -> str:
    """The figures in a line."""
    mos = "-" if figures.mos is None else f"{figures.mos:.2f}"
    if figures.delay_p50_ms is None:
        return f"nothing arrived of {figures.sent} packets"
    return (
        f"MOS {mos}, {figures.lost_percent:.1f} % lost, {figures.delay_p50_ms:.0f} ms there and back, "
        f"jitter {figures.jitter_ms:.0f} ms"
    )
