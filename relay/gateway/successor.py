"""The next process of a relay: SIGUSR2 has this one start it, and hand over when it can serve (``relay upgrade``).

Until then nothing changes here: if the new process fails, this one goes on, and says why. Both talk over a socket::

    this one     starts it ───────────▶ "go" ──────▶ stops accepting, "bye" ──▶ serves its calls until they end
                      │                   ▲ │                 ▲
    the new one       └─ "started" ─ "ready" └─▶ accepts ─ "serving" ────────▶ is the service
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import structlog

from relay import deadlines, local_datagrams
from relay.errors import RelayError
from relay.gateway.inherited import FIRST_DESCRIPTOR, MESSAGE_BYTES, TALK
from relay.gateway.notify import ServiceManager
from relay.tasks import Tasks

log = structlog.get_logger()

# Python and its libraries take a second, ten on a busy machine; then an upstream must answer, within ten.
READY_TIMEOUT_S = 60.0
# Between two processes that have nothing else to do.
ANSWER_TIMEOUT_S = 10.0

# Puts the descriptors where sd_listen_fds(3) wants them, and starts the new process as a child of the service manager,
# which would not supervise a grandchild. It is a text, so that it is of this version whatever is on the disk by now.
_PLACER = f"""
import fcntl, os, sys
first, fds = {FIRST_DESCRIPTOR}, [int(fd) for fd in sys.argv[1].split(",")]
kept = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, first + len(fds)) for fd in fds]
for fd in fds:
    os.set_inheritable(fd, False)
for place, fd in enumerate(kept, first):
    os.dup2(fd, place)
if os.fork():
    os._exit(0)
pid, talk = str(os.getpid()), first + len(fds) - 1
os.environ["LISTEN_PID"] = pid
if "WATCHDOG_PID" in os.environ:
    os.environ["WATCHDOG_PID"] = pid
os.write(talk, b"started " + pid.encode())
try:
    os.execv(sys.argv[2], sys.argv[2:])
except OSError as error:
    os.write(talk, f"failed {{sys.argv[2]}}: {{error.strerror}}".encode())
os._exit(1)
"""


class SuccessorError(RelayError):
    """The new process cannot take over."""


class Successor:
    """Starts the new process when a signal asks for it. ``pid`` is not 0 once it has taken over."""

    def __init__(
        self,
        listening: Callable[[], Sequence[socket.socket]],
        manager: ServiceManager,
        *,
        refusal: Callable[[], str | None],
        on_taken_over: Callable[[], None],
    ) -> None:
        """``refusal`` says why it cannot be now, if it cannot.

        The priority of this thread is that of the new process: make this before it is lowered.
        """
        self.pid = 0
        self._listening = listening
        self._manager = manager
        self._refusal = refusal
        self._on_taken_over = on_taken_over
        self._tasks = Tasks()
        self._starter = ThreadPoolExecutor(1, "starter")
        # A process has the priority of the thread that starts it, and this thread begins now.
        self._starter.submit(int).result()

    def on_signal(self) -> None:
        """Begin, unless it has begun already."""
        reason = "an upgrade is running already" if len(self._tasks) else self._refusal()
        if reason is not None:
            self._fail(reason)
        else:
            self._tasks.start(self._run(), "upgrade")

    async def stop(self) -> None:
        """Give up what has not come to its end."""
        await self._tasks.cancel()
        self._starter.shutdown(wait=False)

    async def _run(self) -> None:
        log.info("upgrade begins")
        self._manager.tell("STATUS=Serving, and starting a new process")
        try:
            self.pid = await self._hand_over()
        except SuccessorError as error:
            self._fail(str(error))
        except asyncio.CancelledError:
            self._fail("the relay was told to stop")
            raise
        else:
            self._answer(f"done {self.pid}")
            self._on_taken_over()

    def _fail(self, reason: str) -> None:
        for line in reason.splitlines():
            log.error("upgrade failed: this process goes on", cause=line)
        self._manager.tell(f"STATUS=Serving; upgrade failed: {reason.splitlines()[0]}")
        self._answer(f"failed {reason}")

    def _answer(self, text: str) -> None:
        """Tell ``relay upgrade`` how it went, if it waits."""
        with contextlib.suppress(OSError):
            local_datagrams.send(local_datagrams.upgrade_answer(os.getpid()), text[:MESSAGE_BYTES])

    async def _hand_over(self) -> int:
        """Returns the number of the process that serves now. Raises SuccessorError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            ours.setblocking(False)
            await self._start([*self._listening(), theirs])
            # From now on the end of the new process is the end of this stream.
            theirs.close()
            pid = int(await _hear(ours, "started", ANSWER_TIMEOUT_S))
            with _killed_unless_done(pid):
                await _hear(ours, "ready", READY_TIMEOUT_S)
                ours.send(b"go")
                await _hear(ours, "serving", ANSWER_TIMEOUT_S)
            # systemd listens only to the process that is the service: this one, until it has read this.
            self._manager.tell(f"MAINPID={pid}")
            self._manager.fall_silent()
            with contextlib.suppress(OSError):
                ours.send(b"bye")
            return pid

    async def _start(self, sockets: Sequence[socket.socket]) -> None:
        # Copies, because a reload or an end may close the others meanwhile.
        fds = [fcntl.fcntl(one.fileno(), fcntl.F_DUPFD_CLOEXEC, 0) for one in sockets]
        try:
            await asyncio.get_running_loop().run_in_executor(self._starter, _place, fds)
        except (OSError, subprocess.SubprocessError) as error:
            raise SuccessorError(f"no new process: {error}") from None
        finally:
            for fd in fds:
                os.close(fd)


def _place(fds: Sequence[int]) -> None:
    """Start the new process with these descriptors, the last of which is for talking. Raises OSError."""
    names = ["listen"] * (len(fds) - 1) + [TALK]
    environment = {**os.environ, "LISTEN_FDS": str(len(fds)), "LISTEN_FDNAMES": ":".join(names)}
    command = [sys.executable, "-I", "-S", "-c", _PLACER, ",".join(map(str, fds)), *_own_command()]
    with subprocess.Popen(command, pass_fds=fds, env=environment) as placer:  # noqa: S603
        try:
            placer.wait(ANSWER_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            placer.kill()
            raise


def _own_command() -> list[str]:
    """Our own command line, for one more process.

    A script, such as /opt/cloud9-relay/bin/relay, is started by its path: it may be of another version by now.
    """
    script = sys.argv[0]
    if os.access(script, os.X_OK) and not script.endswith(".py"):
        return [os.path.abspath(script), *sys.argv[1:]]
    return [sys.executable, *sys.orig_argv[1:]]


async def _hear(talking: socket.socket, word: str, timeout_s: float) -> str:
    """Wait until the new process says this word. Returns what comes after it. Raises SuccessorError."""
    try:
        async with deadlines.timeout(timeout_s):
            text = (await asyncio.get_running_loop().sock_recv(talking, MESSAGE_BYTES)).decode()
    except TimeoutError:
        raise SuccessorError(f"the new process is not {word} within {timeout_s:g} s") from None
    except OSError:
        text = ""
    said, _, rest = text.partition(" ")
    if not said:
        raise SuccessorError("the new process has ended: the log may say why")
    if said == "failed":
        raise SuccessorError(rest)
    if said != word:
        raise SuccessorError(f"the new process says {said!r}: expected {word!r}")
    return rest


@contextlib.contextmanager
def _killed_unless_done(pid: int) -> Iterator[None]:
    """If the block fails, end the process, which may hang."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        process = -1
    try:
        yield
    except BaseException:
        if process >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(process, signal.SIGKILL)
        raise
    finally:
        if process >= 0:
            os.close(process)
