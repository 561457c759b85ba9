"""The stream cutters, the obvious one and the compiled one: one suite for both, and a property that joins them."""

from __future__ import annotations

from itertools import pairwise
from typing import Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.wire.channeldata import build_channel_data
from relay.wire.stream import MAX_UNIT_BYTES, FramingFault, StreamCutter
from relay.wire.stun import MessageClass, Method, build_message
from tests.fuzz import _leaves
from tests.support.properties import repeatable

COOKIE = b"\x21\x12\xa4\x42"
ID = bytes(range(12))


class Cutter(Protocol):
    """What both cutters are."""

    @property
    def fault(self) -> FramingFault | None: ...
    @property
    def pending(self) -> int: ...
    def feed(self, data: bytes) -> list[bytes]: ...


@pytest.fixture(params=["obvious", "compiled"])
def new_cutter(request: pytest.FixtureRequest) -> type[Cutter]:
    return StreamCutter if request.param == "obvious" else _leaves.StreamCutter


def stun(length: int = 0) -> bytes:
    return b"\x00\x01" + length.to_bytes(2) + COOKIE + ID + b"\x5a" * length


def padded(unit: bytes) -> bytes:
    return unit + bytes(-len(unit) & 3)


def feed_all(cutter: Cutter, chunks: list[bytes]) -> list[bytes]:
    return [unit for chunk in chunks for unit in cutter.feed(chunk)]


# One of every kind: STUN with and without attributes, each padding, an empty ChannelData, the highest channel.
UNITS = [
    stun(),
    build_channel_data(0x4000, b"a" * 172),
    build_channel_data(0x4001, b""),
    build_message(Method.SEND, MessageClass.INDICATION, ID, [(0x8022, b"xyz")]),
    build_channel_data(0x4002, b"b"),
    build_channel_data(0x4FFF, b"cc"),
    build_channel_data(0x7FFF, b"ddd"),
    stun(8),
]
STREAM = b"".join(padded(unit) for unit in UNITS)


def test_the_stream_whole(new_cutter: type[Cutter]) -> None:
    cutter = new_cutter()
    assert cutter.feed(STREAM) == UNITS
    assert (cutter.fault, cutter.pending) == (None, 0)


def test_the_stream_split_at_every_byte(new_cutter: type[Cutter]) -> None:
    for split in range(len(STREAM) + 1):
        cutter = new_cutter()
        assert feed_all(cutter, [STREAM[:split], STREAM[split:]]) == UNITS, split
        assert (cutter.fault, cutter.pending) == (None, 0)


def test_the_stream_byte_by_byte(new_cutter: type[Cutter]) -> None:
    cutter = new_cutter()
    assert feed_all(cutter, [bytes([byte]) for byte in STREAM]) == UNITS
    assert (cutter.fault, cutter.pending) == (None, 0)


def test_a_unit_is_given_with_its_last_byte_and_not_before(new_cutter: type[Cutter]) -> None:
    cutter = new_cutter()
    assert cutter.feed(stun(4)[:-1]) == []
    assert cutter.pending == 23
    assert cutter.feed(b"\x5a") == [stun(4)]


def test_section_12_5_channel_data_waits_for_its_padding(new_cutter: type[Cutter]) -> None:
    """Padding is mandatory over streams; what it is made of is nobody's business."""
    cutter = new_cutter()
    assert cutter.feed(b"\x40\x00\x00\x01a") == []
    assert cutter.feed(b"??") == []
    assert cutter.pending == 7
    assert cutter.feed(b"?" + stun()) == [b"\x40\x00\x00\x01a", stun()]
    assert cutter.pending == 0


def test_trailing_bytes_wait_for_the_rest_of_their_unit(new_cutter: type[Cutter]) -> None:
    for size in range(len(stun())):
        cutter = new_cutter()
        assert cutter.feed(STREAM + stun()[:size]) == UNITS
        assert (cutter.fault, cutter.pending) == (None, size)
        assert cutter.feed(stun()[size:] + STREAM) == [stun(), *UNITS]


def test_nothing_at_all(new_cutter: type[Cutter]) -> None:
    cutter = new_cutter()
    assert cutter.feed(b"") == []
    assert (cutter.fault, cutter.pending) == (None, 0)
    cutter.feed(b"\x00")
    assert cutter.feed(b"") == []
    assert cutter.pending == 1


# Lengths that wrap when summed in 16 bits


@pytest.mark.parametrize("length", [65512, 65516, 65520, 65524, 65528, 65532])
def test_stun_lengths_that_wrapped_at_16_bits_elsewhere(new_cutter: type[Cutter], length: int) -> None:
    unit = stun(length)
    for chunks in ([unit + stun()], [unit[:4], unit[4:], stun()], [unit[:-1], unit[-1:] + stun()]):
        cutter = new_cutter()
        assert feed_all(cutter, chunks) == [unit, stun()]
        assert (cutter.fault, cutter.pending) == (None, 0)


@pytest.mark.parametrize("length", [65531, 65532, 65533, 65534, 65535])
def test_the_longest_channel_data(new_cutter: type[Cutter], length: int) -> None:
    unit = build_channel_data(0x4000, b"\xa5" * length)
    stream = padded(unit) + stun()
    for split in (0, 3, 4, 5, 4 + length - 1, 4 + length, len(stream) - 20, len(stream)):
        cutter = new_cutter()
        assert feed_all(cutter, [stream[:split], stream[split:]]) == [unit, stun()], split
        assert (cutter.fault, cutter.pending) == (None, 0)


def test_the_longest_unit_is_the_one_the_module_names() -> None:
    assert len(stun(65532)) == MAX_UNIT_BYTES
    assert len(padded(build_channel_data(0x4000, bytes(65535)))) < MAX_UNIT_BYTES


# Faults: (how the broken unit begins, the fault, how many of its bytes show it)
FAULTS = {
    "RTP": (b"\x80" + bytes(19), FramingFault.FIRST_BYTE, 1),
    "0xff": (b"\xff" + bytes(19), FramingFault.FIRST_BYTE, 1),
    "STUN length 1": (b"\x00\x01\x00\x01" + COOKIE + ID, FramingFault.STUN_LENGTH, 4),
    "STUN length 2": (b"\x00\x01\x00\x02" + COOKIE + ID, FramingFault.STUN_LENGTH, 4),
    "STUN length 65535": (b"\x00\x01\xff\xff" + COOKIE + ID, FramingFault.STUN_LENGTH, 4),
    "length and cookie": (b"\x00\x01\x00\x03" + bytes(16), FramingFault.STUN_LENGTH, 4),
    "cookie byte 1": (b"\x00\x01\x00\x00\x20\x12\xa4\x42" + ID, FramingFault.MAGIC_COOKIE, 5),
    "cookie byte 2": (b"\x00\x01\x00\x00\x21\x13\xa4\x42" + ID, FramingFault.MAGIC_COOKIE, 6),
    "cookie byte 3": (b"\x00\x01\x00\x00\x21\x12\xa5\x42" + ID, FramingFault.MAGIC_COOKIE, 7),
    "cookie byte 4": (b"\x00\x01\x00\x00\x21\x12\xa4\x43" + ID, FramingFault.MAGIC_COOKIE, 8),
    "TLS ClientHello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc" + bytes(11), FramingFault.STUN_LENGTH, 4),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_at_every_split(new_cutter: type[Cutter], name: str) -> None:
    """The units before it are given, it is seen with the byte that shows it, and nothing follows."""
    broken, fault, shown_by = FAULTS[name]
    stream = STREAM + broken + STREAM
    for split in range(len(stream) + 1):
        cutter = new_cutter()
        units = cutter.feed(stream[:split])
        seen_early = split >= len(STREAM) + shown_by
        assert (cutter.fault is fault) == seen_early, split
        units += cutter.feed(stream[split:])
        assert (units, cutter.fault, cutter.pending) == (UNITS, fault, 0), split


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_byte_by_byte(new_cutter: type[Cutter], name: str) -> None:
    broken, fault, shown_by = FAULTS[name]
    cutter = new_cutter()
    for count, byte in enumerate(broken, start=1):
        assert cutter.feed(bytes([byte])) == []
        assert cutter.fault == (fault if count >= shown_by else None)
        assert cutter.pending == (0 if count >= shown_by else count)


@pytest.mark.parametrize("name", FAULTS)
def test_nothing_is_resynchronised_behind_a_fault(new_cutter: type[Cutter], name: str) -> None:
    cutter = new_cutter()
    cutter.feed(FAULTS[name][0])
    assert cutter.feed(STREAM) == []
    assert (cutter.fault, cutter.pending) == (FAULTS[name][1], 0)


def test_http_is_framed_as_channel_data_so_the_first_bytes_must_be_looked_at_before(new_cutter: type[Cutter]) -> None:
    """ "GE" is 0x4745, a channel of RFC 5766; the cutter waits for 21,536 bytes more."""
    cutter = new_cutter()
    assert cutter.feed(b"GET / HTTP/1.1\r\n\r\n") == []
    assert (cutter.fault, cutter.pending) == (None, 18)


def test_the_fault_cannot_be_set_from_outside() -> None:
    with pytest.raises(AttributeError):
        _leaves.StreamCutter().fault = FramingFault.FIRST_BYTE  # type: ignore[misc]


@pytest.mark.parametrize(
    "data", [None, "text", bytearray(b"\0"), memoryview(b"\0")], ids=lambda data: type(data).__name__
)
def test_the_compiled_cutter_takes_bytes_only(data: object) -> None:
    with pytest.raises(TypeError):
        _leaves.StreamCutter().feed(data)  # type: ignore[arg-type]


# Both cutters on the same random stream

VALID_UNITS = st.one_of(
    st.integers(0, 12).map(lambda words: stun(4 * words)),
    st.builds(build_channel_data, st.integers(0x4000, 0x7FFF), st.binary(max_size=40)).map(padded),
)
GARBAGE = st.one_of(
    st.binary(max_size=12),
    st.sampled_from([broken for broken, _, _ in FAULTS.values()]),
    st.integers(0, 0x3FFF).map(lambda kind: kind.to_bytes(2)),
)
# Mostly valid: a fault ends the stream, and the interesting states lie before it.
STREAMS = st.lists(st.one_of(VALID_UNITS, VALID_UNITS, VALID_UNITS, GARBAGE), max_size=12).map(b"".join)


@repeatable
@given(STREAMS, st.lists(st.integers(0, 600), max_size=12))
def test_both_cutters_say_the_same_of_any_stream_in_any_pieces(stream: bytes, cuts: list[int]) -> None:
    obvious, compiled = StreamCutter(), _leaves.StreamCutter()
    for start, end in pairwise([0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]):
        chunk = stream[start:end]
        assert obvious.feed(chunk) == compiled.feed(chunk)
        assert (obvious.fault, obvious.pending) == (compiled.fault, compiled.pending)


@repeatable
@given(STREAMS, st.lists(st.integers(0, 600), max_size=12))
def test_the_pieces_do_not_matter(stream: bytes, cuts: list[int]) -> None:
    whole, pieces = StreamCutter(), StreamCutter()
    ends = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    units = feed_all(pieces, [stream[start:end] for start, end in pairwise(ends)])
    assert whole.feed(stream) == units
    assert (whole.fault, whole.pending) == (pieces.fault, pieces.pending)


@repeatable
@given(st.lists(VALID_UNITS, max_size=12))
def test_valid_units_are_all_given_and_nothing_else(units: list[bytes]) -> None:
    for cutter in (StreamCutter(), _leaves.StreamCutter()):
        assert [padded(unit) for unit in cutter.feed(b"".join(units))] == units
        assert (cutter.fault, cutter.pending) == (None, 0)
