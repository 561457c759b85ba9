"""ChannelData: both sides of every bound, with and without padding."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.wire.channeldata import (
    FIRST_CHANNEL,
    LAST_CHANNEL,
    ChannelData,
    ChannelDataError,
    build_channel_data,
    is_channel_data,
    pad,
    parse_channel_data,
)
from tests.support.properties import repeatable


def test_section_12_4_the_message_on_the_wire() -> None:
    assert build_channel_data(0x4001, b"abc") == b"\x40\x01\x00\x03abc"
    assert parse_channel_data(b"\x40\x01\x00\x03abc") == ChannelData(0x4001, b"abc")


def test_section_12_the_channels_that_may_be_bound() -> None:
    assert (FIRST_CHANNEL, LAST_CHANNEL) == (0x4000, 0x4FFF)


@pytest.mark.parametrize(("size", "padding"), [(0, 0), (1, 3), (2, 2), (3, 1), (4, 0), (5, 3), (65535, 1)])
def test_section_12_5_padding_is_zero_and_not_counted(size: int, padding: int) -> None:
    data = b"\xff" * size
    plain, padded = build_channel_data(0x4000, data), build_channel_data(0x4000, data, padded=True)
    assert len(plain) == 4 + size
    assert padded == plain + bytes(padding)
    assert parse_channel_data(plain) == parse_channel_data(padded) == ChannelData(0x4000, data)


def test_section_12_5_what_is_behind_the_data_is_padding_whatever_it_is() -> None:
    assert parse_channel_data(b"\x40\x00\x00\x01a???").data == b"a"


@pytest.mark.parametrize(
    ("first", "expected"), [(0x3F, False), (0x40, True), (0x4F, True), (0x7F, True), (0x80, False)]
)
def test_the_top_bits_are_01_up_to_0x7fff(first: int, expected: bool) -> None:
    """RFC 5766 allowed channels to 0x7FFF: they are framed, though not bound."""
    assert is_channel_data(bytes([first, 0, 0, 0])) is expected


@pytest.mark.parametrize("message", [b"", b"\x40", b"\x40\x00\x00", b"\x00\x01\x00\x00", b"\x80\x00\x00\x00"])
def test_what_is_no_channel_data_is_refused(message: bytes) -> None:
    assert not is_channel_data(message)
    with pytest.raises(ChannelDataError, match="no ChannelData"):
        parse_channel_data(message)


@pytest.mark.parametrize("message", [b"\x40\x00\x00\x01", b"\x40\x00\x00\x04abc", b"\x40\x00\xff\xff" + bytes(65534)])
def test_a_message_that_is_cut_off_is_refused(message: bytes) -> None:
    assert is_channel_data(message)
    with pytest.raises(ChannelDataError, match="in a message of"):
        parse_channel_data(message)


def test_pad_fills_to_a_multiple_of_four() -> None:
    assert [pad(b"x" * size) for size in (0, 1, 4, 6)] == [b"", b"x\0\0\0", b"xxxx", b"xxxxxx\0\0"]


@repeatable
@given(st.integers(0x4000, 0x7FFF), st.binary(max_size=64), st.booleans())
def test_what_is_built_is_parsed_as_it_was(number: int, data: bytes, padded: bool) -> None:
    assert parse_channel_data(build_channel_data(number, data, padded=padded)) == (number, data)


@repeatable
@given(st.binary(max_size=16))
def test_any_bytes_give_channel_data_or_its_error(message: bytes) -> None:
    try:
        parsed = parse_channel_data(message)
    except ChannelDataError:
        return
    assert message.startswith(build_channel_data(*parsed))
