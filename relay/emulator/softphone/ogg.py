"""Recordings as Ogg Opus files (RFC 3533, RFC 7845), for each 20 ms one of four Opus frames (RFC 6716).

What softphones send is not sound, so there is nothing to encode. The recording shows who spoke: in the left channel a
tone of 450 Hz for each 20 ms that the user said, in the right one 850 Hz for each 20 ms that the user heard. Lost voice
is a gap. The frames were made once with libopus (CELT at 24 kbit/s, no prediction between frames), so any of them can
follow any other, and no codec is needed here. Every player plays them.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping

MEDIA_TYPE = "audio/ogg"
# One byte for each 20 ms of a recording: the sum of these.
SAID, HEARD = 1, 2
FRAMES = (
    # TOC: CELT, wideband, 20 ms, stereo; then the shortest frame that says "silence".
    bytes.fromhex("bcfffe"),
    bytes.fromhex(
        "bc64c958a03e6484508c3216ff0ad3c5de695e9abcd2f0373ad25fe60fd9a311ebcbf50c5b8963a61609751ba201f3ee3f7e604d3c9b922543ebb66e"
    ),
    bytes.fromhex(
        "bc6f5e620b3425ae6a2befc207bf2634a82e930f46f66975a21d286250fd184679e01066979ffbdb770d5d2cea89173c14ab75a36708eeb3c2b2a64f"
    ),
    bytes.fromhex(
        "bc649f656131bc6c535f9a81f2e9a61d935ae6179157185c0ecd4af278aaba25e39425be885731a451dc06233d3f1809f80ae16f4b150c99de988aa2"
    ),
)
FRAME_SAMPLES = 960  # 20 ms at 48 kHz, which Opus counts in, whatever it was fed
# RFC 7845 section 4.2 wants 80 ms in which a decoder settles; players skip them.
_PRE_SKIP_FRAMES = 4
# One second. A page has at most 255 packets of this size.
_FRAMES_PER_PAGE = 50
_BOS, _EOS = 2, 4
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_CRC_AT = 22


def build_recording(activity: bytes, comments: Mapping[str, str], serial: int) -> bytes:
    """The file. ``activity`` has a byte for each 20 ms; ``comments`` are the tags, by which each file differs."""
    head = b"OpusHead" + struct.pack("<BBHIhB", 1, 2, _PRE_SKIP_FRAMES * FRAME_SAMPLES, 8000, 0, 0)
    pages = [_page(serial, 0, 0, _BOS, [head]), _page(serial, 1, 0, 0, [_tags(comments)])]
    frames = bytes(_PRE_SKIP_FRAMES) + activity
    for number, first in enumerate(range(0, len(frames), _FRAMES_PER_PAGE), 2):
        part = frames[first : first + _FRAMES_PER_PAGE]
        after = first + len(part)
        flags = _EOS if after == len(frames) else 0
        pages.append(_page(serial, number, after * FRAME_SAMPLES, flags, [FRAMES[each] for each in part]))
    return b"".join(pages)


def read_recording(data: bytes) -> tuple[bytes, dict[str, str]]:
    """The activity and comments of such a file. Raises ValueError if it is not whole, or has other frames."""
    packets, ended = [], False
    for flags, part in _pages(data):
        if ended:
            raise ValueError("there are bytes after the end")
        packets += part
        ended = bool(flags & _EOS)
    if not ended:
        raise ValueError("the last page is missing")
    if len(packets) < 2 or not packets[0].startswith(b"OpusHead") or not packets[1].startswith(b"OpusTags"):
        raise ValueError("expected OpusHead and OpusTags")
    return bytes(map(FRAMES.index, packets[2 + _PRE_SKIP_FRAMES :])), _read_tags(packets[1])


def _tags(comments: Mapping[str, str]) -> bytes:
    texts = [b"cloud9-relay", *(f"{name}={value}".encode() for name, value in comments.items())]
    vendor, *rest = (struct.pack("<I", len(text)) + text for text in texts)
    return b"OpusTags" + vendor + struct.pack("<I", len(rest)) + b"".join(rest)


def _read_tags(packet: bytes) -> dict[str, str]:
    texts, at, left = [], 8, 1
    while left:
        (length,) = struct.unpack_from("<I", packet, at)
        texts.append(packet[at + 4 : at + 4 + length].decode())
        at += 4 + length
        if len(texts) == 1:
            (left,) = struct.unpack_from("<I", packet, at)
            left, at = left + 1, at + 4
        left -= 1
    return dict(text.partition("=")[::2] for text in texts[1:])


def _page(serial: int, number: int, granule: int, flags: int, packets: list[bytes]) -> bytes:
    lacing = b"".join(b"\xff" * (len(packet) // 255) + bytes([len(packet) % 255]) for packet in packets)
    head = struct.pack("<4sBBqIIIB", b"OggS", 0, flags, granule, serial, number, 0, len(lacing))
    page = head + lacing + b"".join(packets)
    return page[:_CRC_AT] + struct.pack("<I", _crc(page)) + page[_CRC_AT + 4 :]


def _crc(page: bytes) -> int:
    """The CRC of RFC 3533: that of zlib with the bits the other way round, and without its inversions."""
    register = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(register.to_bytes(4, "little").translate(_REVERSED))


def _pages(data: bytes) -> Iterator[tuple[int, list[bytes]]]:
    at = 0
    while at < len(data):
        if data[at : at + 4] != b"OggS" or len(data) < at + 27:
            raise ValueError(f"byte {at}: expected a page")
        count = data[at + 26]
        lacing = data[at + 27 : at + 27 + count]
        end = at + 27 + count + sum(lacing)
        page = data[at:end]
        if len(page) != end - at:
            raise ValueError(f"byte {at}: the page is cut off")
        zeroed = page[:_CRC_AT] + bytes(4) + page[_CRC_AT + 4 :]
        if struct.pack("<I", _crc(zeroed)) != page[_CRC_AT : _CRC_AT + 4]:
            raise ValueError(f"byte {at}: the checksum is wrong")
        yield page[5], _packets(page[27 + count :], lacing)
        at = end


def _packets(body: bytes, lacing: bytes) -> list[bytes]:
    packets, at, length = [], 0, 0
    for value in lacing:
        length += value
        if value < 255:
            packets.append(body[at : at + length])
            at, length = at + length, 0
    return packets
