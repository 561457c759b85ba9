"""The sentence: it is in the package, small, and sound from end to end; what is no such file is refused."""

from __future__ import annotations

import io
import struct
import tomllib
import wave
from importlib import resources
from pathlib import Path

import pytest

from relay.demo.wan import sentence, sound

ROOT = Path(__file__).parents[3]
PACKETS = sentence.load()


def wav(*chunks: tuple[bytes, bytes], head: bytes = b"RIFF", kind: bytes = b"WAVE") -> bytes:
    """A RIFF file with these chunks."""
    body = kind + b"".join(name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2) for name, data in chunks)
    return head + struct.pack("<I", len(body)) + body


def head(tag: int = 7, channels: int = 1, rate: int = 8000, bits: int = 8) -> tuple[bytes, bytes]:
    return b"fmt ", struct.pack("<HHIIHH", tag, channels, rate, rate, 1, bits)


def test_the_sentence_lasts_a_few_seconds_and_someone_speaks() -> None:
    assert all(len(packet) == sentence.SAMPLES_PER_PACKET for packet in PACKETS)
    assert 6 <= len(PACKETS) / 50 <= 10
    loud = [max(map(abs, sound.decode(packet))) for packet in PACKETS]
    assert max(loud) < 0x8000 - 1000, "it is not clipped"
    assert sum(one > 1000 for one in loud) > len(PACKETS) * 0.7, "it is speech, and not silence"
    assert sum(one < 200 for one in loud[-10:]) >= 5, "it is not cut off"


def test_the_sentence_is_small_and_in_the_wheel() -> None:
    file = resources.files("relay.demo.wan").joinpath("sentence.wav")
    assert len(file.read_bytes()) < 80_000
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "demo/wan/*.wav" in data["relay"]


def test_a_chunk_of_odd_size_is_padded_and_unknown_ones_are_skipped() -> None:
    assert sentence.parse_mulaw_wav(wav(head(), (b"LIST", b"abc"), (b"data", b"\x01\x02"))) == b"\x01\x02"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "expected a WAV file"),
        (wav(head(), (b"data", b""), head=b"RIFX"), "expected a WAV file"),
        (wav(head(), (b"data", b""), kind=b"AVI "), "expected a WAV file"),
        (wav(head()), "without format or samples"),
        (wav((b"data", b"")), "without format or samples"),
        (wav((b"fmt ", b"\x07\x00"), (b"data", b"")), "without format or samples"),
        (wav(head(tag=1), (b"data", b"")), "format 1 "),
        (wav(head(channels=2), (b"data", b"")), "2 channels"),
        (wav(head(rate=16000), (b"data", b"")), "16000 Hz"),
        (wav(head(bits=16), (b"data", b"")), "16 bits"),
        (wav(head(), (b"data", bytes(100)))[:-1], "cut off"),
    ],
)
def test_what_is_not_such_a_file(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        sentence.parse_mulaw_wav(data)


def test_sound_that_ends_within_a_packet() -> None:
    with pytest.raises(ValueError, match="161 samples"):
        sentence.packets_of(bytes(161))


def test_mu_law_as_in_g711() -> None:
    """The values of table 2a, which are 14-bit, times four: the ends of the first, second and last segment."""
    assert list(sound.decode(bytes([0xFF, 0xFE, 0xF0, 0xEF, 0xE0, 0x80]))) == [0, 8, 120, 132, 372, 32124]
    assert list(sound.decode(bytes([0x7F, 0x7E, 0x70, 0x6F, 0x60, 0x00]))) == [0, -8, -120, -132, -372, -32124]
    everything = sound.decode(bytes(range(256)))
    assert list(everything[128:]) == sorted(everything[128:], reverse=True)
    assert list(everything[:128]) == [-value for value in everything[128:]]


def test_a_wav_file_has_what_was_written() -> None:
    samples = [0, 1, -1, 32767, -32768]
    with wave.open(io.BytesIO(sound.build_wav(samples))) as reader:
        assert (reader.getnchannels(), reader.getsampwidth(), reader.getframerate()) == (1, 2, 8000)
        assert reader.readframes(100) == struct.pack("<5h", *samples)
