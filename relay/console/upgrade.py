"""``relay upgrade``: has a running relay start a new process of itself and hand over, and waits for how that went."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from relay.errors import OperatorError, UpstreamError
from relay.local_datagrams import upgrade_answer

# The new process has a minute until it can serve, and a few seconds to begin.
ANSWER_TIMEOUT_S = 90.0
# How often it is looked whether the relay still runs.
LOOK_S = 0.5
MESSAGE_BYTES = 64 * 1024
_CREDENTIALS = struct.Struct("3i")
_PROC = Path("/proc")


def upgrade(target: str | None) -> int:
    """Have a relay hand over. ``target`` is its process id, or a file that has it; without one it is looked for.

    Returns the number of the new process. Raises OperatorError if there is no such relay, and UpstreamError with the
    relay's reason if it goes on as before.
    """
    pid = _find() if target is None else _read(target)
    if not _can_hand_over(pid):
        raise OperatorError(f"--pid: process {pid} is not a relay that can hand over")
    with _answers(pid) as answers:
        try:
            os.kill(pid, signal.SIGUSR2)
        except OSError as error:
            raise OperatorError(f"process {pid}: {error.strerror}: run this as root, or as the relay's user") from None
        word, _, rest = _receive(answers, pid).partition(" ")
    if word != "done":
        raise UpstreamError(f"the relay goes on as before: {rest}")
    return int(rest)


def _read(target: str) -> int:
    text = target
    if not target.isdigit():
        try:
            text = Path(target).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise OperatorError(f"--pid {target}: {getattr(error, 'strerror', None) or error}") from None
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 1 << 31:
        raise OperatorError(f"--pid {target}: expected a process id, or a file that has one")
    return int(text)


def _find() -> int:
    found = [int(one.name) for one in _PROC.iterdir() if one.name.isdigit() and _can_hand_over(int(one.name))]
    if not found:
        raise OperatorError("no relay runs here that can hand over: name its process with --pid")
    if len(found) > 1:
        raise OperatorError(f"several relays run here: name one with --pid: {', '.join(map(str, sorted(found)))}")
    return found[0]


def _can_hand_over(pid: int) -> bool:
    """Whether a process is ``relay serve``, and waits for SIGUSR2. Any other process the signal may end."""
    try:
        arguments = (_PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
        status = (_PROC / str(pid) / "status").read_text()
    except OSError:
        return False
    caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), "0")
    names = {os.path.basename(argument) for argument in arguments}
    return b"serve" in arguments and bool(names & {b"relay", b"relay.cli"}) and _catches(int(caught, 16))


def _catches(mask: int) -> bool:
    return bool(mask >> (signal.SIGUSR2 - 1) & 1)


@contextlib.contextmanager
def _answers(pid: int) -> Iterator[socket.socket]:
    """Where the relay's answer comes. The kernel says with each message who has sent it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as answers:
        try:
            answers.bind(f"\0{upgrade_answer(pid)[1:]}")
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise UpstreamError(f"another relay upgrade waits for process {pid}") from None
        answers.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        answers.settimeout(LOOK_S)
        yield answers


def _receive(answers: socket.socket, pid: int) -> str:
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    while time.monotonic() < deadline:
        # Before the question whether it runs: its last words may have come.
        runs = (_PROC / str(pid)).exists()
        with contextlib.suppress(TimeoutError):
            data, extra, _, _ = answers.recvmsg(MESSAGE_BYTES, socket.CMSG_SPACE(_CREDENTIALS.size))
            if any(_CREDENTIALS.unpack(one)[0] == pid for _, kind, one in extra if kind == socket.SCM_CREDENTIALS):
                return data.decode(errors="replace")
            continue
        if not runs:
            raise UpstreamError(f"process {pid} has ended without an answer")
    raise UpstreamError(f"process {pid} does not answer within {ANSWER_TIMEOUT_S:g} s: its log may say why")
