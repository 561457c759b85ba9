"""Clients of the packet engine, in two groups: those that a fault is to strike, and the others.

Each group has a server name, and with it a region and an upstream of its own.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from loadtest.bench.servers import HOST, BenchError
from loadtest.bench.waiting import LOOK_S, wait_until
from loadtest.engine.engine import Cause, Ended, Engine, Opened, Silenced
from loadtest.engine.plans import Carrier, ClientPlan, StreamPlan
from loadtest.engine.windows import Histogram
from relay.addresses import Address

OTHERS, STRUCK = "others", "struck"
# A session has its upstream changed when it is lost, so those that are to feel a fault are none.
CARRIERS = {
    OTHERS: (Carrier.TLS, Carrier.WEBSOCKET, Carrier.SESSION, Carrier.CONNECT_UDP),
    STRUCK: (Carrier.TLS, Carrier.WEBSOCKET),
}
PACKETS_PER_SECOND = 50
# A packet that comes later is lost. An upstream that was stopped may send what it has 3 s later.
PATIENCE_S = 5.0
SETUP_TIMEOUT_S = 60.0
# A newcomer tries again at once, as a client does that has been cut off.
AGAIN_S = 0.02
ATTEMPT_S = 2.0
NEWCOMER_TIMEOUT_S = 15.0
# Of a short call: enough to be one.
SHORT_PACKETS = 10
# ``Engine.window`` costs little, and a tenth of what a listener notices is soon enough.
HEARD_LOOK_S = 0.005
WRONG = ("corrupt", "misrouted", "foreign", "duplicate", "reordered", "forged")


@dataclass
class Line:
    """A call: its group, the stream that it has now, and whether it was cut off."""

    group: str
    ready: bool = False
    stream: int | None = None
    cut: bool = False


class Calls:
    """The clients of one engine."""

    def __init__(self, engine: Engine, port: int, upstreams: Mapping[str, Address]) -> None:
        self.engine = engine
        self.counters: Counter[str] = Counter()
        # How late the engine itself was.
        self.lateness = Histogram()
        # What has been counted of the streams of a group that are over.
        self.totals: dict[str, Counter[str]] = {group: Counter() for group in CARRIERS}
        self._placed: list[Line] = []
        self._port, self._upstreams = port, upstreams
        self._clients: dict[int, Line] = {}
        self._streams: dict[int, Line] = {}

    def begin_anew(self) -> None:
        """Forget what has been counted so far."""
        self.window()
        self.counters.clear()
        self.lateness.clear()
        for total in self.totals.values():
            total.clear()

    # What happens

    def take(self, wait_s: float = 0.0) -> None:
        """Note what has happened."""
        self.engine.wait(wait_s)
        for one in self.engine.happenings():
            if isinstance(one, Opened) and one.client in self._clients:
                self._clients[one.client].ready = True
            elif isinstance(one, Ended) and one.client in self._clients:
                self._clients.pop(one.client).cut = one.cause is not Cause.ASKED
            elif isinstance(one, Silenced):
                self._on_silenced(one)

    def _on_silenced(self, one: Silenced) -> None:
        line = self._streams.pop(one.stream)
        line.stream = None
        self.totals[line.group].update(
            {"due": one.sent + one.unsent, "sent": one.sent, "received": one.received, "duplicate": one.duplicate}
        )

    def sleep(self, seconds: float) -> None:
        """Note what happens meanwhile."""
        until = time.monotonic() + seconds
        while (left_s := until - time.monotonic()) > 0:
            self.take(min(left_s, 0.1))

    # Calls

    def _plan(self, group: str, carrier: Carrier, patience_s: float) -> ClientPlan:
        # A session has no challenge, and says them at once.
        username = "bench" if carrier is Carrier.SESSION else ""
        return ClientPlan(
            Address(HOST, self._port),
            carrier,
            username,
            username,
            (Address(HOST, 9),),
            server_name=f"{group}.bench.test",
            upstream=self._upstreams[group] if carrier is Carrier.CONNECT_UDP else None,
            patience_s=patience_s,
        )

    def _open(self, group: str, number: int, patience_s: float) -> tuple[int, Line]:
        """Begin a call; the carriers take turns."""
        carrier = CARRIERS[group][number % len(CARRIERS[group])]
        client, line = self.engine.open(self._plan(group, carrier, patience_s)), Line(group)
        self._clients[client] = line
        return client, line

    def place(self, wanted: Mapping[str, int]) -> None:
        """Place this many calls of each group, which stay. Raises BenchError if one is not served."""
        lines = [
            self._open(group, number, SETUP_TIMEOUT_S)[1] for group, count in wanted.items() for number in range(count)
        ]
        deadline = time.monotonic() + SETUP_TIMEOUT_S
        while not all(line.ready for line in lines):
            self.take(LOOK_S)
            if time.monotonic() > deadline or any(line.cut for line in lines):
                raise BenchError("a call is not served while nothing happens")
        self._placed += lines

    def cut(self, group: str) -> int:
        """How many calls of a group were cut off, of those that were placed."""
        return sum(line.cut and line.group == group for line in self._placed)

    def newcomer_s(self, group: str, timeout_s: float = NEWCOMER_TIMEOUT_S, *, packets: int = 0) -> float | None:
        """How long until a newcomer is served, who tries again and again; None if they are not.

        They say this many packets, and leave.
        """
        began = time.monotonic()
        while (left_s := timeout_s - (time.monotonic() - began)) > 0:
            client, line = self._open(group, 0, min(ATTEMPT_S, left_s))
            while client in self._clients and not line.ready:
                self.take(LOOK_S)
            if line.ready:
                took_s = time.monotonic() - began
                self._say_and_leave(client, line, packets)
                return took_s
            self.sleep(AGAIN_S)
        return None

    def _say_and_leave(self, client: int, line: Line, packets: int) -> None:
        if packets:
            stream = self.engine.talk(
                StreamPlan(client, interval_s=1 / PACKETS_PER_SECOND, patience_s=PATIENCE_S, packets=packets)
            )
            # Not among the calls that are counted.
            self._streams[stream] = line
            self.totals.setdefault(f"newcomers of {line.group}", Counter())
            line.group = f"newcomers of {line.group}"
            self._until(lambda: stream not in self._streams)
        self.engine.close(client)
        self._until(lambda: client not in self._clients)

    def _until(self, condition: Callable[[], bool]) -> None:
        def has_come() -> bool:
            self.take()
            return condition()

        wait_until(has_come, "a client, or a stream, does not end", 3 * PATIENCE_S)

    # Voice

    def talk(self) -> None:
        """Begin a stream on each call that has none."""
        for client, line in self._clients.items():
            if line.ready and line.stream is None:
                plan = StreamPlan(client, interval_s=1 / PACKETS_PER_SECOND, patience_s=PATIENCE_S)
                line.stream = self.engine.talk(plan)
                self._streams[line.stream] = line

    def silence(self) -> None:
        """End all streams, and wait until all of them is heard or lost."""
        for stream in self._streams:
            self.engine.silence(stream)
        self._until(lambda: not self._streams)
        self.window()

    def window(self) -> dict[int, int]:
        """Add up the counters; how many packets each stream has had."""
        window = self.engine.window(streams=True)
        self.counters.update(window.counters)
        self.lateness.update(window.lateness)
        return {number: totals.received for number, totals in window.streams.items()}

    def heard_again_s(self) -> float | None:
        """How long until all calls that run have heard something new; None if one does not."""
        began, before = time.monotonic(), self.window()
        waiting = self._talking() & set(before)
        while waiting:
            if time.monotonic() - began > NEWCOMER_TIMEOUT_S:
                return None
            self.take(HEARD_LOOK_S)
            now = self.window()
            waiting = {one for one in waiting & self._talking() if now.get(one, 0) <= before[one]}
        return time.monotonic() - began

    def _talking(self) -> set[int]:
        return {line.stream for line in self._clients.values() if line.stream is not None}

    @property
    def late_p99_us(self) -> int:
        """How late packets have left, for all but one in a hundred."""
        return self.lateness.percentile(99) or 0

    @property
    def heard_late(self) -> int:
        """Packets that came much later than they were sent."""
        return self.counters["late"]

    @property
    def wrong(self) -> int:
        """Packets that came to the wrong client, twice, out of order, or not as they were sent."""
        return sum(self.counters[kind] for kind in WRONG)

    def close(self) -> None:
        """Let all go."""
        for client in list(self._clients):
            self.engine.close(client)
        self._until(lambda: not self._clients)
