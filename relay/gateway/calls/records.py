"""The record of a call that ended: its fields, and the file of JSON lines that it goes to for billing and audit.

A thread of its own writes the file, from a bounded queue: a disk that is full or hangs may cost records, which are
counted, but never a call. The file is opened for each write, so rotating it needs no signal.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import tempfile
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from relay.errors import OperatorError
from relay.gateway.calls.call import Call
from relay.gateway.calls.calls import EndedCall, whole

log = structlog.get_logger()

# A thousand calls may end at once, while the disk is busy. Their records take about a megabyte.
WAITING_RECORDS = 1000
# At the end the thread has this long for the records that still wait.
FLUSH_TIMEOUT_S = 2.0


def record_of(ended: EndedCall) -> dict[str, Any]:
    """Who, where, how long, how much, how it sounded, and why it ended. Percentages, ms and MOS may be None."""
    flow, totals = ended.flow, ended.flow.totals
    return {
        "id": ended.id,
        "client": str(flow.client),
        "username": flow.username,
        "server_name": flow.server_name,
        "region": ended.call.region,
        "upstream": flow.upstream.name,
        "carrier": flow.carrier.value,
        "started_at": iso(ended.ended_at - flow.age_s),
        "ended_at": iso(ended.ended_at),
        "duration_s": round(flow.age_s, 3),
        "uplink": {
            "packets": totals.uplink_packets,
            "bytes": totals.uplink_bytes,
            **whole(ended.call.uplink),
        },
        "downlink": {
            "packets": totals.downlink_packets,
            "bytes": totals.downlink_bytes,
            **whole(ended.call.downlink),
        },
        "retransmissions": totals.retransmissions,
        "drops": {reason.value: count for reason, count in totals.drops.items()},
        "reason": ended.reason.value,
        "detail": ended.detail,
    }


def iso(unix_s: float) -> str:
    """A time in the format of RFC 3339: UTC, with milliseconds."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def started_of(call: Call) -> dict[str, Any]:
    """The fields of the log line for a call that has begun. If the relay is killed, they are all that is left of it."""
    flow = call.flow
    assert flow is not None
    return {
        "id": call.id,
        "client": str(flow.client),
        "username": flow.username,
        "server_name": flow.server_name,
        "region": call.region,
        "upstream": flow.upstream.name,
        "carrier": flow.carrier.value,
        "started_at": iso(call.started_at),
    }


def check_path(path: Path | None) -> None:
    """Look whether records can be written to this file, and leave nothing behind. Raises OperatorError."""
    if path is not None:
        with _told_to_the_operator(path):
            _try(path)


def make_file(path: Path | None) -> None:
    """Make the file, unless it is there: what reads it expects it from the start on. Raises OperatorError."""
    if path is not None:
        with _told_to_the_operator(path):
            os.close(_open(path))


@contextlib.contextmanager
def _told_to_the_operator(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OperatorError(
            f"cannot write {path} (quality.records): {(error.strerror or str(error)).lower()}"
        ) from None


# A pipe that nobody reads is an error; it is not waited for.
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK


def _open(path: Path) -> int:
    # Only the operator may read who has called whom.
    return os.open(path, _FLAGS | os.O_CREAT, 0o640)


def _try(path: Path) -> None:
    try:
        os.close(os.open(path, _FLAGS))
    except FileNotFoundError:
        # The relay makes the file. ``relay check-config`` may run as another user, who must not own it. For a link, the
        # file will be where it leads to.
        with tempfile.TemporaryFile(dir=path.resolve().parent):
            pass


class Records:
    """Appends records to ``path``, which may change. ``written`` and ``lost`` count them."""

    def __init__(self, path: Path | None) -> None:
        """None for no file: then ``write`` does nothing."""
        self.written = 0
        self.lost = 0
        self.path = path
        self._waiting: queue.Queue[bytes | None] = queue.Queue(WAITING_RECORDS)
        self._thread: threading.Thread | None = None
        self._stopping = False
        # Only the thread uses these two: the last write failed, and it left a part of a line behind.
        self._failing = False
        self._torn = False

    def write(self, record: dict[str, Any]) -> None:
        """Have a record written. This returns at once. If too many wait, the record is lost, and counted."""
        if self.path is None:
            return
        if self._thread is None and not self._stopping:
            # A daemon thread: a disk that hangs for ever does not keep the process from ending.
            self._thread = threading.Thread(target=self._run, name="records", daemon=True)
            self._thread.start()
        try:
            if self._stopping:
                raise queue.Full
            self._waiting.put_nowait(json.dumps(record, separators=(",", ":")).encode() + b"\n")
        except queue.Full:
            self.lost += 1

    def leave_out(self) -> None:
        """Count a record as lost that is not to be written."""
        if self.path is not None:
            self.lost += 1

    async def stop(self) -> None:
        """Write what waits, if that does not take long. After this nothing is written."""
        self._stopping = True
        if self._thread is None:
            return
        # The thread sleeps only on an empty queue. If the queue is full, it is awake and needs no word.
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(None)
        await asyncio.to_thread(self._thread.join, FLUSH_TIMEOUT_S)
        if self._thread.is_alive():
            log.error("call records not written", waiting=self._waiting.qsize())

    # In the thread

    def _run(self) -> None:
        while not (self._stopping and self._waiting.empty()):
            lines = [self._waiting.get()]
            while not self._waiting.empty():
                lines.append(self._waiting.get_nowait())
            if (path := self.path) is not None:
                self._append(path, [line for line in lines if line is not None])

    def _append(self, path: Path, lines: list[bytes]) -> None:
        before, failure = self.written, ""
        try:
            descriptor = _open(path)
            try:
                for line in lines:
                    self._write_line(descriptor, line)
            finally:
                os.close(descriptor)
        except OSError as error:
            failure = error.strerror or str(error)
        # The loop adds to this counter as well, without a lock. Both are rare, and one lost count does no harm.
        self.lost += len(lines) - (self.written - before)
        if failure and not self._failing:
            log.error("call records are lost", path=str(path), cause=failure)
        elif self._failing and not failure and lines:
            log.warning("call records are written again", path=str(path), lost=self.lost)
        self._failing = bool(failure) or (self._failing and not lines)

    def _write_line(self, descriptor: int, line: bytes) -> None:
        rest = b"\n" + line if self._torn else line
        while rest:
            count = os.write(descriptor, rest)
            rest = rest[count:]
            self._torn = bool(rest)
        self.written += 1
