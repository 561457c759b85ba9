"""The capsule protocol: the vectors of RFC 9000 and RFC 9298, every fault, every split, bounded memory."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.wire.capsule import (
    MAX_UDP_PAYLOAD_BYTES,
    MAX_VARINT,
    CapsuleCutter,
    build_capsule,
    build_datagram,
    build_varint,
    parse_varint,
)
from tests.support.properties import repeatable

# RFC 9000 section A.1.
VARINTS = {
    "c2197c5eff14e88c": 151_288_809_941_952_652,
    "9d7f3e7d": 494_878_333,
    "7bbd": 15_293,
    "4025": 37,  # not the shortest form
    "25": 37,
}


@pytest.mark.parametrize(("data", "value"), VARINTS.items())
def test_varints_of_the_rfc(data: str, value: int) -> None:
    encoded = bytes.fromhex(data)
    assert parse_varint(b"?" + encoded + b"!", 1) == (value, 1 + len(encoded))
    for size in range(len(encoded)):
        assert parse_varint(encoded[:size]) is None
    assert build_varint(value) == (b"\x25" if value == 37 else encoded)


@pytest.mark.parametrize("value", [0, 63, 64, 16383, 16384, (1 << 30) - 1, 1 << 30, MAX_VARINT])
def test_varints_at_their_boundaries(value: int) -> None:
    encoded = build_varint(value)
    assert parse_varint(encoded) == (value, len(encoded))


@pytest.mark.parametrize("value", [-1, MAX_VARINT + 1])
def test_what_no_varint_can_say(value: int) -> None:
    with pytest.raises(ValueError, match="expected 0 to"):
        build_varint(value)


def cut(chunks: list[bytes]) -> tuple[list[bytes], str | None, int, bool]:
    cutter = CapsuleCutter()
    payloads = [payload for chunk in chunks for payload in cutter.feed(chunk)]
    return payloads, cutter.fault, cutter.oversize, cutter.within


def test_datagrams_are_built_as_in_the_rfc() -> None:
    assert build_datagram(bytes(62)) == bytes.fromhex("003f00") + bytes(62)
    assert build_datagram(bytes(1200)) == bytes.fromhex("0044b100") + bytes(1200)
    assert build_datagram(b"") == bytes.fromhex("000100")


def varint_of(value: int, size: int) -> bytes:
    """In a form of ``size`` bytes."""
    return (value | {1: 0, 2: 1, 4: 2, 8: 3}[size] << (8 * size - 2)).to_bytes(size)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_varints_need_not_be_the_shortest(size: int) -> None:
    capsule = varint_of(0, size) + varint_of(size + 5, size) + varint_of(0, size) + b"voice"
    assert cut([capsule]) == ([b"voice"], None, 0, False)


def test_other_types_and_contexts_are_skipped() -> None:
    other = build_capsule(0x2A, b"x" * 100) + build_capsule(MAX_VARINT, b"") + build_capsule(0, build_varint(2) + b"y")
    stream = other + build_datagram(b"a") + other + build_datagram(b"")
    assert cut([stream]) == ([b"a", b""], None, 0, False)
    for at in range(len(stream)):
        assert cut([stream[:at], stream[at:]])[0] == [b"a", b""]


def test_what_is_skipped_is_not_kept() -> None:
    cutter = CapsuleCutter()
    assert cutter.feed(build_varint(7) + build_varint(MAX_VARINT)) == []
    for _ in range(100):
        assert cutter.feed(bytes(10_000)) == []
        assert not cutter._rest
    assert cutter.within
    assert cutter.fault is None


def test_payloads_that_are_too_long_are_skipped_and_counted() -> None:
    stream = build_datagram(bytes(2048)) + build_datagram(bytes(2049)) + build_datagram(b"next")
    assert cut([stream]) == ([bytes(2048), b"next"], None, 1, False)
    assert cut([bytes([byte]) for byte in stream]) == ([bytes(2048), b"next"], None, 1, False)
    longest = build_datagram(bytes(MAX_UDP_PAYLOAD_BYTES))
    assert cut([longest + build_datagram(b"next")]) == ([b"next"], None, 1, False)
    assert cut([build_capsule(0, build_varint(2) + bytes(70_000))]) == ([], None, 0, False)


FAULTS = {
    "no UDP payload is so long": (build_varint(0) + build_varint(65_529) + b"\0", "datagram of 65528 bytes"),
    "longest": (build_varint(0) + build_varint(MAX_VARINT) + b"\0", f"datagram of {MAX_VARINT - 1} bytes"),
    "nothing in it": (b"\0\0", "no context id"),
    "half a context id": (b"\0\x01\x40", "no context id"),
    "most of a context id": (b"\0\x07\xc0", "no context id"),
}


@pytest.mark.parametrize(("data", "fault"), FAULTS.values(), ids=FAULTS.keys())
def test_faults_are_seen_with_the_first_byte_that_shows_them(data: bytes, fault: str) -> None:
    good = build_datagram(b"good")
    assert cut([good + data[:-1]])[:2] == ([b"good"], None)
    assert cut([good + data])[:2] == ([b"good"], fault)
    assert cut([good + data + good, good])[:2] == ([b"good"], fault)
    assert cut([bytes([byte]) for byte in good + data + good])[:2] == ([b"good"], fault)


def test_whether_a_capsule_is_whole() -> None:
    stream = build_capsule(9, b"other") + build_datagram(b"voice")
    ends = {0, 7, len(stream)}
    for at in range(len(stream) + 1):
        assert cut([stream[:at]])[3] is (at not in ends)


varints = st.builds(
    lambda value, size: varint_of(value % (1 << (8 * size - 2)), size),
    st.integers(0, 70_000),
    st.sampled_from([1, 2, 4, 8]),
)
capsules = st.one_of(
    st.binary(max_size=200).map(build_datagram),
    st.integers(2040, 2060).map(lambda size: build_datagram(bytes(size))),
    st.builds(build_capsule, st.integers(0, 100), st.binary(max_size=100)),
    st.builds(lambda *parts: b"".join(parts), st.just(b"\0"), varints, varints, st.binary(max_size=50)),
)


@repeatable
@given(st.lists(capsules, max_size=10).map(b"".join), st.lists(st.integers(0, 5000), max_size=8))
def test_the_verdict_does_not_depend_on_splits(stream: bytes, places: list[int]) -> None:
    at = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    whole = cut([stream])
    assert cut([stream[start:end] for start, end in itertools.pairwise(at)]) == whole
    assert cut([bytes([byte]) for byte in stream]) == whole


@repeatable
@given(st.lists(st.binary(max_size=300)))
def test_what_is_built_is_read(payloads: list[bytes]) -> None:
    assert cut([b"".join(map(build_datagram, payloads))]) == (payloads, None, 0, False)
