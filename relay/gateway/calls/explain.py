"""What became of a call, in plain sentences: how it sounded, where voice was lost, what was dropped, and who closed it.

Each rule looks at what the API tells of one call, and says a sentence, or nothing. A rule claims only what the figures
show. The uplink is measured as it comes from the client, over TCP; the downlink as it leaves to the client, after the
queue. So what is missing in the uplink was lost before the relay. What is missing in the downlink was lost on the
upstream's side, unless the relay itself has dropped it because the client did not read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from types import MappingProxyType
from typing import Any

from relay.gateway.calls.call import BAD_MOS
from relay.plane.api import CloseReason, DropReason

Json = Mapping[str, Any]

# A share that can be heard, with concealment, is about ten times this.
WORTH_TELLING_PERCENT = 0.1
# Voice that waits this long is late for a jitter buffer of the usual size.
LONG_QUEUE_MS = 60.0
# With a jitter buffer and packetisation, more than this takes a call out of the best category (G.107: 150 ms one way).
LONG_RTT_MS = 100.0
# Recorders of trader voice ask for at most this.
HIGH_JITTER_MS = 30.0
# Bad times that are listed. More would not be read.
MAX_PERIODS = 3
_DROPPED_FOR_THE_CLIENT = (DropReason.DOWNLINK_OLD, DropReason.DOWNLINK_FULL)
_FROM_TO = {"uplink": "from the client", "downlink": "to the client"}


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence, and the name of the rule that said it."""

    rule: str
    text: str


@dataclass(frozen=True, slots=True)
class Told:
    """A call as ``/api/calls/ID`` tells it, and the zone in which times are said."""

    call: Json
    zone: tzinfo

    @property
    def has_voice(self) -> bool:
        """Whether RTP was seen, in any direction."""
        return any(self.whole(way).get("expected") for way in _FROM_TO)

    def clock(self, unix_s: float) -> str:
        """A time of day."""
        return f"{datetime.fromtimestamp(unix_s, self.zone):%H:%M:%S}"

    def whole(self, way: str) -> Json:
        """The figures of the whole call, one way; empty if it carried no voice."""
        return (self.call["whole_call"] or {}).get(way) or {}

    def lost(self, way: str) -> tuple[int, float]:
        """How many packets never came, and their share in percent."""
        percent = self.whole(way).get("lost_percent") or 0.0
        return round(self.whole(way).get("expected", 0) * percent / 100), percent

    def column(self, *names: str) -> list[tuple[float, float]]:
        """The known values of a column of the timeline, each with its time."""
        windows = self.call["windows"]
        if windows is None:
            return []
        values = windows
        for name in names:
            values = values[name]
        return [(at, value) for at, value in zip(windows["at"], values, strict=True) if value is not None]

    def worst(self, *names: str) -> tuple[float, float] | None:
        """The highest value of a column, with its time."""
        return max(self.column(*names), key=lambda one: one[1], default=None)

    def when(self, *names: str) -> str:
        """When the highest value was, in words; empty if it is nothing."""
        worst = self.worst(*names)
        return "" if worst is None or worst[1] <= 0 else f", most of it around {self.clock(worst[0])}"


Rule = Callable[[Told], str]


def explain(call: Json, zone: tzinfo) -> list[Sentence]:
    """What all the rules say of a call, in the order in which people ask."""
    told = Told(call, zone)
    said = [Sentence(rule.__name__, text) for rule in (*_HEAD, *_CAUSES, *_TAIL) if (text := rule(told))]
    causes = {rule.__name__ for rule in _CAUSES}
    if told.has_voice and not any(one.rule in causes for one in said):
        said.insert(len(said) - len(_TAIL), Sentence("nothing_seen", NOTHING_SEEN))
    return said


NOTHING_SEEN = (
    "Between the client and the upstream the relay saw nothing wrong. It cannot see what happens beyond the upstream, "
    "or in the client's own sound."
)


# Who, when, and how it sounded


def who(told: Told) -> str:
    """Whose call it was, and where it went."""
    call = told.call
    user = call["username"] or "A client without a user name"
    name = f", asking for {call['server_name']}" if call["server_name"] else ""
    # Calls that were kept by earlier versions do not have it.
    certificate = f", with the certificate of {call['client_certificate']}" if call.get("client_certificate") else ""
    region = f" in {call['region']}" if call["region"] else ""
    where = f"the upstream {call['upstream']}{region}" if call["upstream"] else "an address that the client named"
    return f"{user} called from {call['client']}{certificate}{name}. The call went to {where}, over {call['carrier']}."


def when(told: Told) -> str:
    """When it began and ended."""
    began = datetime.fromisoformat(told.call["started_at"]).timestamp()
    day = f"{datetime.fromtimestamp(began, told.zone):%A, %d %B %Y}"
    lasted = _duration(told.call["age_s"])
    if told.call["ended"] is None:
        return f"It began at {told.clock(began)} on {day}, and has gone on for {lasted}."
    ended = datetime.fromisoformat(told.call["ended"]["at"]).timestamp()
    return f"It began at {told.clock(began)} on {day}, and ended at {told.clock(ended)}, after {lasted}."


def sound(told: Told) -> str:
    """Whether it sounded good, and where it was worst."""
    if not told.has_voice:
        return "It carried no voice."
    scores = [(score, way) for way in _FROM_TO if (score := told.whole(way).get("mos_min")) is not None]
    if not scores:
        return "How it sounded is not known: there was too little voice, or nobody has told the relay its clock rate."
    lowest, way = min(scores)
    if lowest >= BAD_MOS:
        return f"It sounded good: the lowest MOS of any five seconds was {lowest:.2f}."
    column = told.column(way, "mos")
    at = min(column, key=lambda one: one[1])[0] if column else None
    around = "" if at is None else f", around {told.clock(at)}"
    return f"It sounded bad: the lowest MOS was {lowest:.2f}, in the voice {_FROM_TO[way]}{around}."


def bad_periods(told: Told) -> str:
    """From when to when it was bad, if it was not bad all the time."""
    found = list(_bad_periods(told))
    longest = sorted(sorted(found, key=lambda one: one[0] - one[1])[:MAX_PERIODS])
    if not longest:
        return ""
    said = ", ".join(f"from {told.clock(start)} to {told.clock(end)}" for start, end in longest)
    more = f", and at {len(found) - len(longest)} more times" if len(found) > len(longest) else ""
    return f"It was bad {said}{more}."


def _bad_periods(told: Told) -> Iterator[tuple[float, float]]:
    windows = told.call["windows"]
    if windows is None:
        return
    start: float | None = None
    before = None
    for at, up, down in zip(windows["at"], windows["uplink"]["mos"], windows["downlink"]["mos"], strict=True):
        is_bad = any(mos is not None and mos < BAD_MOS for mos in (up, down))
        if is_bad and start is None:
            start = at - told.call["window_s"] if before is None else before
        elif not is_bad and start is not None:
            yield start, before or at
            start = None
        before = at
    if start is not None and before is not None:
        yield start, before


# Causes


def one_way(told: Told) -> str:
    """Voice in one direction only."""
    up, down = (told.whole(way).get("expected", 0) for way in _FROM_TO)
    if bool(up) == bool(down):
        return ""
    if up:
        return "No voice came from the upstream: the other side sent none, or it was lost before it reached the relay."
    return "No voice came from the client: it sent none, or its voice took another way."


def uplink_lost(told: Told) -> str:
    """Voice that never came from the client."""
    packets, percent = told.lost("uplink")
    if percent < WORTH_TELLING_PERCENT:
        return ""
    said = f"Of the voice from the client {percent:.1f} % never came ({packets} packets)"
    return said + (
        f"{told.when('uplink', 'lost_percent')}. It was lost on the client's side, before the relay: in the client "
        "itself, or on its way to the web proxy. TCP, which brings it here, loses nothing."
    )


def uplink_late(told: Told) -> str:
    """Voice that TCP has held back on the way from the client."""
    percent = told.whole("uplink").get("late_percent") or 0.0
    if percent < WORTH_TELLING_PERCENT:
        return ""
    return (
        f"Of the voice from the client {percent:.1f} % came too late to be played"
        f"{told.when('uplink', 'late_percent')}. The client's link held it back: a lost segment of TCP holds up all "
        "that comes after it."
    )


def downlink_lost(told: Told) -> str:
    """Voice that the client did not get: lost on the upstream's side, or dropped for a client that does not read."""
    packets, percent = told.lost("downlink")
    if percent < WORTH_TELLING_PERCENT:
        return ""
    said = f"Of the voice to the client {percent:.1f} % was missing ({packets} packets)"
    said += f"{told.when('downlink', 'lost_percent')}. "
    media = told.call["drops_by_traffic"].get("media", 0)
    of_user = told.call["drops"].get(DropReason.DOWNLINK_USER_RATE.value, 0)
    beyond = min(packets, told.call["drops"].get(DropReason.DOWNLINK_RATE.value, 0) + of_user, media)
    if beyond:
        whose = "one flow, or all flows of this user," if of_user else "one flow"
        said += f"The relay dropped {beyond} of them, because more came in a second than {whose} may carry. "
        packets, media = packets - beyond, media - beyond
    if not packets:
        return said.rstrip()
    drops = sum(told.call["drops"].get(reason.value, 0) for reason in _DROPPED_FOR_THE_CLIENT)
    dropped = min(packets, drops, media)
    if not dropped and beyond:
        return said + "The others were lost on the upstream's side: they did not reach the relay."
    if not dropped:
        return said + (
            "It was lost on the upstream's side: it did not reach the relay. Look at the way between upstream and "
            "relay (UDP), and beyond."
        )
    if 2 * dropped >= packets:
        return said + (
            f"The relay dropped {dropped} of them, because the client did not take them in time: the trouble is the "
            "client's link, or the client itself."
        )
    return said + (
        f"The relay dropped {dropped} of them, because the client did not take them in time. The others were lost on "
        "the upstream's side: they did not reach the relay."
    )


def downlink_late(told: Told) -> str:
    """Voice that the client got too late."""
    percent = told.whole("downlink").get("late_percent") or 0.0
    if percent < WORTH_TELLING_PERCENT:
        return ""
    said = f"Of the voice to the client {percent:.1f} % left too late to be played"
    said += f"{told.when('downlink', 'late_percent')}. "
    queue = told.worst("queue_ms")
    if queue is not None and queue[1] >= LONG_QUEUE_MS:
        return said + "It had waited in the relay until the client took it: the client's link was too slow for it."
    return said + "It came late from the upstream's side; in the relay it hardly waited."


def queue(told: Told) -> str:
    """A client that took its voice slowly."""
    worst = told.worst("queue_ms")
    if worst is None or worst[1] < LONG_QUEUE_MS:
        return ""
    return (
        f"Voice waited for the client, up to {worst[1]:.0f} ms around {told.clock(worst[0])}: its link, or the client "
        "itself, was slow."
    )


def jitter(told: Told) -> str:
    """Packets that came unevenly."""
    found = [
        f"{_FROM_TO[way]} ({mean:.0f} ms)"
        for way in _FROM_TO
        if (mean := told.whole(way).get("jitter_ms")) is not None and mean >= HIGH_JITTER_MS
    ]
    return f"The voice {' and '.join(found)} came unevenly: this is its mean jitter." if found else ""


def client_link(told: Told) -> str:
    """What TCP says of the way to the client."""
    link = told.call["link"] or {}
    worst = told.worst("rtt_ms")
    rtt_ms = max(link.get("rtt_ms", 0.0), 0.0 if worst is None else worst[1])
    said = []
    if link.get("retransmits"):
        said.append(f"the relay had to send {link['retransmits']} segments to it again")
    if rtt_ms >= LONG_RTT_MS:
        said.append(f"its round trip was up to {rtt_ms:.0f} ms")
    return f"The client's link was not good: {', and '.join(said)}." if said else ""


def dropped(told: Told) -> str:
    """What was dropped, and why."""
    said = [
        f"{count} {_packets(count)}: {DROPS[DropReason(reason)]}"
        for reason, count in told.call["drops"].items()
        if reason in _KNOWN_DROPS and count
    ]
    return f"The relay dropped {'; '.join(said)}." if said else ""


def upstream_slow(told: Told) -> str:
    """STUN that had to be sent again."""
    count = told.call["retransmissions"]
    if not count:
        return ""
    return (
        f"{count} STUN {'request' if count == 1 else 'requests'} to the upstream had to be sent again: UDP on the "
        "upstream's side loses packets, or the upstream answers slowly."
    )


# The end


def end(told: Told) -> str:
    """Who closed it, and why."""
    ended = told.call["ended"]
    if ended is None:
        return "It is still running."
    said = ENDS.get(ended["reason"], f"It ended as {ended['reason']}")
    detail = f" ({ended['detail']})" if ended["detail"] else ""
    return f"{said}{detail}."


ENDS: Mapping[str, str] = MappingProxyType(
    {
        CloseReason.CLIENT_CLOSED: "The client closed it in the usual way",
        CloseReason.CLIENT_LOST: "The client was lost: its connection was reset, or it no longer answered",
        CloseReason.HANDSHAKE_FAILED: "TLS with the client was never set up",
        CloseReason.TLS_BROKEN: "The relay closed it, because the client's TLS was broken",
        CloseReason.TLS_FLOOD: "The relay closed it, because the client sent TLS records without data",
        CloseReason.FIRST_BYTES_TIMEOUT: "The relay closed it, because the client did not say in time what it wants",
        CloseReason.FIRST_BYTES_UNKNOWN: "The relay closed it, because the client spoke neither TURN nor HTTP",
        CloseReason.NO_ALLOCATION: "The relay closed it, because the client had no allocation at the upstream",
        CloseReason.BROKEN_FRAME: "The relay closed it, because the client's stream broke the rules",
        CloseReason.SLOW_CLIENT: "The relay closed it, because the client did not read what must not be dropped",
        CloseReason.RESUMED: "The client came back on another connection, where the call went on",
        CloseReason.UPSTREAM_UNREACHABLE: "The relay closed it, because the upstream could not be reached",
        CloseReason.UPSTREAM_SILENT: "The relay closed it, because the upstream no longer answered",
        CloseReason.NO_UPSTREAM: "The relay closed it, because no upstream was up that this client may use",
        CloseReason.HTTP_CLOSED: "Its HTTP connection came to its end",
        CloseReason.NETWORK_REFUSED: "The relay refused it, because it does not serve the client's network",
        CloseReason.TOO_MANY_CONNECTIONS: "The relay closed it, because there were too many connections",
        CloseReason.TOO_MANY_HANDSHAKES: "The relay refused it, because too many connections came in one second",
        CloseReason.TOO_MANY_FLOWS: "The relay closed it, because its source had too many flows without an allocation",
        CloseReason.NO_DESCRIPTORS: "The relay closed it, because the machine had no file descriptors or memory left",
        CloseReason.NO_MEMORY: "The relay refused it, because memory was short",
        CloseReason.CONTROL_TIMEOUT: "The relay closed it, because its own control plane did not keep up",
        CloseReason.NOT_ENTITLED: "The relay closed it, because this user may not place the call",
        CloseReason.DRAINING: "The relay refused it, because it was about to stop",
        CloseReason.STOPPED: "It ended with the relay, which was stopped",
    }
)

DROPS: Mapping[DropReason, str] = MappingProxyType(
    {
        DropReason.DOWNLINK_FULL: "more waited for the client than it may hold",
        DropReason.DOWNLINK_OLD: "they waited for the client until they were worth nothing",
        DropReason.DOWNLINK_MALFORMED: "the upstream sent something that is not of its protocol",
        DropReason.UPLINK_MALFORMED: "the client sent something that is not media",
        DropReason.UPLINK_OVERSIZE: "the client's packets were longer than the way to the upstream carries",
        DropReason.UPLINK_FULL: "the network card had no room for the client's packets",
        DropReason.DOWNLINK_RATE: "more came from the upstream in a second than one flow may carry",
        DropReason.UPLINK_RATE: "more came from the client in a second than one flow may carry",
        DropReason.DOWNLINK_USER_RATE: "more came in a second than all calls of this user may carry together",
        DropReason.UPLINK_USER_RATE: "more went out in a second than all calls of this user may carry together",
        DropReason.UPLINK_REFUSED: "this machine did not send the client's packets (a packet filter, no route, a link "
        "that is down)",
    }
)
# A second answer to a request that was sent again tells nothing more.
HARMLESS_DROPS = frozenset({DropReason.DOWNLINK_DUPLICATE})
_KNOWN_DROPS = frozenset(reason.value for reason in DROPS)

_HEAD: tuple[Rule, ...] = (who, when, sound, bad_periods)
_CAUSES: tuple[Rule, ...] = (
    one_way,
    uplink_lost,
    uplink_late,
    downlink_lost,
    downlink_late,
    queue,
    jitter,
    client_link,
    dropped,
    upstream_slow,
)
_TAIL: tuple[Rule, ...] = (end,)


def rules() -> Iterable[Rule]:
    """All rules, in their order."""
    return (*_HEAD, *_CAUSES, *_TAIL)


def zone_name(zone: tzinfo, unix_s: float) -> str:
    """How far a zone is from UTC at that time: ``UTC+01:00``."""
    offset = datetime.fromtimestamp(unix_s, zone).utcoffset() or timedelta()
    minutes = round(offset.total_seconds() / 60)
    sign = "-" if minutes < 0 else "+"
    return "UTC" if not minutes else f"UTC{sign}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}"


def _packets(count: int) -> str:
    return "packet" if count == 1 else "packets"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    parts = [(hours, "hour"), (minutes, "minute"), (rest, "second")]
    said = [f"{count} {word}{'' if count == 1 else 's'}" for count, word in parts if count][:2]
    return " and ".join(said) or "less than a second"
