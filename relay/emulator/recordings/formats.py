"""Ogg/Opus and M4A, recognised by their content. Pure: reads a file that is open, and never more than its headers."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import BinaryIO

# An Ogg page header has 27 bytes and at most 255 lengths (RFC 3533, section 6).
_OGG_HEADER_BYTES = 27
_BEGINNING_OF_STREAM = 0x02
# A file of a recorder has some ten boxes around its samples; a fragmented one has two for each second.
_MAX_BOXES = 100_000
# In these boxes are those that say what a track is (ISO/IEC 14496-12, section 8).
_CONTAINERS = {b"moov", b"trak", b"mdia"}
# Of "hdlr": version and flags, a reserved word, and the kind of the track.
_HANDLER_OFFSET = 8


class MediaType(StrEnum):
    """What a recording may be (documented), by the names that HTTP uses."""

    OGG_OPUS = "audio/ogg"
    M4A = "audio/mp4"


def recognise(file: BinaryIO, size: int) -> MediaType | None:
    """What the file's content is, whatever its name says. None if it is neither."""
    if _is_ogg_opus(file):
        return MediaType.OGG_OPUS
    return MediaType.M4A if _is_m4a(file, size) else None


def _is_ogg_opus(file: BinaryIO) -> bool:
    """The first page begins a stream, and holds the header of Opus (RFC 7845, section 5.1)."""
    file.seek(0)
    header = file.read(_OGG_HEADER_BYTES)
    if len(header) < _OGG_HEADER_BYTES or header[:5] != b"OggS\0" or not header[5] & _BEGINNING_OF_STREAM:
        return False
    file.seek(header[26], 1)
    return file.read(8) == b"OpusHead"


def _is_m4a(file: BinaryIO, size: int) -> bool:
    """MP4 whose tracks are all sound."""
    kinds = []
    first = True
    for kind, begin, end in _boxes(file, size):
        if first and kind != b"ftyp":
            return False
        first = False
        if kind == b"hdlr" and end - begin >= _HANDLER_OFFSET + 4:
            file.seek(begin + _HANDLER_OFFSET)
            kinds.append(file.read(4))
    return bool(kinds) and set(kinds) == {b"soun"}


def _boxes(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int, int]]:
    """Each box that matters: its type, and where its content begins and ends. Ends at the first that is not one."""
    at = 0
    for _ in range(_MAX_BOXES):
        file.seek(at)
        header = file.read(16)
        if len(header) < 8:
            return
        length, kind, head = int.from_bytes(header[:4]), header[4:8], 8
        if length == 1:
            length, head = int.from_bytes(header[8:16]), 16
        end = at + length if length else size
        if end < at + head or end > size:
            return
        yield kind, at + head, end
        at = at + head if kind in _CONTAINERS else end
