"""The record of a call that ended: its fields, and the file of JSON lines that it goes to for billing and audit.

The fields of the log lines about calls and connections are here, too.

A disk that is full or hangs may cost records, which are counted, but never a call. The file is opened for each write,
so rotating it needs no signal.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from relay.errors import OperatorError
from relay.gateway.calls.call import Call
from relay.gateway.calls.calls import EndedCall, whole
from relay.gateway.calls.ids import CallIds
from relay.gateway.calls.writing import Writer
from relay.plane.api import Closed

log = structlog.get_logger()


def record_of(ended: EndedCall) -> dict[str, Any]:
    """Who, where, how long, how much, how it sounded, and why it ended. Percentages, ms and MOS may be None."""
    flow, totals = ended.flow, ended.flow.totals
    return {
        "id": ended.id,
        "client": str(flow.client),
        "username": flow.username,
        "client_certificate": flow.client_certificate,
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
        "client_certificate": flow.client_certificate,
        "server_name": flow.server_name,
        "region": call.region,
        "upstream": flow.upstream.name,
        "carrier": flow.carrier.value,
        "started_at": iso(call.started_at),
    }


def closed_of(closed: Closed, ids: CallIds) -> dict[str, object]:
    """The fields of the log line for a connection that has ended, without the empty ones."""
    totals = closed.totals
    fields: dict[str, object] = {
        "connection": ids.id_of(closed.connection),
        "reason": closed.reason.value,
        "cause": None if closed.handshake_failure is None else closed.handshake_failure.value,
        "detail": closed.detail,
        "client": str(closed.client),
        "client_certificate": closed.client_certificate,
        "server_name": closed.server_name,
        "carrier": None if closed.flow is None else closed.flow.carrier.value,
        "upstream": None if closed.flow is None else closed.flow.upstream.name,
        "uplink_packets": totals.uplink_packets,
        "downlink_packets": totals.downlink_packets,
        "drops": sum(totals.drops.values()),
    }
    return {key: value for key, value in fields.items() if value}


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


class Records(Writer[dict[str, Any]]):
    """Appends records to ``path``, which may change. None for no file: then nothing is written."""

    def __init__(self, path: Path | None) -> None:
        super().__init__("records")
        self.path = path
        # Only the thread uses these two: the last write failed, and it left a part of a line behind.
        self._failing = False
        self._torn = False

    @property
    def active(self) -> bool:
        """True if there is a file to write."""
        return self.path is not None

    def keep(self, items: list[dict[str, Any]]) -> int:
        """Append records, in the thread."""
        # A reload may have taken the path away since they were given.
        if (path := self.path) is None or not items:
            return 0
        written, failure = 0, ""
        try:
            descriptor = _open(path)
            try:
                for record in items:
                    self._append(descriptor, json.dumps(record, separators=(",", ":")).encode() + b"\n")
                    written += 1
            finally:
                os.close(descriptor)
        except OSError as error:
            failure = error.strerror or str(error)
        if failure and not self._failing:
            log.error("call records are lost", path=str(path), cause=failure)
        elif self._failing and not failure:
            log.warning("call records are written again", path=str(path), lost=self.lost)
        self._failing = bool(failure)
        return written

    def _append(self, descriptor: int, line: bytes) -> None:
        rest = b"\n" + line if self._torn else line
        while rest:
            count = os.write(descriptor, rest)
            rest = rest[count:]
            self._torn = bool(rest)
