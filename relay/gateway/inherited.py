"""What the process is given at its start: sockets that listen already, from systemd or from the relay before.

Both use systemd's form (sd_listen_fds(3)). The descriptors from 3 on are the process's. LISTEN_FDS says how many there
are, LISTEN_FDNAMES what each is, and LISTEN_PID for whom they are meant. From the relay before there is one more, named
``TALK``: the new process says over it how far it is, and waits for its turn. ``successor`` is the other end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
from collections.abc import MutableMapping
from itertools import chain, repeat
from types import TracebackType
from typing import Self

import structlog

from relay import deadlines
from relay.errors import OperatorError
from relay.gateway.routing.upstreams import Upstreams

log = structlog.get_logger()

FIRST_DESCRIPTOR = 3
TALK = "relay-upgrade"
# A relay that takes over serves as soon as an upstream has answered its probe. Three lost ones take three seconds, and
# a name is looked up before.
UPSTREAM_TIMEOUT_S = 10.0
POLL_S = 0.02
# The relay before has nothing else to do then.
TURN_TIMEOUT_S = 10.0
# What is said is a word, or the reason for a failure.
MESSAGE_BYTES = 16 * 1024


class Inherited:
    """The sockets that listen already, and the relay before, if there is one. Closes what is left with the block."""

    def __init__(self, sockets: list[socket.socket], predecessor: Predecessor | None = None) -> None:
        self.sockets = sockets
        self.predecessor = predecessor

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.predecessor is not None:
            if error is not None:
                self.predecessor.say_failed(str(error) or type(error).__name__)
            self.predecessor.close()
        for one in self.sockets:
            one.close()


def take_inherited(environment: MutableMapping[str, str]) -> Inherited:
    """Take what the environment names, and the names out of it. Raises OperatorError if it is not what it should be."""
    names = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
    pid, count, given = (environment.pop(name, "") for name in names)
    # Meant for another process, whose environment we only have.
    if pid != str(os.getpid()) or not count:
        return Inherited([])
    if not count.isascii() or not count.isdigit():
        raise OperatorError(f"LISTEN_FDS: {count!r}: expected a number of descriptors")
    listening, talking = [], None
    with contextlib.ExitStack() as taken:
        for number, name in zip(range(int(count)), chain(given.split(":"), repeat("")), strict=False):
            opened = taken.enter_context(_open(FIRST_DESCRIPTOR + number))
            if name == TALK:
                talking = opened
            else:
                _check(opened, FIRST_DESCRIPTOR + number)
                listening.append(opened)
        taken.pop_all()
    return Inherited(listening, None if talking is None else Predecessor(talking))


def _open(descriptor: int) -> socket.socket:
    try:
        opened = socket.socket(fileno=descriptor)
    except OSError as error:
        raise OperatorError(f"LISTEN_FDS: descriptor {descriptor}: expected a socket: {error.strerror}") from None
    # No process that we start gets it by accident.
    opened.set_inheritable(False)
    opened.setblocking(False)
    return opened


def _check(listening: socket.socket, descriptor: int) -> None:
    """Raises OperatorError if clients cannot be accepted on it."""
    known = listening.family in {socket.AF_INET, socket.AF_INET6, socket.AF_UNIX}
    if (
        not known
        or listening.type != socket.SOCK_STREAM
        or not listening.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    ):
        raise OperatorError(f"LISTEN_FDS: descriptor {descriptor}: expected a stream socket that listens")
    # IPv4 clients would have other addresses there than everywhere else.
    if listening.family == socket.AF_INET6 and not listening.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
        raise OperatorError(f"LISTEN_FDS: descriptor {descriptor}: expected IPv6 only: BindIPv6Only=ipv6-only")


class Predecessor:
    """The relay before us. It serves until we do, and after that its calls until they end."""

    def __init__(self, talking: socket.socket) -> None:
        self._talking = talking
        pid, _, _ = struct.unpack("3i", talking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        try:
            self._process = os.pidfd_open(pid)
        except ProcessLookupError:
            self._process = -1

    async def await_turn(self, upstreams: Upstreams) -> None:
        """Say that we could serve, and wait until we are to. Raises OperatorError if that does not come to pass."""
        try:
            async with deadlines.timeout(UPSTREAM_TIMEOUT_S):
                while not upstreams.any_healthy:  # noqa: ASYNC110
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise OperatorError(f"no upstream answers within {UPSTREAM_TIMEOUT_S:g} s") from None
        try:
            said = await self._say("ready")
        except TimeoutError:
            raise OperatorError(f"the relay before does not answer within {TURN_TIMEOUT_S:g} s") from None
        if not said:
            # It has ended. Its sockets are ours, and nobody else serves them.
            log.warning("the relay before has gone already")
        elif said != "go":
            raise OperatorError(f"the relay before says {said!r}: expected 'go'")

    async def say_serving(self) -> None:
        """Say that we accept, and wait until the service manager knows that we are the service now."""
        with contextlib.suppress(TimeoutError):
            await self._say("serving")
        self._talking.close()

    async def _say(self, word: str) -> str:
        """Returns the answer, which is empty if there is nobody any more. Raises TimeoutError."""
        try:
            self._talking.send(word.encode())
            async with deadlines.timeout(TURN_TIMEOUT_S):
                return (await asyncio.get_running_loop().sock_recv(self._talking, MESSAGE_BYTES)).decode()
        except TimeoutError:
            raise
        except OSError:
            return ""

    def say_failed(self, reason: str) -> None:
        """Say why we cannot take over. Does nothing once that is said, or once it knows that we have."""
        with contextlib.suppress(OSError):
            self._talking.send(f"failed {reason}".encode()[:MESSAGE_BYTES])
        self._talking.close()

    async def end(self, timeout_s: float) -> None:
        """Have it drain, and wait until it has ended: the service manager may end with us whatever is left of it."""
        if self._process < 0:
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._process, signal.SIGTERM)
        try:
            async with deadlines.timeout(timeout_s):
                await self.wait_ended()
        except TimeoutError:
            log.warning("the relay before has not ended", timeout_s=timeout_s)

    async def wait_ended(self) -> None:
        """Wait until it has ended, with its last call or at its own ``handover_timeout_s``."""
        if self._process < 0:
            return
        ended, loop = asyncio.Event(), asyncio.get_running_loop()
        loop.add_reader(self._process, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(self._process)

    def close(self) -> None:
        """Let go of it. May be repeated."""
        self._talking.close()
        if self._process >= 0:
            os.close(self._process)
            self._process = -1
