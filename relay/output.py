"""Standard output and error of a process that must not wait for those who read them.

A stopped terminal, a pipe whose reader hangs and a slow disk block each write. Here a separate thread writes, from
a bounded queue. Lines that find no room are lost and counted, and a line says so when there is room again.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

# A line is a few hundred bytes, so this is some thousands of lines: what a busy relay logs in seconds.
WAITING_BYTES = 1024 * 1024
# Written in one go, so that a pipe of 64 KiB has room for it when it is read.
CHUNK_BYTES = 16 * 1024
# At the end both threads together have this long to write what still waits.
FLUSH_TIMEOUT_S = 2.0


class Output(io.TextIOBase):
    """A text stream to a descriptor. ``write`` returns at once. Whole lines stay together and in order.

    ``lost`` counts lines. ``describe_lost`` makes a line, with its line end, that says how many were lost in one place.
    """

    def __init__(self, descriptor: int) -> None:
        self.lost = 0
        self.describe_lost: Callable[[int], str] | None = None
        self._descriptor = descriptor
        self._begun = ""
        # (bytes, lines) of each call, and how many bytes they are in all.
        self._waiting: deque[tuple[bytes, int]] = deque()
        self._waiting_bytes = 0
        # Lines that were lost after all those that wait.
        self._gap = 0
        self._stopping = False
        # Reentrant, because a finalizer may log at any moment.
        self._changed = threading.Condition(threading.RLock())
        self._thread: threading.Thread | None = None
        # Used only by the thread: lines that have failed since the last that was written, and whether that one was cut
        # short.
        self._failed = 0
        self._torn = False

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the bytes that are written."""
        return "utf-8"

    def writable(self) -> bool:
        """True, always."""
        return True

    def fileno(self) -> int:
        """The descriptor."""
        return self._descriptor

    def write(self, text: str) -> int:
        """Have the thread write text. A line is kept until its end comes."""
        with self._changed:
            whole, end, begun = (self._begun + text).rpartition("\n")
            self._begun = begun
            if end:
                self._put((whole + end).encode("utf-8", "backslashreplace"))
            if len(begun) > WAITING_BYTES:
                self._put(f"{begun}\n".encode("utf-8", "backslashreplace"))
                self._begun = ""
        return len(text)

    def _put(self, data: bytes) -> None:
        lines = data.count(b"\n")
        if self._stopping and not self._is_alive() and self.has_room():
            self._write_lines(data, lines)
            return
        if self._stopping or self._waiting_bytes + len(data) > WAITING_BYTES:
            self._gap += lines
            self.lost += lines
            return
        self._put_gap()
        self._waiting.append((data, lines))
        self._waiting_bytes += len(data)
        if self._thread is None:
            # A daemon, so that a descriptor that blocks for ever does not keep the process alive.
            self._thread = threading.Thread(target=self._run, name="output", daemon=True)
            self._thread.start()
        self._changed.notify()

    def _put_gap(self) -> None:
        """Put in a line that says how many are missing here."""
        count, self._gap = self._gap, 0
        if count and self.describe_lost is not None:
            told = self.describe_lost(count).encode("utf-8", "backslashreplace")
            self._waiting.append((told, 0))
            self._waiting_bytes += len(told)

    def stop(self) -> None:
        """Have the thread end when it has written what waits. Later lines are written at once, or lost."""
        with self._changed:
            if self._begun:
                self.write("\n")
            self._stopping = True
            self._changed.notify()

    def has_stopped(self, timeout_s: float) -> bool:
        """Wait for the thread's end. Returns False if the descriptor is blocked."""
        if self._thread is not None:
            self._thread.join(timeout_s)
        return not self._is_alive()

    def _is_alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def has_room(self) -> bool:
        """Whether a line can be written without waiting."""
        return bool(self._poll(0))

    # In the thread

    def _run(self) -> None:
        while chunk := self._take():
            self._write_lines(*chunk)

    def _take(self) -> tuple[bytes, int] | None:
        """Wait for the next bytes to write. Returns them and their number of lines, or None at the end."""
        with self._changed:
            while not self._waiting:
                self._put_gap()
                if self._waiting:
                    break
                if self._stopping:
                    return None
                self._changed.wait()
            data, lines = bytearray(), 0
            while self._waiting and (not data or len(data) + len(self._waiting[0][0]) <= CHUNK_BYTES):
                one, count = self._waiting.popleft()
                data += one
                lines += count
            self._waiting_bytes -= len(data)
            return bytes(data), lines

    def _write_lines(self, data: bytes, lines: int) -> None:
        if self._failed and self.describe_lost is not None:
            data = self.describe_lost(self._failed).encode("utf-8", "backslashreplace") + data
        rest = self._write(b"\n" + data if self._torn else data)
        if not rest:
            self._failed = 0
            return
        missing = min(lines, rest.count(b"\n"))
        self._failed += missing
        with self._changed:
            self.lost += missing

    def _write(self, data: bytes) -> bytes:
        """Write data. Returns what could not be written: the disk is full, or the reader has gone."""
        rest = data
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                # Another process that shares the descriptor has made it non-blocking.
                self._poll(None)
            except OSError:
                if len(rest) < len(data):
                    self._torn = not data.removesuffix(rest).endswith(b"\n")
                return rest
        self._torn = False
        return b""

    def _poll(self, timeout_ms: int | None) -> list[tuple[int, int]]:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        return poll.poll(timeout_ms)


@contextlib.contextmanager
def queued() -> Iterator[None]:
    """While the block runs, threads write all that this process prints, logs and warns of.

    At its end, what waits is written, if this takes only a moment. A descriptor that is still blocked is then replaced
    by /dev/null: the process must not hang on its last lines.
    """
    before = sys.stdout, sys.stderr
    outputs = []
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        # It is None if it was closed when the process began.
        if stream is not None:
            stream.flush()
            outputs.append(Output(stream.fileno()))
            setattr(sys, name, outputs[-1])
    try:
        yield
    finally:
        deadline = time.monotonic() + FLUSH_TIMEOUT_S
        for output in outputs:
            output.stop()
        for output in outputs:
            if not output.has_stopped(max(0.0, deadline - time.monotonic())) or not output.has_room():
                _lead_nowhere(output.fileno())
        sys.stdout, sys.stderr = before


def _lead_nowhere(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
