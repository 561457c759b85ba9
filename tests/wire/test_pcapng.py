"""pcapng: each block byte for byte, what the strict reader reads, and streams cut anywhere."""

from __future__ import annotations

import contextlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.addresses import Address
from relay.quality.stream import Direction
from relay.wire.pcapng import (
    MAX_BLOCK_BYTES,
    BlockCutter,
    CaptureTally,
    PcapngError,
    build_interface,
    build_packet,
    build_section_header,
    build_statistics,
)
from relay.wire.udp import build_udp_packet
from tests.support.pcapng import Packet, read_capture
from tests.support.properties import repeatable

AT_US = 0x0006_3FA1_B2C3_D4E5
FLOW, UPSTREAM = Address("192.0.2.1", 50000), Address("192.0.2.7", 3478)
HEADER = build_section_header("relay 1", "hello") + build_interface("upstream")
OUT = build_packet(AT_US, build_udp_packet(FLOW, UPSTREAM, b"there"), outbound=True)
BACK = build_packet(AT_US + 20, build_udp_packet(UPSTREAM, FLOW, b"and back"), outbound=False, missed=2)
LAST = build_statistics(AT_US, AT_US + 30, received=5, missed=3, comment="it ended")
FILE = HEADER + OUT + BACK + LAST


def compact(text: str) -> bytes:
    return bytes.fromhex(text.replace("|", " "))


def test_section_header() -> None:
    assert build_section_header("ab", "c") == compact(
        "0a0d0d0a 30000000 | 4d3c2b1a 0100 0000 ffffffffffffffff"
        "| 0100 0100 63000000 | 0400 0200 61620000 | 0000 0000 | 30000000"
    )


def test_interface() -> None:
    assert build_interface("up") == compact(
        "01000000 28000000 | 6500 0000 00000000 | 0200 0200 75700000 | 0900 0100 06000000 | 0000 0000 | 28000000"
    )


def test_packet() -> None:
    assert build_packet(0x1_0000_0002, b"\x45abcd", outbound=True) == compact(
        "06000000 34000000 | 00000000 01000000 02000000 05000000 05000000 4561626364 000000"
        "| 0200 0400 02000000 | 0000 0000 | 34000000"
    )


def test_packet_behind_a_gap() -> None:
    assert build_packet(0, b"", outbound=False, missed=7) == compact(
        "06000000 38000000 | 00000000 00000000 00000000 00000000 00000000"
        "| 0200 0400 01000000 | 0400 0800 0700000000000000 | 0000 0000 | 38000000"
    )


def test_statistics() -> None:
    assert build_statistics(1, 0x1_0000_0002, received=9, missed=8, comment="end") == compact(
        "05000000 54000000 | 00000000 01000000 02000000"
        "| 0100 0300 656e6400 | 0200 0800 00000000 01000000 | 0300 0800 01000000 02000000"
        "| 0400 0800 0900000000000000 | 0500 0800 0800000000000000 | 0000 0000 | 54000000"
    )


def test_a_file() -> None:
    read = read_capture(FILE)
    assert (read.application, read.comment, read.interface) == ("relay 1", "hello", "upstream")
    assert read.packets == [
        Packet(AT_US, Direction.UPLINK, FLOW, UPSTREAM, b"there", 0),
        Packet(AT_US + 20, Direction.DOWNLINK, UPSTREAM, FLOW, b"and back", 2),
    ]
    assert (read.received, read.missed, read.end) == (5, 3, "it ended")
    assert (read.started_us, read.ended_us) == (AT_US, AT_US + 30)


def test_texts_that_are_too_long_are_cut_between_characters() -> None:
    read = read_capture(
        build_section_header("\ud800" * 70_000, "xé" + "é" * 40_000) + build_interface("\u20ac" * 30_000)
    )
    assert read.comment == "xé" + "é" * 32_766
    assert read.application == "?" * 65_535
    assert read.interface == "\u20ac" * 21_845


@repeatable
@given(st.lists(st.integers(0, len(FILE)), max_size=12))
def test_a_stream_cut_anywhere_gives_the_same_blocks(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(FILE)]
    cutter = BlockCutter()
    blocks = [block for start, end in itertools.pairwise(edges) for block in cutter.feed(FILE[start:end])]
    assert b"".join(blocks) == FILE
    assert len(blocks) == 5
    assert cutter.pending == 0


def test_a_block_that_is_not_whole_waits() -> None:
    cutter = BlockCutter()
    assert b"".join(cutter.feed(FILE[:-1])) == HEADER + OUT + BACK
    assert cutter.pending == len(LAST) - 1


@pytest.mark.parametrize("size", [0, 11, 13, MAX_BLOCK_BYTES + 4, 0xFFFFFFFC])
def test_a_length_that_cannot_be(size: int) -> None:
    with pytest.raises(PcapngError, match="a block of"):
        BlockCutter().feed(LAST[:4] + size.to_bytes(4, "little") + LAST[8:])


def test_two_lengths_that_differ() -> None:
    with pytest.raises(PcapngError, match="differ"):
        BlockCutter().feed(LAST[:-4] + bytes(4))


def tally(file: bytes) -> CaptureTally:
    counted, cutter = CaptureTally(), BlockCutter()
    for block in cutter.feed(file):
        counted.add(block)
    return counted


def test_the_tally_of_a_whole_file() -> None:
    counted = tally(FILE)
    assert (counted.packets, counted.missed, counted.end) == (2, 3, "it ended")


def test_the_tally_of_one_that_was_cut() -> None:
    counted = tally(HEADER + OUT + BACK)
    assert (counted.packets, counted.missed, counted.end) == (2, 2, None)


def test_another_file() -> None:
    with pytest.raises(PcapngError, match="where a capture begins"):
        tally(OUT)


@repeatable
@given(st.binary(max_size=120).map(lambda body: body + bytes(-len(body) & 3)), st.sampled_from([5, 6]))
def test_any_block_is_counted_or_refused(body: bytes, kind: int) -> None:
    size = (12 + len(body)).to_bytes(4, "little")
    with contextlib.suppress(PcapngError):
        tally(HEADER + kind.to_bytes(4, "little") + size + body + size)
