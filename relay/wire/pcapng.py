"""Blocks of pcapng capture files (draft-ietf-opsawg-pcapng), little-endian: one section, one interface of IP packets.

A file is ``build_section_header``, ``build_interface``, any number of ``build_packet``, and ``build_statistics``.
``BlockCutter`` cuts such a stream into its blocks again, and ``CaptureTally`` reads from them what people need to know.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Final

from relay.errors import PeerError

# Fixed by the specification.
BYTE_ORDER_MAGIC: Final = 0x1A2B3C4D
VERSION: Final = (1, 0)
SECTION_LENGTH_UNKNOWN: Final = -1
LINKTYPE_RAW: Final = 101  # IPv4 or IPv6, as the first four bits say
OPT_COMMENT: Final = 1
SHB_USERAPPL: Final = 4
IF_NAME: Final = 2
IF_TSRESOL: Final = 9
EPB_FLAGS: Final = 2
EPB_DROPCOUNT: Final = 4
ISB_STARTTIME: Final = 2
ISB_ENDTIME: Final = 3
ISB_IFRECV: Final = 4
ISB_IFDROP: Final = 5
INBOUND: Final = 1
OUTBOUND: Final = 2
# Chosen: 10^-6 s, which readers also assume by default.
MICROSECONDS: Final = b"\x06"
# Two texts of 64 KiB. No packet, comment or name of ours makes a longer block.
MAX_BLOCK_BYTES: Final = 256 * 1024
# An option's length has 16 bits.
MAX_TEXT_BYTES: Final = 0xFFFF

_Option = tuple[int, bytes]


class BlockType(IntEnum):
    """The types of blocks that are used here."""

    SECTION_HEADER = 0x0A0D0D0A
    INTERFACE = 1
    STATISTICS = 5
    PACKET = 6


class PcapngError(PeerError):
    """The bytes are not a pcapng file of this kind."""


def build_section_header(application: str, comment: str) -> bytes:
    """The beginning of a file. Texts that are too long for it are cut."""
    fixed = struct.pack("<IHHq", BYTE_ORDER_MAGIC, *VERSION, SECTION_LENGTH_UNKNOWN)
    options = [(OPT_COMMENT, _text(comment)), (SHB_USERAPPL, _text(application))]
    return _block(BlockType.SECTION_HEADER, fixed, options)


def build_interface(name: str) -> bytes:
    """The interface of all packets. Times are in microseconds. Packets are never cut."""
    fixed = struct.pack("<HHI", LINKTYPE_RAW, 0, 0)
    return _block(BlockType.INTERFACE, fixed, [(IF_NAME, _text(name)), (IF_TSRESOL, MICROSECONDS)])


def build_packet(at_us: int, packet: bytes, *, outbound: bool, missed: int = 0) -> bytes:
    """One IP packet; ``at_us`` since 1970. ``missed`` packets just before it were not captured."""
    fixed = struct.pack("<IIIII", 0, at_us >> 32, at_us & 0xFFFFFFFF, len(packet), len(packet))
    options = [(EPB_FLAGS, struct.pack("<I", OUTBOUND if outbound else INBOUND))]
    if missed:
        options.append((EPB_DROPCOUNT, struct.pack("<Q", missed)))
    return _block(BlockType.PACKET, fixed + _padded(packet), options)


def build_statistics(started_us: int, ended_us: int, *, received: int, missed: int, comment: str) -> bytes:
    """The end of a file: how many packets came, and how many of them were not captured. Times since 1970."""
    options = [
        (OPT_COMMENT, _text(comment)),
        (ISB_STARTTIME, _time(started_us)),
        (ISB_ENDTIME, _time(ended_us)),
        (ISB_IFRECV, struct.pack("<Q", received)),
        (ISB_IFDROP, struct.pack("<Q", missed)),
    ]
    return _block(BlockType.STATISTICS, struct.pack("<I", 0) + _time(ended_us), options)


def _time(at_us: int) -> bytes:
    return struct.pack("<II", at_us >> 32, at_us & 0xFFFFFFFF)


def _text(value: str) -> bytes:
    # Cut between characters, so that it stays UTF-8.
    return value.encode(errors="replace")[:MAX_TEXT_BYTES].decode(errors="ignore").encode()


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) & 3)


def _block(kind: BlockType, fixed: bytes, options: Sequence[_Option]) -> bytes:
    told = b"".join(struct.pack("<HH", code, len(value)) + _padded(value) for code, value in options)
    body = fixed + told + struct.pack("<HH", 0, 0)
    size = struct.pack("<I", 12 + len(body))
    return struct.pack("<I", kind) + size + body + size


class BlockCutter:
    """Collects bytes and gives whole blocks. It holds at most one that is not complete yet."""

    def __init__(self) -> None:
        self._rest = bytearray()

    @property
    def pending(self) -> int:
        """Bytes that wait for the rest of their block."""
        return len(self._rest)

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes of the stream, and return the blocks that are complete. Raises PcapngError for a broken one."""
        self._rest += data
        blocks, offset = [], 0
        while len(self._rest) - offset >= 12:
            size: int = struct.unpack_from("<I", self._rest, offset + 4)[0]
            if size < 12 or size & 3 or size > MAX_BLOCK_BYTES:
                raise PcapngError(f"a block of {size} bytes")
            if len(self._rest) - offset < size:
                break
            block = bytes(self._rest[offset : offset + size])
            if block[4:8] != block[-4:]:
                raise PcapngError("the two lengths of a block differ")
            blocks.append(block)
            offset += size
        del self._rest[:offset]
        return blocks


class CaptureTally:
    """What the blocks of a capture say, one after the other."""

    def __init__(self) -> None:
        self.packets = 0
        self.missed = 0
        # Why the capture ended, from its last block. None until that has come.
        self.end: str | None = None
        self._started = False

    def add(self, block: bytes) -> None:
        """Take the next block. Raises PcapngError if it is not one that ``build_...`` makes."""
        kind = int.from_bytes(block[:4], "little")
        if not self._started and kind != BlockType.SECTION_HEADER:
            raise PcapngError(f"a block of type {kind:#x} where a capture begins")
        self._started = True
        if kind == BlockType.PACKET:
            captured: int = struct.unpack_from("<I", _fixed(block, 20), 12)[0]
            self.packets += 1
            options = _options(block, 28 + captured + (-captured & 3))
            self.missed += int.from_bytes(options.get(EPB_DROPCOUNT, b""), "little")
        elif kind == BlockType.STATISTICS:
            _fixed(block, 12)
            options = _options(block, 20)
            self.missed = int.from_bytes(options.get(ISB_IFDROP, b""), "little")
            self.end = options.get(OPT_COMMENT, b"").decode(errors="replace")


def _fixed(block: bytes, size: int) -> bytes:
    if len(block) < 12 + size:
        raise PcapngError("a block is too short for its type")
    return block[8 : 8 + size]


def _options(block: bytes, offset: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while offset + 4 <= len(block) - 4:
        code, size = struct.unpack_from("<HH", block, offset)
        if not code:
            return found
        offset += 4
        if offset + size > len(block) - 4:
            break
        found[code] = block[offset : offset + size]
        offset += size + (-size & 3)
    raise PcapngError("the options of a block do not end in it")
