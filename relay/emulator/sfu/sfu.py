"""Opens hoots, and has the thread that carries their packets: its commands, its events, and its end."""

from __future__ import annotations

import asyncio
import ipaddress
import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

import structlog

from relay.addresses import Address
from relay.emulator.sfu import _fanout
from relay.emulator.sfu.hoot import Hoot, HootError
from relay.emulator.turn.sockets import open_udp_socket
from relay.errors import OperatorError
from relay.tasks import in_daemon_thread

log = structlog.get_logger()

# As long as consent to receive lasts without a sign of life (RFC 7675 section 5.1).
VANISH_S = 30.0
# Commands that wait for a thread that does not keep up. A full hoot that everyone joins and leaves at once takes 1,600.
MAX_WAITING = 65536
# One for each subscriber of a full hoot takes 800. A power of two.
COMMANDS = 4096
# How soon they are tried again. The thread takes 4,096 commands in a few milliseconds.
TRY_AGAIN_S = 0.005


class Sfu:
    """The emulator's SFU, on one address. Use it as a context manager, or ``start`` it once and ``stop`` it.

    ``on_key`` is called when a hoot has a new key, which everyone in it is to be told. ``on_vanished`` is called when a
    subscriber gave no sign of life for ``vanish_s``; they are out of the hoot by then. Raises OperatorError for an
    address that is not loopback, unless ``exposed``.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        *,
        on_key: Callable[[Hoot], None] = lambda hoot: None,
        on_vanished: Callable[[Hoot, str], None] = lambda hoot, user_id: None,
        vanish_s: float = VANISH_S,
        exposed: bool = False,
    ) -> None:
        if not exposed and not ipaddress.ip_address(host).is_loopback:
            raise OperatorError(f"SFU on {host}: not a loopback address; it would be open to others")
        self._host = host
        self._on_key = on_key
        self._on_vanished = on_vanished
        self._vanish_s = vanish_s
        self._lines: dict[str, Hoot] = {}
        # By room, also those closed ones whose socket the thread still has.
        self._hoots: dict[int, Hoot] = {}
        self._rooms: dict[Hoot, int] = {}
        self._waiting: deque[tuple[str, int, tuple[int | float, ...]]] = deque()
        self._again: asyncio.TimerHandle | None = None
        self._fanout: _fanout.Fanout | None = None
        self._thread: threading.Thread
        self._loop: asyncio.AbstractEventLoop

    async def start(self) -> None:
        """Start the thread."""
        self._loop = asyncio.get_running_loop()
        self._fanout = fanout = _fanout.Fanout(COMMANDS)
        self._loop.add_reader(fanout.event_fd, self._take_events)
        self._thread = threading.Thread(target=fanout.run, name="sfu", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """End all hoots and the thread. May be repeated."""
        fanout = self._fanout
        if fanout is None:
            return
        for hoot in self._lines.copy().values():
            hoot.close()
        self._fanout = None
        self._loop.remove_reader(fanout.event_fd)
        if self._again is not None:
            self._again.cancel()
            self._again = None
        fanout.stop()
        await in_daemon_thread(self._thread.join, "sfu join")
        for hoot in self._hoots.values():
            hoot.release()
        self._hoots.clear()
        self._rooms.clear()
        self._waiting.clear()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    # Hoots

    @property
    def hoots(self) -> dict[str, Hoot]:
        """The open hoots, by line."""
        return dict(self._lines)

    def open(self, line: str) -> Hoot:
        """Open a hoot for this line. Raises HootError if it has one, or if there are too many or no socket."""
        if self._fanout is None:
            raise HootError(f"{line}: the SFU does not run")
        if line in self._lines:
            raise HootError(f"{line}: the line has a hoot already")
        room = next((number for number in range(_fanout.MAX_ROOMS) if number not in self._hoots), None)
        if room is None:
            raise HootError(f"{line}: {_fanout.MAX_ROOMS} hoots are open, which is the limit")
        self.require_room()
        try:
            opened = open_udp_socket(Address(self._host, 0))
        except OSError as error:
            raise HootError(f"{line}: no socket for the hoot: {error.strerror}") from error
        hoot = self._lines[line] = self._hoots[room] = Hoot(line, opened, self)
        self._rooms[hoot] = room
        self._put("open", room, opened.fileno(), self._vanish_s)
        return hoot

    # What hoots ask for

    def require_room(self) -> None:
        """Raise HootError if the thread does not keep up with its commands."""
        if len(self._waiting) >= MAX_WAITING:
            raise HootError("the SFU does not keep up: expected fewer changes at a time")

    def tell(self, hoot: Hoot, verb: str, *arguments: int) -> None:
        """Call a method of ``Fanout`` for the hoot's room, now or as soon as the thread can take it."""
        self._put(verb, self._rooms[hoot], *arguments)
        if verb == "close":
            del self._lines[hoot.line]

    def counters(self, hoot: Hoot) -> tuple[int, ...]:
        """What the thread has counted."""
        assert self._fanout is not None
        return self._fanout.counters(self._rooms[hoot])

    def on_key(self, hoot: Hoot) -> None:
        """Tell that the key of a hoot has changed."""
        self._on_key(hoot)

    def _put(self, verb: str, room: int, *arguments: int | float) -> None:
        # In their order: behind those that wait already.
        self._waiting.append((verb, room, arguments))
        if self._again is None:
            self._put_waiting()

    def _put_waiting(self) -> None:
        self._again = None
        while self._waiting:
            verb, room, arguments = self._waiting[0]
            if not getattr(self._fanout, verb)(room, *arguments):
                self._again = self._loop.call_later(TRY_AGAIN_S, self._put_waiting)
                return
            self._waiting.popleft()

    # What the thread tells

    def _take_events(self) -> None:
        assert self._fanout is not None
        for what, room, number in self._fanout.take_events():
            hoot = self._hoots[room]
            if what == _fanout.CLOSED:
                hoot.release()
                del self._hoots[room], self._rooms[hoot]
            elif (user_id := hoot.on_vanished(number)) is not None:
                log.info("hoot subscriber vanished", line=hoot.line, user=user_id)
                self._on_vanished(hoot, user_id)
