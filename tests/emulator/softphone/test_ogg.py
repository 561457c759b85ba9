"""Recordings are whole Ogg Opus files, which libopus decodes to what was said and heard."""

from __future__ import annotations

import ctypes
import ctypes.util
import math
import struct

import pytest

from relay.emulator.softphone.ogg import FRAMES, HEARD, SAID, build_recording, read_recording

COMMENTS = {"CALL": "11111111-2222-3333-4444-555555555555", "USER": "anna"}
ACTIVITY = bytes([0] * 5 + [SAID] * 70 + [HEARD] * 70 + [SAID + HEARD] * 30 + [0] * 6)


def crc(page: bytes) -> int:
    """RFC 3533 section 6 bit by bit."""
    register = 0
    for byte in page:
        register ^= byte << 24
        for _ in range(8):
            register = (register << 1) ^ (0x04C11DB7 if register & 0x80000000 else 0)
            register &= 0xFFFFFFFF
    return register


def test_first_page_byte_by_byte() -> None:
    page = build_recording(b"", {}, 0x01020304)[:47]
    assert page[:22].hex() == "4f676753000200000000000000000403020100000000"
    assert page[26:28] == bytes([1, 19])
    assert page[28:] == b"OpusHead" + bytes([1, 2]) + struct.pack("<HIhB", 3840, 8000, 0, 0)
    assert struct.unpack("<I", page[22:26])[0] == crc(page[:22] + bytes(4) + page[26:])


@pytest.mark.parametrize("activity", [b"", b"\x01", ACTIVITY, bytes(50), bytes(46)], ids=len)
def test_comes_back(activity: bytes) -> None:
    assert read_recording(build_recording(activity, COMMENTS, 7)) == (activity, COMMENTS)


def test_last_page_ends_where_the_sound_does() -> None:
    data = build_recording(ACTIVITY, COMMENTS, 7)
    last = data.rindex(b"OggS")
    flags, granule = struct.unpack_from("<Bq", data, last + 5)
    assert (flags, granule) == (4, (len(ACTIVITY) + 4) * 960)


def test_same_call_of_two_users_differs() -> None:
    assert build_recording(ACTIVITY, {"USER": "anna"}, 7) != build_recording(ACTIVITY, {"USER": "ben"}, 7)


@pytest.mark.parametrize("spoil", [lambda data: data[:-1], lambda data: data[:-3000], lambda data: data + b"x"])
def test_what_is_not_whole_is_noticed(spoil: object) -> None:
    assert callable(spoil)
    with pytest.raises(ValueError, match=r"byte|page|end"):
        read_recording(spoil(build_recording(ACTIVITY, COMMENTS, 7)))


def test_each_flipped_byte_is_noticed() -> None:
    data = build_recording(bytes(3), COMMENTS, 7)
    for at in range(len(data)):
        with pytest.raises(ValueError):  # noqa: PT011
            read_recording(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


def test_libopus_hears_what_was_said_and_heard() -> None:
    name = ctypes.util.find_library("opus")
    if name is None:
        pytest.skip("libopus is not installed")
    opus, error = ctypes.CDLL(name), ctypes.c_int()
    opus.opus_decoder_create.restype = ctypes.c_void_p
    decoder = ctypes.c_void_p(opus.opus_decoder_create(48000, 2, ctypes.byref(error)))
    pcm = (ctypes.c_int16 * (960 * 2))()

    def decode(frame: bytes) -> tuple[bool, bool]:
        """Whether there is sound in the left and in the right channel."""
        assert opus.opus_decode(decoder, frame, len(frame), pcm, 960, 0) == 960
        left, right = (math.sqrt(sum(value**2 for value in pcm[side::2]) / 960) for side in (0, 1))
        return left > 1500, right > 1500

    heard = [decode(FRAMES[each]) for each in ACTIVITY]
    opus.opus_decoder_destroy(decoder)
    assert heard == [(bool(each & SAID), bool(each & HEARD)) for each in ACTIVITY]
