"""Checks of UDP."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from relay.catalog import Ports, Protocol
from relay.doctor import rules
from relay.doctor.checks.base import Check, Remedy, named
from relay.doctor.plan import Plan
from relay.doctor.report import Actor, Area, Item, Status
from relay.doctor.seen import Seen, StunSeen, TurnSeen, Untested

STUN_PORT = 3478
VOICE = (Area.VOICE_UDP,)
_UNAUTHORIZED = 401


class UdpStun(Check):
    """UDP 3478 is open to each region.

    **Tested:** a STUN Binding at every TURN host that exists. A region is open if any of its hosts answers.

    **Why:** voice over UDP begins here. The client itself runs this test at login.

    **Change:** let UDP 3478 out to the vendor's networks, and its answers in.
    """

    code = "UDP-STUN"

    def items(self, plan: Plan, seen: Seen) -> Iterator[Item]:
        """One for each region."""
        if isinstance(seen.stun, Untested):
            yield self.item("UDP 3478", VOICE, Status.NOT_TESTED, seen.stun.why)
            return
        for region in dict.fromkeys(host.region for host in seen.stun):
            yield self._of_region(region, [host for host in seen.stun if host.region == region])

    def _of_region(self, region: str, hosts: Sequence[StunSeen]) -> Item:
        answered = [host.round_trip_ms for host in hosts if host.round_trip_ms is not None]
        silent = [host for host in hosts if host.round_trip_ms is None]
        if not answered:
            return self.item(f"region {region}", VOICE, Status.FAILED, f"none of {len(hosts)} hosts answers UDP")
        told = f"{min(answered):.0f} ms"
        if silent:
            told = f"no answer from {named([host.host for host in silent])}"
        return self.item(f"region {region}", VOICE, Status.WARNING if silent else Status.OK, told)

    def remedy(self, plan: Plan, seen: Seen, bad: Sequence[Item]) -> Remedy:
        """The firewall; or the vendor, if only some hosts are silent."""
        failed = [item.subject.removeprefix("region ") for item in bad if item.status is Status.FAILED]
        if not failed:
            return Remedy(Actor.VENDOR, "Other hosts of the same region answer. Tell the vendor if this stays.")
        change = f"Let UDP {STUN_PORT} out to the media networks, and the answers in."
        return Remedy(Actor.FIREWALL, change, rules.for_udp(plan.catalog, ports_of(plan, high=False), failed))


class UdpHighPorts(Check):
    """UDP 16384-65535 is open to each region, in both directions.

    **Tested:** a TURN allocation at one host of each region, then ten packets of the size of voice from another
    socket of this machine to the relayed port, and ten back. It needs credentials of TURN.

    **Why:** media goes to these ports. Where they are blocked and 3478 is not, calls connect without audio, and
    tests that ask only 3478 say that all is well.

    **Change:** let UDP 16384-65535 out to the vendor's networks, and its answers in.
    """

    code = "UDP-HIGH-PORTS"

    def items(self, plan: Plan, seen: Seen) -> Iterator[Item]:
        """One for each region."""
        if isinstance(seen.turn, Untested):
            yield self.item("UDP 16384-65535", VOICE, Status.NOT_TESTED, seen.turn.why)
            return
        for host in seen.turn:
            yield self._of_host(host)

    def _of_host(self, host: TurnSeen) -> Item:
        subject = f"region {host.region}"
        if host.code == _UNAUTHORIZED:
            told = f"{host.host} does not accept the credentials: {host.fault}"
            return self.item(subject, VOICE, Status.NOT_TESTED, told)
        if host.relayed is None:
            return self.item(subject, VOICE, Status.NOT_TESTED, f"no allocation at {host.host}: {host.fault}")
        port = f"port {host.relayed.port}"
        if not host.up or not host.down:
            blocked = "in both directions" if not host.up else "on the way back"
            return self.item(subject, VOICE, Status.FAILED, f"packets to {port} are lost {blocked}")
        told = f"{port}: {host.up} of {host.sent} up, {host.down} of {host.sent} down"
        lossy = min(host.up, host.down) < host.sent * 0.8
        return self.item(subject, VOICE, Status.WARNING if lossy else Status.OK, told)

    def remedy(self, plan: Plan, seen: Seen, bad: Sequence[Item]) -> Remedy:
        """The firewall."""
        failed = [item.subject.removeprefix("region ") for item in bad if item.status is Status.FAILED]
        if not failed:
            return Remedy(Actor.NETWORK, "Packets are lost. See how voice sounds (VOICE-QUALITY).")
        wanted = ports_of(plan, high=True)
        told = ", ".join(map(str, wanted))
        change = f"Let UDP {told} out to the media networks, and the answers in."
        return Remedy(Actor.FIREWALL, change, rules.for_udp(plan.catalog, wanted, failed))


def ports_of(plan: Plan, *, high: bool) -> list[Ports]:
    """The catalog's ports of UDP: those of media, or that of STUN."""
    found = [ports for ports in plan.catalog.ports if ports.protocol is Protocol.UDP]
    return [ports for ports in found if (ports.first > STUN_PORT) == high] or found
