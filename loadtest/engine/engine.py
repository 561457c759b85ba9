"""The packet engine for Python: an owned thread, numbers of clients and streams, and what happens to them."""

from __future__ import annotations

import contextlib
import select
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from types import TracebackType
from typing import Self

from loadtest.engine._engine import PacketEngine, TlsContext
from loadtest.engine.plans import TLS_VERSIONS, Carrier, ClientPlan, PlanError, StreamPlan, pack_address
from loadtest.engine.windows import COUNTERS, Histogram, StreamTotals, Window, stream_totals
from relay.addresses import Address, parse_address

MAX_CLIENTS = 10_000
MAX_STREAMS = 20_000
# As HappeningKind of engine.pxd numbers them.
_OPENED, _ENDED, _SILENCED = range(3)
# Happenings that are taken at once: some milliseconds of Python.
HAPPENINGS_AT_ONCE = 1000


class Phase(IntEnum):
    """What a client does, in this order; not each carrier has all."""

    CONNECTING = 0
    PROXY = 1
    TLS = 2
    UPGRADE = 3
    ALLOCATE = 4
    BIND = 5
    READY = 6
    ENDING = 7


class Cause(IntEnum):
    """Why a client has ended."""

    ASKED = 0
    RESOURCES = 1
    CONNECTION = 2
    PROXY = 3
    VERIFY = 4
    TLS = 5
    UPGRADE = 6
    STUN = 7
    SESSION = 8
    TIMEOUT = 9
    CLOSED = 10
    BROKEN = 11


@dataclass(frozen=True)
class Opened:
    """A client is ready, since ``at_s`` of ``time.monotonic``. ``seconds`` is how long each phase took."""

    client: int
    relayed: Address | None
    seconds: dict[Phase, float]
    at_s: float
    tls: str
    cipher: str


@dataclass(frozen=True)
class Ended:
    """A client is gone, and its number free. ``code`` is an errno, or a status of HTTP or STUN, as the cause has it."""

    client: int
    phase: Phase
    cause: Cause
    code: int
    words: str


@dataclass(frozen=True)
class Silenced(StreamTotals):
    """A stream is over: its totals. Its number is free."""

    stream: int


@dataclass(frozen=True)
class Moved:
    """The relay has found a session another upstream, and another relayed address."""

    client: int
    relayed: Address | None


Happening = Opened | Ended | Silenced | Moved


class Engine:
    """Runs inside ``with``. Its methods are for one thread, which is not the engine's own.

    ``event_fd`` is readable when there are happenings, at most twenty times a second. With ``tick_s`` the thread looks
    this often instead of being woken: a server that shares the machine does not pay for waking it.
    """

    def __init__(self, *, max_clients: int = MAX_CLIENTS, max_streams: int = MAX_STREAMS, tick_s: float = 0.0) -> None:
        self._native = PacketEngine(max_clients, max_streams, round(tick_s * 1e6))
        self._thread = threading.Thread(target=self._native.run, name="packet engine", daemon=True)
        self._clients = deque(range(max_clients))
        self._streams = deque(range(max_streams))
        self._contexts: dict[tuple[str | None, str], TlsContext] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._native.stop()
        self._thread.join()

    @property
    def event_fd(self) -> int:
        """For a loop to wait on."""
        return self._native.event_fd

    def wait(self, timeout_s: float) -> bool:
        """Wait for happenings, without a loop. Returns True if there are some."""
        waiting = select.poll()
        waiting.register(self._native.event_fd, select.POLLIN)
        return bool(waiting.poll(timeout_s * 1000))

    def open(self, plan: ClientPlan) -> int:
        """Open a client: its number. Raises PlanError, also if there are too many."""
        datagrams = plan.carrier in {Carrier.UDP, Carrier.PEER}
        context = None if datagrams else self._context(plan.authorities, plan.tls_version)
        server, texts = plan.socket_address(), plan.texts()
        peers = [pack_address(peer, "peers") for peer in plan.peers]
        kinds, times = (plan.wants_ipv6, plan.reflects), (plan.patience_s, plan.rebind_s)
        with _number(self._clients, "clients") as number:
            self._native.open(number, context, plan.carrier, server, *kinds, plan.lifetime_s, *times, texts, peers)
        return number

    def close(self, client: int) -> None:
        """Let a client go; ``Ended`` follows."""
        self._native.close(client)

    def bind(self, client: int, peer: Address) -> None:
        """Bind one more peer, to the next channel."""
        self._native.bind(client, pack_address(peer, "peer"))

    def talk(self, plan: StreamPlan) -> int:
        """Begin a stream: its number. Raises PlanError if there are too many."""
        receiver = plan.sender if plan.receiver is None else plan.receiver
        keys = plan.send_key, plan.send_key if plan.receive_key is None else plan.receive_key
        way = plan.sender, plan.peer, receiver
        with _number(self._streams, "streams") as number:
            self._native.talk(number, *way, plan.packet_bytes, plan.times_us(), plan.packets, *keys)
        return number

    def silence(self, stream: int) -> None:
        """Let a stream end; ``Silenced`` follows when all of it is heard, or lost."""
        self._native.silence(stream)

    def happenings(self) -> list[Happening]:
        """What has happened since, at most a thousand; then ``event_fd`` stays readable. Does not wait."""
        return [self._told(told) for told in self._native.take_happenings(HAPPENINGS_AT_ONCE)]

    def _told(self, told: tuple[int, int, int, int, int, tuple[int, ...], str]) -> Happening:
        kind, number, phase, cause, code, values, words = told
        if kind == _OPENED:
            return _opened(number, values, words)
        if kind == _ENDED:
            self._clients.append(number)
            return Ended(number, Phase(phase), Cause(cause), code, words)
        if kind == _SILENCED:
            self._streams.append(number)
            return Silenced(**vars(stream_totals(values)), stream=number)
        return Moved(number, parse_address(words) if words else None)

    def window(self, *, streams: bool = False) -> Window:
        """End the window of time that runs, and begin another one. Raises TimeoutError if the engine does not run.

        With ``streams`` it has the totals of at most 4096 streams that go on. The next window goes on after them.
        """
        elapsed_us, cpu_us, counters, histograms, shown = self._native.swap_window(streams)
        named = dict(zip(COUNTERS, counters, strict=True))
        delay, lateness, jitter = (Histogram(buckets) for buckets in histograms)
        totals = {number: stream_totals(values) for number, values in shown}
        return Window(elapsed_us / 1e6, cpu_us / 1e6, named, delay, lateness, jitter, totals)

    def _context(self, authorities: str | None, version: str) -> TlsContext:
        key = authorities, version
        if key not in self._contexts:
            path = None if authorities is None else authorities.encode()
            try:
                self._contexts[key] = TlsContext(path, TLS_VERSIONS[version])
            except ValueError as error:
                raise PlanError(f"authorities: {authorities}: {error}; expected a PEM file") from error
        return self._contexts[key]


@contextlib.contextmanager
def _number(numbers: deque[int], what: str) -> Iterator[int]:
    """A number that is free. It stays free if the block fails."""
    if not numbers:
        raise PlanError(f"{what}: expected fewer, the engine has no more room")
    number = numbers.popleft()
    try:
        yield number
    except BaseException:
        numbers.appendleft(number)
        raise


def _opened(number: int, values: tuple[int, ...], words: str) -> Opened:
    relayed, tls, cipher = words.split("\n")
    seconds = {one: values[one] / 1e6 for one in Phase if one < Phase.READY and values[one]}
    address = parse_address(relayed) if relayed else None
    return Opened(number, address, seconds, values[Phase.READY] / 1e6, tls, cipher)
