"""A strict reader of pcapng, from the specification: whatever is not as it says there fails the test."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass, field

from relay.addresses import Address
from relay.quality.stream import Direction


@dataclass(frozen=True)
class Packet:
    """One UDP datagram of a capture."""

    at_us: int
    direction: Direction
    source: Address
    target: Address
    data: bytes
    missed: int


@dataclass
class CaptureFile:
    """All that a file says. ``received`` is None without a last block."""

    comment: str = ""
    application: str = ""
    interface: str = ""
    packets: list[Packet] = field(default_factory=list)
    received: int | None = None
    missed: int | None = None
    started_us: int = 0
    ended_us: int = 0
    end: str = ""

    def datagrams(self, direction: Direction) -> list[bytes]:
        """What went one way, in order."""
        return [packet.data for packet in self.packets if packet.direction is direction]


def read_capture(file: bytes) -> CaptureFile:
    """Read a whole file of one section with one interface."""
    read, kinds, offset = CaptureFile(), list[int](), 0
    while offset < len(file):
        kind, size = struct.unpack_from("<II", file, offset)
        assert size % 4 == 0
        assert size >= 12
        assert offset + size <= len(file), "the last block is cut"
        assert struct.unpack_from("<I", file, offset + size - 4) == (size,), "the lengths differ"
        _read_block(read, kind, file[offset + 8 : offset + size - 4])
        kinds.append(kind)
        offset += size
    assert kinds[:2] == [0x0A0D0D0A, 1]
    assert 5 not in kinds[:-1], "statistics in the middle"
    assert set(kinds[2:]) <= {5, 6}
    return read


def _read_block(read: CaptureFile, kind: int, body: bytes) -> None:
    if kind == 0x0A0D0D0A:
        assert struct.unpack_from("<IHHq", body) == (0x1A2B3C4D, 1, 0, -1)
        options = _options(body[16:])
        read.comment, read.application = options.pop(1).decode(), options.pop(4).decode()
    elif kind == 1:
        assert struct.unpack_from("<HHI", body) == (101, 0, 0)
        options = _options(body[8:])
        assert options.pop(9) == b"\6"
        read.interface = options.pop(2).decode()
    elif kind == 6:
        interface, high, low, captured, original = struct.unpack_from("<IIIII", body)
        assert (interface, captured) == (0, original)
        padding = -captured & 3
        assert body[20 + captured : 20 + captured + padding] == bytes(padding)
        options = _options(body[20 + captured + padding :])
        direction = {1: Direction.DOWNLINK, 2: Direction.UPLINK}[int.from_bytes(options.pop(2), "little")]
        missed = int.from_bytes(options.pop(4, b""), "little")
        source, target, data = read_udp(body[20 : 20 + captured])
        read.packets.append(Packet(high << 32 | low, direction, source, target, data, missed))
    else:
        assert kind == 5
        options = _options(body[12:])
        read.started_us, read.ended_us = (_time(options.pop(number)) for number in (2, 3))
        assert _time(body[4:12]) == read.ended_us
        read.received, read.missed = (int.from_bytes(options.pop(number), "little") for number in (4, 5))
        read.end = options.pop(1).decode()
    assert not options, "options of no use"


def _options(data: bytes) -> dict[int, bytes]:
    found, offset = dict[int, bytes](), 0
    while True:
        code, size = struct.unpack_from("<HH", data, offset)
        if code == 0:
            assert size == 0
            assert offset + 4 == len(data)
            return found
        assert code not in found
        found[code] = data[offset + 4 : offset + 4 + size]
        assert len(found[code]) == size
        offset += 4 + size + (-size & 3)


def _time(data: bytes) -> int:
    high, low = struct.unpack("<II", data)
    return int(high << 32 | low)


def read_udp(packet: bytes) -> tuple[Address, Address, bytes]:
    """Source, target and data of an IP packet whose lengths and checksums are right."""
    if packet[0] == 0x45:
        assert int.from_bytes(packet[2:4]) == len(packet)
        assert packet[9] == 17
        assert _ones_complement_sum(packet[:20]) == 0xFFFF
        addresses, udp = packet[12:20], packet[20:]
    else:
        assert packet[0] >> 4 == 6
        assert int.from_bytes(packet[4:6]) == len(packet) - 40
        assert packet[6] == 17
        addresses, udp = packet[8:40], packet[40:]
    half = len(addresses) // 2
    sender, receiver = ipaddress.ip_address(addresses[:half]), ipaddress.ip_address(addresses[half:])
    assert int.from_bytes(udp[4:6]) == len(udp)
    assert udp[6:8] != b"\0\0", "no checksum"
    assert _ones_complement_sum(addresses + struct.pack("!II", len(udp), 17) + udp) == 0xFFFF
    ports = struct.unpack_from("!HH", udp)
    return Address(str(sender), ports[0]), Address(str(receiver), ports[1]), udp[8:]


def _ones_complement_sum(data: bytes) -> int:
    """RFC 1071, word for word."""
    total = 0
    for (word,) in struct.iter_unpack("!H", data + bytes(len(data) & 1)):
        total += word
        total = (total & 0xFFFF) + (total >> 16)
    return total
