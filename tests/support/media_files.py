"""Media as recorders write it, as far as its first bytes say so."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import Any


def ogg_opus(size: int, seed: int = 0) -> bytes:
    """A page with the header of Opus, and made-up bytes up to a size."""
    opus = b"OpusHead" + bytes([1, 1, 0, 0]) + (48_000).to_bytes(4, "little") + bytes(3)
    page = b"OggS\0\x02" + bytes(20) + bytes([1, len(opus)]) + opus
    return page + random.Random(seed).randbytes(size - len(page))


def box(kind: bytes, *content: bytes) -> bytes:
    """A box of MP4."""
    whole = b"".join(content)
    return (len(whole) + 8).to_bytes(4) + kind + whole


def track(kind: bytes) -> bytes:
    """A track of this kind: ``soun`` or ``vide``."""
    return box(b"trak", box(b"tkhd", bytes(20)), box(b"mdia", box(b"hdlr", bytes(8), kind, bytes(12))))


def m4a(*tracks: bytes, size: int = 4096) -> bytes:
    """An MP4 file with these tracks; by default one of sound."""
    head = box(b"ftyp", b"M4A \0\0\0\0M4A mp42") + box(
        b"moov", box(b"mvhd", bytes(100)), *(tracks or (track(b"soun"),))
    )
    return head + box(b"mdat", random.Random(0).randbytes(size))


@dataclass(frozen=True)
class MediaFile:
    """Media with what its metadata says of it."""

    content: bytes
    media_type: str = "audio/ogg"

    def metadata(self, **changes: Any) -> dict[str, Any]:
        """The metadata of a call of ten seconds."""
        return {
            "call_id": "0f8fad5b-d9cb-469f-a165-70867728950e",
            "line": "sPK-10000001-100001",
            "started_at": "2026-11-27T09:00:00Z",
            "ended_at": "2026-11-27T09:00:10Z",
            "participants": ["anna", "ben"],
            "media_type": self.media_type,
            "media_bytes": len(self.content),
            "sha256": hashlib.sha256(self.content).hexdigest(),
            **changes,
        }
