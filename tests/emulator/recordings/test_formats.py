"""Ogg/Opus and M4A are recognised by their content, and nothing else is."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.emulator.recordings.formats import MediaType, recognise
from tests.support.media_files import box, m4a, ogg_opus, track


def what(content: bytes) -> MediaType | None:
    return recognise(io.BytesIO(content), len(content))


LARGE = (1).to_bytes(4) + b"moov" + (16 + len(track(b"soun"))).to_bytes(8) + track(b"soun")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (ogg_opus(100), MediaType.OGG_OPUS),
        (m4a(), MediaType.M4A),
        (m4a(track(b"soun"), track(b"soun")), MediaType.M4A),
        (box(b"ftyp", b"isom") + box(b"mdat", bytes(9)) + box(b"moov", track(b"soun")), MediaType.M4A),
        (box(b"ftyp", b"M4A ") + LARGE, MediaType.M4A),
        (box(b"ftyp", b"M4A ") + b"\0\0\0\0moov" + track(b"soun"), MediaType.M4A),
        (m4a(track(b"vide"), track(b"soun")), None),
        (m4a(box(b"trak")), None),
        (box(b"ftyp", b"M4A "), None),
        (box(b"moov", track(b"soun")), None),
        (b"", None),
        (b"OggS", None),
        (ogg_opus(100).replace(b"OpusHead", b"\x01vorbis\0"), None),
        (ogg_opus(100).replace(b"OggS\0\x02", b"OggS\0\x00", 1), None),
        (b"RIFF\0\0\0\0WAVEfmt " + bytes(100), None),
        (b"ID3" + bytes(100), None),
        (bytes(1000), None),
    ],
)
def test_content_says_what_it_is(content: bytes, expected: MediaType | None) -> None:
    assert what(content) is expected


@given(st.integers(0, 200))
def test_a_cut_file_is_never_an_error(length: int) -> None:
    what(m4a()[:length])
    what(ogg_opus(100)[:length])


@given(st.binary(max_size=200))
def test_any_bytes_are_never_an_error(content: bytes) -> None:
    what(content)
    what(box(b"ftyp") + content)
    what(box(b"ftyp") + box(b"moov", content))
