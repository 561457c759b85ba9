"""A WAN on one machine: two network namespaces, a TUN device in each, and a thread that carries packets between them.

    async with wan(Link(delay_s=0.02, loss=0.01)) as line:
        listener = line.server_ns.socket()
        listener.bind((line.server_address, 0))
        ...
        line.downlink.stall(3)

It needs root and /dev/net/tun, but no netem: ``netns.refusal()`` says why there can be none. Packets are never early.
They are late by up to a millisecond, and by what the machine takes to run the thread.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import select
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from relay.demo.wan.link import Link, LinkCounters, LinkModel
from relay.demo.wan.netns import MTU_BYTES, Namespace

# RFC 2544 appendix C.2.2: addresses for benchmarks, that no real network has.
CLIENT_ADDRESS = "198.18.0.1"
SERVER_ADDRESS = "198.18.0.2"
NETMASK = "255.255.255.252"
DEVICE = "wan0"
# Packets read in one go before others have their turn.
BATCH_PACKETS = 64


class Direction:
    """One direction of a running WAN; all of it may be called from any thread, and takes effect at once."""

    def __init__(self, link: Link, seed: int, forwarder: _Forwarder) -> None:
        self._model = LinkModel(link, seed)
        self._forwarder = forwarder

    @property
    def link(self) -> Link:
        """What it does to packets now."""
        return self._model.link

    def change(self, **changes: Any) -> None:
        """Change fields of ``link``. Raises TypeError for unknown ones, ValueError for what no link is like."""
        link = dataclasses.replace(self._model.link, **changes)
        with self._forwarder.changing() as now:
            self._model.change(link, now)

    def stall(self, seconds: float = math.inf) -> None:
        """Send nothing on for this long, or until ``release``. What comes then waits in the queue, up to its bound."""
        with self._forwarder.changing() as now:
            self._model.stall(seconds, now)

    def release(self) -> None:
        """End a stall."""
        with self._forwarder.changing() as now:
            self._model.release(now)

    @property
    def counters(self) -> LinkCounters:
        """What became of packets until now, as a copy."""
        with self._forwarder.changing():
            return dataclasses.replace(self._model.counters)


class Wan:
    """Both ends and both directions. ``uplink`` is from the client's namespace to the server's."""

    client_address = CLIENT_ADDRESS
    server_address = SERVER_ADDRESS

    def __init__(self, client_ns: Namespace, server_ns: Namespace, uplink: Direction, downlink: Direction) -> None:
        self.client_ns = client_ns
        self.server_ns = server_ns
        self.uplink = uplink
        self.downlink = downlink

    def stall(self, seconds: float = math.inf) -> None:
        """Stall both directions, as an interruption of the line does."""
        self.uplink.stall(seconds)
        self.downlink.stall(seconds)

    def release(self) -> None:
        """End the stalls of both directions."""
        self.uplink.release()
        self.downlink.release()


class _Forwarder:
    """Carries packets between descriptors of TUN devices, in a thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wake_up = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._ways: list[tuple[int, int, LinkModel]] = []  # (from, to, model)
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="wan")

    @contextlib.contextmanager
    def changing(self) -> Iterator[float]:
        """The time now, while nobody else looks at the models; the thread looks again afterwards."""
        with self._lock:
            yield time.monotonic()
            # A WAN that has ended still tells its counters.
            if not self._stopping:
                os.eventfd_write(self._wake_up, 1)

    def start(self, ways: list[tuple[int, int, LinkModel]]) -> None:
        self._ways = ways
        self._thread.start()

    def stop(self) -> None:
        """End the thread and wait for it; the devices' descriptors stay their owner's."""
        with self.changing():
            self._stopping = True
            os.eventfd_write(self._wake_up, 1)
        if self._thread.ident is not None:
            self._thread.join()
        os.close(self._wake_up)

    def _run(self) -> None:
        with select.epoll() as poller:
            for fd in [self._wake_up, *(source for source, _, _ in self._ways)]:
                poller.register(fd, select.EPOLLIN)
            while not self._stopping:
                deadline = self._carry()
                # Rounded up to milliseconds: never early.
                poller.poll(None if deadline == math.inf else max(0.0, deadline - time.monotonic()))
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wake_up)

    def _carry(self) -> float:
        """Read what there is, write what has arrived; when there is more to do, 0 for at once."""
        more = False
        with self._lock:
            for source, target, model in self._ways:
                more |= _read(source, model)
                for packet in model.take(time.monotonic()):
                    # A device refuses what its own end is not up for, or has no memory for: a link loses that.
                    with contextlib.suppress(OSError):
                        os.write(target, packet)
            return 0.0 if more else min(model.next_deadline() for _, _, model in self._ways)


def _read(source: int, model: LinkModel) -> bool:
    """Take in packets; true if there may be more."""
    for _ in range(BATCH_PACKETS):
        try:
            packet = os.read(source, MTU_BYTES)
        except BlockingIOError:
            return False
        model.offer(packet, time.monotonic())
    return True


@contextlib.contextmanager
def open_wan(uplink: Link | None = None, downlink: Link | None = None, *, seed: int = 1) -> Iterator[Wan]:
    """A WAN that ends with the block. ``downlink`` is like ``uplink`` by default, ``uplink`` is perfect by default.

    Processes inside are their owners' to end; ``Namespace.process`` does. Raises OSError where it is not permitted.
    """
    uplink = uplink or Link()
    with contextlib.ExitStack() as stack:
        client_ns, server_ns = (stack.enter_context(Namespace()) for _ in range(2))
        client_tun = client_ns.open_tun(DEVICE, CLIENT_ADDRESS, NETMASK)
        stack.callback(os.close, client_tun)
        server_tun = server_ns.open_tun(DEVICE, SERVER_ADDRESS, NETMASK)
        stack.callback(os.close, server_tun)
        forwarder = _Forwarder()
        stack.callback(forwarder.stop)
        # Two seeds, or both directions would lose packets of the same numbers.
        up, down = Direction(uplink, 2 * seed, forwarder), Direction(downlink or uplink, 2 * seed + 1, forwarder)
        forwarder.start([(client_tun, server_tun, up._model), (server_tun, client_tun, down._model)])
        yield Wan(client_ns, server_ns, up, down)


@contextlib.asynccontextmanager
async def wan(uplink: Link | None = None, downlink: Link | None = None, *, seed: int = 1) -> AsyncIterator[Wan]:
    """``open_wan`` for coroutines; to open and to close it takes a few milliseconds."""
    with open_wan(uplink, downlink, seed=seed) as line:
        yield line
