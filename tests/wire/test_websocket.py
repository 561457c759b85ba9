"""WebSocket frames: the examples of RFC 6455, every fault, every split."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.wire.websocket import (
    MAX_BINARY_BYTES,
    MAX_TEXT_BYTES,
    Fault,
    Message,
    MessageCutter,
    Opcode,
    apply_mask,
    build_close,
    build_frame,
    check_close,
    parse_close,
)
from tests.support.properties import repeatable

MASK = b"\x37\xfa\x21\x3d"


def cut(chunks: list[bytes], *, from_client: bool = True, **options: bool) -> tuple[list[Message], Fault | None]:
    cutter = MessageCutter(from_client=from_client, **options)
    return [message for chunk in chunks for message in cutter.feed(chunk)], cutter.fault


def masked(opcode: Opcode, payload: bytes = b"", *, final: bool = True) -> bytes:
    return build_frame(opcode, payload, mask=MASK, final=final)


# RFC 6455 section 5.7, the masked ones from a client.
EXAMPLES = {
    "unmasked text": ("81 05 48 65 6c 6c 6f", False, [Message(Opcode.TEXT, b"Hello")]),
    "masked text": ("81 85 37 fa 21 3d 7f 9f 4d 51 58", True, [Message(Opcode.TEXT, b"Hello")]),
    "fragmented text": ("01 03 48 65 6c 80 02 6c 6f", False, [Message(Opcode.TEXT, b"Hello")]),
    "unmasked ping": ("89 05 48 65 6c 6c 6f", False, [Message(Opcode.PING, b"Hello")]),
    "masked pong": ("8a 85 37 fa 21 3d 7f 9f 4d 51 58", True, [Message(Opcode.PONG, b"Hello")]),
    "256 bytes": ("82 7e 01 00" + "ab" * 256, False, [Message(Opcode.BINARY, b"\xab" * 256)]),
}


@pytest.mark.parametrize(("data", "from_client", "messages"), EXAMPLES.values(), ids=EXAMPLES.keys())
def test_examples_of_the_rfc(data: str, from_client: bool, messages: list[Message]) -> None:
    assert cut([bytes.fromhex(data)], from_client=from_client) == (messages, None)


def test_the_example_of_64_kib() -> None:
    data = bytes.fromhex("827f0000000000010000") + bytes(65536)
    cutter = MessageCutter(from_client=False, max_binary_bytes=65536)
    assert cutter.feed(data) == [Message(Opcode.BINARY, bytes(65536))]


def test_frames_are_built_as_in_the_rfc() -> None:
    assert build_frame(Opcode.TEXT, b"Hello") == bytes.fromhex("81 05 48 65 6c 6c 6f")
    assert masked(Opcode.TEXT, b"Hello") == bytes.fromhex("81 85 37 fa 21 3d 7f 9f 4d 51 58")
    assert build_frame(Opcode.TEXT, b"Hel", final=False) == bytes.fromhex("01 03 48 65 6c")
    assert build_frame(Opcode.BINARY, bytes(256))[:4] == bytes.fromhex("82 7e 01 00")
    assert build_frame(Opcode.BINARY, bytes(65536))[:10] == bytes.fromhex("827f0000000000010000")


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 125, 126, 127, 2047, 2048])
def test_lengths_at_the_boundaries(size: int) -> None:
    payload = bytes(index & 255 for index in range(size))
    assert cut([masked(Opcode.BINARY, payload)]) == ([Message(Opcode.BINARY, payload)], None)


def header(first: int, *rest: int) -> bytes:
    return bytes([first, *rest])


FAULTS = {
    "reserved bit 1": (header(0xC2), 1002, "reserved bits"),
    "reserved bit 2": (header(0xA2), 1002, "reserved bits"),
    "reserved bit 3": (header(0x92), 1002, "reserved bits"),
    "reserved data opcode": (header(0x83), 1002, "reserved opcode 3"),
    "reserved data opcode 7": (header(0x87), 1002, "reserved opcode 7"),
    "reserved control opcode": (header(0x8B), 1002, "reserved opcode 11"),
    "reserved control opcode 15": (header(0x8F), 1002, "reserved opcode 15"),
    "fragmented ping": (header(0x09), 1002, "fragmented control frame"),
    "fragmented close": (header(0x08), 1002, "fragmented control frame"),
    "continuation of nothing": (header(0x80), 1002, "continuation of nothing"),
    "unmasked": (header(0x82, 0x05), 1002, "unmasked frame"),
    "long ping": (header(0x89, 0xFE), 1002, "control frame of more than 125 bytes"),
    "long close": (header(0x88, 0xFF), 1002, "control frame of more than 125 bytes"),
    "125 in 16 bits": (header(0x82, 0xFE, 0, 125), 1002, "length not in its shortest form"),
    "65535 in 64 bits": (header(0x82, 0xFF, 0, 0, 0, 0, 0, 0, 255, 255), 1002, "length not in its shortest form"),
    "64 bits": (header(0x82, 0xFF, 128, 0, 0, 0, 0, 0, 0, 0), 1002, "length of 64 bits"),
    "huge": (header(0x82, 0xFF, 127, 255, 255, 255, 255, 255, 255, 255), 1009, "message of more than 2048 bytes"),
    "long binary": (header(0x82, 0xFE, 8, 1), 1009, "message of more than 2048 bytes"),
    "long text": (header(0x81, 0xFF, 0, 0, 0, 0, 0, 1, 0, 1), 1009, "message of more than 65536 bytes"),
    "text is not UTF-8": (masked(Opcode.TEXT, b"\xff"), 1007, "text is not UTF-8"),
    "surrogate": (masked(Opcode.TEXT, b"\xed\xa0\x80"), 1007, "text is not UTF-8"),
    "overlong": (masked(Opcode.TEXT, b"\xc0\xaf"), 1007, "text is not UTF-8"),
    "close of 1 byte": (masked(Opcode.CLOSE, b"\x03"), 1002, "close frame of 1 byte"),
    "close code": (masked(Opcode.CLOSE, build_close(1005)), 1002, "close code 1005"),
    "close reason": (masked(Opcode.CLOSE, b"\x03\xe8\xff"), 1007, "close reason is not UTF-8"),
}


@pytest.mark.parametrize(("data", "code", "text"), FAULTS.values(), ids=FAULTS.keys())
def test_faults_are_seen_with_the_first_byte_that_shows_them(data: bytes, code: int, text: str) -> None:
    good = masked(Opcode.PING, b"?")
    before = [Message(Opcode.PING, b"?")]
    assert cut([good + data[:-1]]) == (before, None)
    assert cut([good + data]) == (before, Fault(code, text))
    assert cut([good + data + good, good]) == (before, Fault(code, text))
    assert cut([bytes([byte]) for byte in good + data + good]) == (before, Fault(code, text))


def test_faults_within_a_message() -> None:
    start = masked(Opcode.BINARY, bytes(2000), final=False)
    within = Fault(1002, "message within a message")
    assert cut([start, header(0x82)]) == ([], within)
    assert cut([start, header(0x81)]) == ([], within)
    assert cut([start, header(0x80, 0x80 | 48)]) == ([], None)
    assert cut([start, header(0x80, 0x80 | 49)]) == ([], Fault(1009, "message of more than 2048 bytes"))


def test_a_server_must_not_mask() -> None:
    assert cut([masked(Opcode.BINARY)], from_client=False) == ([], Fault(1002, "masked frame"))


def test_text_may_be_refused() -> None:
    assert cut([header(0x81)], takes_text=False) == ([], Fault(1003, "text message"))


def test_control_frames_between_fragments() -> None:
    parts = [
        masked(Opcode.TEXT, b"\xe2\x82", final=False),
        masked(Opcode.PING, b"1"),
        masked(Opcode.CONTINUATION, b"", final=False),
        masked(Opcode.PONG),
        masked(Opcode.CONTINUATION, b"\xac"),
    ]
    expected = [Message(Opcode.PING, b"1"), Message(Opcode.PONG, b""), Message(Opcode.TEXT, "€".encode())]
    assert cut(parts) == (expected, None)


def test_nothing_is_looked_at_behind_a_close_frame() -> None:
    close = build_close(1000, "bye")
    chunks = [masked(Opcode.CLOSE, close) + header(0xFF), masked(Opcode.PING)]
    assert cut(chunks) == ([Message(Opcode.CLOSE, close)], None)


def test_the_caps_count_whole_messages() -> None:
    for opcode, most in ((Opcode.BINARY, MAX_BINARY_BYTES), (Opcode.TEXT, MAX_TEXT_BYTES)):
        payload = b"x" * most
        chunks = [masked(opcode, payload[:100], final=False), masked(Opcode.CONTINUATION, payload[100:])]
        assert cut(chunks) == ([Message(opcode, payload)], None)


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 4999])
def test_good_close_codes(code: int) -> None:
    assert check_close(build_close(code, "bye")) is None
    assert parse_close(build_close(code, "bye")) == (code, "bye")


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535])
def test_bad_close_codes(code: int) -> None:
    assert check_close(build_close(code)) == Fault(1002, f"close code {code}")


def test_close_frames_are_cut_between_characters() -> None:
    assert build_close(None) == b""
    assert parse_close(b"") == (None, "")
    payload = build_close(1000, "x" * 122 + "é")
    assert payload == b"\x03\xe8" + b"x" * 122
    assert len(build_close(1000, "x" * 200)) == 125


frames = st.builds(
    masked,
    st.sampled_from(list(Opcode)),
    st.one_of(st.binary(max_size=130), st.text(max_size=40).map(str.encode), st.just(build_close(1000))),
    final=st.booleans(),
)
streams = st.lists(st.one_of(frames, st.binary(max_size=12)), max_size=12).map(b"".join)


@repeatable
@given(streams, st.lists(st.integers(0, 1500), max_size=8))
def test_the_verdict_does_not_depend_on_splits(stream: bytes, places: list[int]) -> None:
    at = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    chunks = [stream[start:end] for start, end in itertools.pairwise(at)]
    whole = cut([stream])
    assert cut(chunks) == whole
    assert cut([bytes([byte]) for byte in stream]) == whole


def test_every_split_of_a_good_stream() -> None:
    stream = masked(Opcode.BINARY, bytes(200)) + masked(Opcode.TEXT, b"a", final=False) + masked(Opcode.PING, b"now")
    stream += masked(Opcode.CONTINUATION, b"b") + masked(Opcode.CLOSE, build_close(1000))
    whole = cut([stream])
    assert len(whole[0]) == 4
    for at in range(len(stream)):
        assert cut([stream[:at], stream[at:]]) == whole


@repeatable
@given(st.lists(st.tuples(st.sampled_from([Opcode.TEXT, Opcode.BINARY]), st.text(max_size=700), st.integers(1, 99))))
def test_what_is_built_is_read(written: list[tuple[Opcode, str, int]]) -> None:
    stream, expected = b"", []
    for opcode, text, size in written:
        payload = text.encode()[:MAX_BINARY_BYTES].decode(errors="ignore").encode()
        parts = [payload[at : at + size] for at in range(0, len(payload), size)] or [b""]
        for index, part in enumerate(parts):
            kind = Opcode.CONTINUATION if index else opcode
            stream += masked(kind, part, final=index == len(parts) - 1)
        expected.append(Message(opcode, payload))
    assert cut([stream]) == (expected, None)


@repeatable
@given(st.binary(max_size=300), st.binary(min_size=4, max_size=4))
def test_masking_is_its_own_inverse(data: bytes, mask: bytes) -> None:
    assert apply_mask(data, mask) == bytes(byte ^ mask[index % 4] for index, byte in enumerate(data))
    assert apply_mask(apply_mask(data, mask), mask) == data
