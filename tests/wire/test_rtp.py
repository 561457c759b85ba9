"""The RTP header: one packet field by field, RTCP told apart, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.wire.rtp import RtpError, RtpHeader, build_packet, is_rtcp, parse_header
from tests.support.properties import repeatable

PCMU = bytes.fromhex("80 00 1234 00005678 deadbeef") + b"\xff" * 160


def test_section_5_1_a_packet_field_by_field() -> None:
    header = RtpHeader(payload_type=0, sequence_number=0x1234, timestamp=0x5678, ssrc=0xDEADBEEF)
    assert parse_header(PCMU) == header
    assert build_packet(header, b"\xff" * 160) == PCMU


@pytest.mark.parametrize(
    ("start", "field"),
    [
        ("8080", {"marker": True}),
        ("a000", {"padding": True}),
        ("9000", {"extension": True}),
        ("8200", {"csrc_count": 2}),
        ("8007", {"payload_type": 7}),
        ("80ff", {"payload_type": 127, "marker": True}),
    ],
)
def test_section_5_1_each_bit_is_one_field(start: str, field: dict[str, int]) -> None:
    packet = bytes.fromhex(start) + PCMU[2:]
    plain = {"payload_type": 0, "sequence_number": 0x1234, "timestamp": 0x5678, "ssrc": 0xDEADBEEF}
    header = RtpHeader(**{**plain, **field})  # type: ignore[arg-type]
    assert parse_header(packet) == header
    assert build_packet(header, PCMU[12:]) == packet


@pytest.mark.parametrize("packet", [b"", PCMU[:11], b"\x8f" + PCMU[1 : 12 + 4 * 15 - 1]])
def test_a_packet_that_is_cut_off_is_refused(packet: bytes) -> None:
    with pytest.raises(RtpError, match="bytes"):
        parse_header(packet)


def test_fifteen_contributing_sources_fit_exactly() -> None:
    assert parse_header(b"\x8f" + PCMU[1 : 12 + 4 * 15]).csrc_count == 15


@pytest.mark.parametrize("first", [0x00, 0x16, 0x40, 0x7F, 0xC0, 0xFF])
def test_another_version_is_refused(first: int) -> None:
    with pytest.raises(RtpError, match="version"):
        parse_header(bytes([first]) + PCMU[1:])


@pytest.mark.parametrize(("second", "expected"), [(191, False), (192, True), (200, True), (223, True), (224, False)])
def test_rfc5761_section_4_packet_types_192_to_223_are_rtcp(second: int, expected: bool) -> None:
    assert is_rtcp(bytes([0x80, second])) is expected


@pytest.mark.parametrize("packet", [b"", b"\x80", b"\x16\xc8", b"\x40\xc8", b"\xc0\xc8"])
def test_what_has_no_version_2_is_not_rtcp(packet: bytes) -> None:
    assert not is_rtcp(packet)


HEADERS = st.builds(
    RtpHeader,
    payload_type=st.integers(0, 127),
    sequence_number=st.integers(0, 0xFFFF),
    timestamp=st.integers(0, 0xFFFFFFFF),
    ssrc=st.integers(0, 0xFFFFFFFF),
    marker=st.booleans(),
    padding=st.booleans(),
    extension=st.booleans(),
    csrc_count=st.integers(0, 15),
)


@repeatable
@given(HEADERS, st.binary(max_size=8))
def test_what_is_built_is_parsed_as_it_was(header: RtpHeader, payload: bytes) -> None:
    assert parse_header(build_packet(header, bytes(4 * header.csrc_count) + payload)) == header


@repeatable
@given(st.binary(max_size=80))
def test_any_bytes_give_a_header_or_an_rtp_error(packet: bytes) -> None:
    try:
        header = parse_header(packet)
    except RtpError:
        return
    assert build_packet(header, packet[12:]) == packet
