"""Sound as a listener's computer has it: 16-bit samples, made of G.711, and WAV files of them."""

from __future__ import annotations

import io
import wave
from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING

from relay.demo.wan.sentence import SAMPLES_PER_SECOND

if TYPE_CHECKING:
    Samples = array[int]

# G.711 section 3.2, table 2a: added before a mu-law value is shifted, and taken off again; in units of 16-bit samples.
_BIAS = 0x84


def _linear(code: int) -> int:
    """The 16-bit sample of a mu-law byte, which has all its bits inverted: sign, 3 bits of exponent, 4 of mantissa."""
    code ^= 0xFF
    magnitude = (((code & 0x0F) << 3) + _BIAS << (code >> 4 & 0x07)) - _BIAS
    return -magnitude if code & 0x80 else magnitude


_LINEAR = tuple(map(_linear, range(256)))


def decode(payload: bytes) -> Samples:
    """The samples of a mu-law payload."""
    return array("h", map(_LINEAR.__getitem__, payload))


def build_wav(samples: Iterable[int]) -> bytes:
    """A WAV file: mono, 16 bits, 8,000 samples a second. Everything plays it."""
    packed = array("h", samples)
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(packed.itemsize)
        writer.setframerate(SAMPLES_PER_SECOND)
        writer.writeframes(packed.tobytes())
    return file.getvalue()
