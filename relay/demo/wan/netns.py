"""Network namespaces without names: they live as long as a descriptor or a process holds them, and leave nothing.

What runs where: a socket belongs to the namespace in which it was made, for good; a thread and a process can be moved.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import ctypes
import fcntl
import functools
import os
import socket
import struct
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import IO, Any, Self, TypeVar

import uvloop

from relay import deadlines

_T = TypeVar("_T")

# sched.h, linux/if_tun.h, linux/sockios.h, linux/if.h
CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1
SIOCSIFADDR, SIOCSIFNETMASK, SIOCSIFMTU, SIOCSIFTXQLEN = 0x8916, 0x891C, 0x8922, 0x8943

MTU_BYTES = 1500
# Packets that the device holds until they are read. The bound of a link's queue is the link's, so this is far above it.
DEVICE_QUEUE_PACKETS = 10_000
# A process is asked twice, as the relay drains after the first time, then killed.
PROCESS_PATIENCE_S = 2.0

_libc = ctypes.CDLL(None, use_errno=True)


def _succeeded(status: int) -> None:
    if status:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def _own_namespace() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _new_namespace() -> int:
    _succeeded(_libc.unshare(CLONE_NEWNET))
    return _own_namespace()


class Namespace:
    """A network namespace with its loopback up and no IPv6 beyond it, which would send packets that nobody asked for.

    Raises OSError where making one is not permitted.
    """

    def __init__(self) -> None:
        # In a thread that ends here: this one stays where it is.
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            self._fd = thread.submit(_new_namespace).result()
        try:
            # A kernel without IPv6 has no such setting, and needs none.
            with contextlib.suppress(FileNotFoundError):
                self.set_sysctl("net/ipv6/conf/default/disable_ipv6", "1")
            with self.socket(kind=socket.SOCK_DGRAM) as control:
                _bring_up(control, "lo")
        except BaseException:
            self.close()
            raise

    @property
    def path(self) -> str:
        """For ``nsenter --net=``, as long as this process holds the namespace."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    def close(self) -> None:
        """Let go of it; the kernel ends it with the last process, socket and device inside. May be repeated."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """This thread is inside: what it opens or starts belongs there. Do not await anything within."""
        outside = _own_namespace()
        try:
            _succeeded(_libc.setns(self._fd, CLONE_NEWNET))
            try:
                yield
            finally:
                _succeeded(_libc.setns(outside, CLONE_NEWNET))
        finally:
            os.close(outside)

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """A socket of this namespace, for any thread."""
        with self.entered():
            return socket.socket(family, kind)

    def set_sysctl(self, name: str, value: str) -> None:
        """Set what each namespace has of its own, such as ``net/ipv4/tcp_congestion_control``. Raises OSError."""
        with self.entered():
            Path("/proc/sys", name).write_text(value)

    def open_tun(self, name: str, address: str, netmask: str) -> int:
        """A TUN device that is up, as a descriptor that does not block; the device ends with it. Raises OSError."""
        with self.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
                _configure(control, name, SIOCSIFADDR, _address_bytes(address))
                _configure(control, name, SIOCSIFNETMASK, _address_bytes(netmask))
                _configure(control, name, SIOCSIFMTU, struct.pack("i", MTU_BYTES))
                _configure(control, name, SIOCSIFTXQLEN, struct.pack("i", DEVICE_QUEUE_PACKETS))
                _bring_up(control, name)
            except BaseException:
                os.close(fd)
                raise
            return fd

    def command(self, *command: str | Path) -> list[str]:
        """What runs ``command`` inside, as the process that is started; it dies with the thread that starts it."""
        inside = ["nsenter", f"--net={self.path}", "--", "setpriv", "--pdeathsig", "KILL", "--"]
        return [*inside, *map(str, command)]

    @contextlib.asynccontextmanager
    async def process(
        self,
        *command: str | Path,
        output: int | IO[Any] | None = None,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
    ) -> AsyncIterator[Process]:
        """A process inside, ended with the block; ``output`` is its standard output and error."""
        arguments = self.command(*command)
        started = await asyncio.create_subprocess_exec(*arguments, stdout=output, stderr=output, cwd=cwd, env=env)
        try:
            yield started
        finally:
            await _end(started)

    async def run(self, main: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Run a coroutine inside, on a loop and in a thread of its own; cancelling this cancels it."""
        begun: concurrent.futures.Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = (
            concurrent.futures.Future()
        )

        async def entry() -> _T:
            task = asyncio.current_task()
            assert task is not None
            begun.set_result((asyncio.get_running_loop(), task))
            return await main()

        def inside() -> _T:
            with self.entered(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(entry())

        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            work = asyncio.get_running_loop().run_in_executor(thread, inside)
            try:
                return await asyncio.shield(work)
            finally:
                if not work.done():
                    either: list[asyncio.Future[Any]] = [work, asyncio.wrap_future(begun)]
                    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                    if begun.done():
                        loop, task = begun.result()
                        with contextlib.suppress(RuntimeError):  # Its loop may have just ended.
                            loop.call_soon_threadsafe(task.cancel)
                    await asyncio.wait([work])
                    work.exception()


async def _end(process: Process) -> None:
    for last_word in (process.terminate, process.terminate, process.kill):
        if process.returncode is None:
            last_word()
            with contextlib.suppress(TimeoutError):
                async with deadlines.timeout(PROCESS_PATIENCE_S):
                    await process.wait()
    await process.wait()


def _address_bytes(address: str) -> bytes:
    return struct.pack("=HH4s", socket.AF_INET, 0, socket.inet_aton(address))


def _configure(control: socket.socket, name: str, request: int, value: bytes) -> bytes:
    """Set or get what ``struct ifreq`` has besides the name of the device."""
    return fcntl.ioctl(control, request, struct.pack("16s24s", name.encode(), value))[16:]


def _bring_up(control: socket.socket, name: str) -> None:
    (flags,) = struct.unpack_from("=H", _configure(control, name, SIOCGIFFLAGS, b""))
    _configure(control, name, SIOCSIFFLAGS, struct.pack("=H", flags | IFF_UP))


@functools.cache
def refusal() -> str | None:
    """Why namespaces and TUN devices cannot be made here, or None if they can."""
    try:
        with Namespace() as namespace:
            os.close(namespace.open_tun("probe", "198.18.0.1", "255.255.255.252"))
    except OSError as error:
        return f"network namespaces and TUN devices are not permitted here: {error}"
    return None
