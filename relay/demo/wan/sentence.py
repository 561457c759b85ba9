"""The sentence that is spoken, as G.711: mu-law, 8,000 samples a second, in packets of 20 ms.

``sentence.wav`` was made from ``TEXT``, once, with Debian's flite 2.2 and SoX 14.4.2::

    flite -voice rms -t "$TEXT" -o spoken.wav
    sox -R -D spoken.wav -e mu-law sentence.wav rate 8000 highpass 150 norm -4 trim 0 69600s

The voice is a synthetic one of Carnegie Mellon University. Its licence allows any use of it, without restriction.
"""

from __future__ import annotations

import struct
from importlib import resources

TEXT = (
    "Hello, this is the desk in London. I can sell you fifty million of the ten year, at ninety nine and three "
    "eighths. Are you still there?"
)
SAMPLES_PER_SECOND = 8000
SAMPLES_PER_PACKET = 160
# RFC 2361: the number of mu-law among the formats of WAV.
WAVE_FORMAT_MULAW = 7
_CHUNK = struct.Struct("<4sI")
_FORMAT = struct.Struct("<HHIIHH")


def load() -> tuple[bytes, ...]:
    """The payloads of its packets."""
    return packets_of(parse_mulaw_wav(resources.files("relay.demo.wan").joinpath("sentence.wav").read_bytes()))


def packets_of(sound: bytes) -> tuple[bytes, ...]:
    """Cut sound into payloads of 20 ms. Raises ValueError if it does not end with a packet."""
    if len(sound) % SAMPLES_PER_PACKET:
        raise ValueError(f"{len(sound)} samples, expected a multiple of {SAMPLES_PER_PACKET}")
    return tuple(sound[first : first + SAMPLES_PER_PACKET] for first in range(0, len(sound), SAMPLES_PER_PACKET))


def parse_mulaw_wav(data: bytes) -> bytes:
    """The samples of a WAV file, a byte each. Raises ValueError if it is not mono, mu-law, 8,000 samples a second."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise ValueError("expected a WAV file")
    chunks = _chunks(data)
    head = chunks.get(b"fmt ", b"")
    if len(head) < _FORMAT.size or b"data" not in chunks:
        raise ValueError("a WAV file without format or samples")
    tag, channels, rate, _, _, bits = _FORMAT.unpack_from(head)
    if (tag, channels, rate, bits) != (WAVE_FORMAT_MULAW, 1, SAMPLES_PER_SECOND, 8):
        raise ValueError(f"format {tag} with {channels} channels, {rate} Hz, {bits} bits; expected mu-law, mono, 8 kHz")
    return chunks[b"data"]


def _chunks(data: bytes) -> dict[bytes, bytes]:
    """The chunks of a RIFF file by name. Raises ValueError for one that is cut off."""
    found: dict[bytes, bytes] = {}
    at = 12
    while at + _CHUNK.size <= len(data):
        name, size = _CHUNK.unpack_from(data, at)
        at += _CHUNK.size
        if at + size > len(data):
            raise ValueError(f"chunk {name!r} is cut off")
        found[name] = data[at : at + size]
        at += size + size % 2  # chunks begin at even offsets
    return found
