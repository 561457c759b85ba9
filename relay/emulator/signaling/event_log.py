"""What has happened, as entries that ``invariants`` can check: in memory, bounded, and in a JSON-lines file if wanted.

An entry of a transition has what changed only: with all 800 subscribers of a hoot in each, the log would be larger than
all else.
"""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path
from typing import Any, TextIO

from relay.emulator.signaling.state import Decision, LineSpec, Party, dump_record
from relay.errors import OperatorError

Entry = dict[str, Any]
# 50 events a second for three minutes, at about 1 KB each.
MAX_ENTRIES = 10_000
# A file is for one run that somebody checks afterwards. One day at 50 events a second is more than 1 GB; stop before
# the disk is full.
MAX_FILE_BYTES = 1 << 30


def _change(before: Party | None, after: Party | None) -> list[Any] | None:
    return None if after is None else [after.role, after.talking, before is None]


def build_transition(spec: LineSpec, decision: Decision, event: str, user_id: str | None, now: float) -> Entry:
    """The entry of one transition. ``parties`` has those that changed; None for one that is no longer in the call."""
    before, after = decision.before.parties, decision.line.parties
    changed = {
        user: _change(before.get(user), after.get(user))
        for user in {**before, **after}
        if before.get(user) != after.get(user)
    }
    return {
        "entry": "transition",
        "at": now,
        "line": spec.number,
        "kind": spec.kind,
        "seq": decision.line.seq,
        "event": event,
        "user_id": user_id,
        "state": decision.line.status,
        "call_id": decision.line.call and decision.line.call.call_id,
        "parties": changed,
        "reason": decision.line.reason,
        "ended": decision.ended and dump_record(decision.ended),
    }


class EventLog:
    """The last entries, oldest first. ``dropped`` counts those that the file had no more room for.

    Raises OperatorError if the file cannot be written.
    """

    def __init__(self, path: Path | None = None, *, max_entries: int = MAX_ENTRIES) -> None:
        self.dropped = 0
        self._entries: deque[Entry] = deque(maxlen=max_entries)
        self._lines_known: dict[str, LineSpec] = {}
        self._file = _open(path) if path is not None else None
        self._room = MAX_FILE_BYTES

    @property
    def entries(self) -> list[Entry]:
        """The lines that are known, and then the last entries."""
        return [_build_line(spec) for spec in self._lines_known.values()] + list(self._entries)

    def transition(self, spec: LineSpec, decision: Decision, event: str, user_id: str | None, now: float) -> None:
        """Note a transition."""
        if self._lines_known.get(spec.number) != spec:
            self._lines_known[spec.number] = spec
            self._write(_build_line(spec))
        entry = build_transition(spec, decision, event, user_id, now)
        self._entries.append(entry)
        self._write(entry)

    def session(self, user_id: str, what: str, now: float) -> None:
        """Note what became of a user's session: ``opened``, ``replaced``, ``vanished`` or ``ended``."""
        entry: Entry = {"entry": "session", "at": now, "user_id": user_id, "what": what}
        self._entries.append(entry)
        self._write(entry)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, entry: Entry) -> None:
        if self._file is None:
            return
        text = json.dumps(entry, separators=(",", ":")) + "\n"
        self._room -= len(text)
        if self._room < 0:
            self.dropped += 1
            return
        self._file.write(text)
        # Whole lines: a process that is killed leaves the entries before it.
        self._file.flush()


def _open(path: Path) -> TextIO:
    try:
        return path.open("a", encoding="utf-8")
    except OSError as error:
        raise OperatorError(f"event log {path}: {error.strerror or error}") from None


def _build_line(spec: LineSpec) -> Entry:
    return {"entry": "line", "line": spec.number, "kind": spec.kind, "members": dict(spec.firm_of)}


def read_event_log(*paths: Path) -> list[Entry]:
    """All entries of the files of several processes. A last line that was cut off by a kill is left out."""
    entries: list[Entry] = []
    for path in paths:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        entries.extend(json.loads(line) for line in lines if line.endswith("\n"))
    return entries
