"""Records a call: who spoke in each 20 ms, as an Ogg Opus file when the call has ended."""

from __future__ import annotations

import hashlib
import uuid
import zlib
from dataclasses import dataclass, field
from datetime import UTC, datetime

from relay.emulator.softphone.ogg import HEARD, MEDIA_TYPE, SAID, build_recording
from relay.emulator.softphone.voice import PACKETS_PER_SECOND

# One byte for each 20 ms: 720 KB for four hours, which become 43 MB of Opus. A longer call is recorded up to here.
MAX_TICKS = 4 * 3600 * PACKETS_PER_SECOND


@dataclass(frozen=True)
class Recording:
    """A finished recording. ``sha256`` is of the media."""

    recording_id: str
    call_id: str
    user_id: str
    line: str
    participants: tuple[str, ...]
    started_at: datetime
    duration_s: float
    media: bytes = field(repr=False)
    sha256: str
    media_type: str = MEDIA_TYPE


class Recorder:
    """Notes what happens in a call. ``tick`` is called every 20 ms."""

    def __init__(self) -> None:
        self._activity = bytearray()
        self._started_at = datetime.now(UTC)

    @property
    def seconds(self) -> float:
        """The length so far."""
        return len(self._activity) / PACKETS_PER_SECOND

    def tick(self, *, said: bool, heard: bool) -> None:
        """Note 20 ms."""
        if not self._activity:
            self._started_at = datetime.now(UTC)
        if len(self._activity) < MAX_TICKS:
            self._activity.append((SAID if said else 0) | (HEARD if heard else 0))

    def finish(self, call_id: str, user_id: str, line: str, participants: tuple[str, ...]) -> Recording:
        """Make the file: about 20 ms of a core for a minute of voice."""
        comments = {"CALL_ID": call_id, "USER_ID": user_id, "LINE": line, "DATE": self._started_at.isoformat()}
        serial = zlib.crc32(f"{call_id} {user_id}".encode())
        media = build_recording(bytes(self._activity), comments, serial)
        return Recording(
            recording_id=str(uuid.uuid4()),
            call_id=call_id,
            user_id=user_id,
            line=line,
            participants=participants,
            started_at=self._started_at,
            duration_s=self.seconds,
            media=media,
            sha256=hashlib.sha256(media).hexdigest(),
        )
