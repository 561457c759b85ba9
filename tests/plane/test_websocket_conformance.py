"""Is it a WebSocket? A table in the manner of the Autobahn suite, for both sub-protocols, on every plane.

The upstream echoes datagrams, and control echoes texts. All cases of a chapter run side by side on one plane, each
with a connection of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from relay.plane.api import Carrier
from relay.wire.channeldata import build_channel_data
from relay.wire.websocket import Message, Opcode, build_close
from tests.support.benches.echoing import echoing_bench
from tests.support.benches.plane import PLANES, Bench, MakePlane
from tests.support.peers.carriers import Carried, masked, upgrade

B, T, PING, PONG, CLOSE, MORE = (
    Opcode.BINARY,
    Opcode.TEXT,
    Opcode.PING,
    Opcode.PONG,
    Opcode.CLOSE,
    Opcode.CONTINUATION,
)
# So many connections at once.
SIDE_BY_SIDE = 8
# A case takes milliseconds; the rest is for a machine that is busy with something else.
CASE_TIMEOUT_S = 100


class End(NamedTuple):
    """The Close frame that the client gets."""

    code: int | None
    text: str = ""


class Case(NamedTuple):
    """What the client sends, each in a TLS record of its own; what it gets; and how it ends.

    Without an ``end`` the connection must still be good. Replies are compared for each opcode in order: echoes have
    ways of their own.
    """

    name: str
    sent: list[bytes]
    replies: list[Message] = []  # noqa: RUF012 - nobody changes it
    end: End | None = None


def broken(text: str) -> End:
    return End(1002, text)


def each_byte(data: bytes) -> list[bytes]:
    return [bytes([byte]) for byte in data]


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def fragments(opcode: Opcode, parts: list[bytes]) -> list[bytes]:
    """The frames of one message."""
    last = len(parts) - 1
    return [masked(MORE if index else opcode, part, final=index == last) for index, part in enumerate(parts)]


def header(first: int, *rest: int) -> bytes:
    return bytes([first, *rest])


# ---- The table


def media_message(carrier: Carrier, size: int) -> bytes:
    """A binary message of so many bytes that the upstream understands, and sends back."""
    data = bytes(index & 255 for index in range(size))
    if carrier is Carrier.SESSION:
        return b"\x40\x01" + data[: size - 2]
    return build_channel_data(0x4001, data[: size - 4])


def sizes_of_binary_messages(carrier: Carrier) -> Iterator[Case]:
    for size in (4, 5, 124, 125, 126, 127, 128, 129, 1200, 2047, 2048):
        message = media_message(carrier, size)
        yield Case(f"binary of {size}", [masked(B, message)], [Message(B, message)])
    for size in (125, 126, 127):
        message = media_message(carrier, size)
        yield Case(f"binary of {size}, byte by byte", each_byte(masked(B, message)), [Message(B, message)])
    for chop in (1, 2, 3, 4, 5, 997):
        message = media_message(carrier, 126)
        whole = masked(B, message) * 2
        yield Case(f"two binaries in pieces of {chop}", pieces(whole, chop), [Message(B, message)] * 2)
    message = media_message(carrier, 200)
    yield Case("ten binaries in one record", [masked(B, message) * 10], [Message(B, message)] * 10)
    for mask in (bytes(4), b"\xff" * 4, b"\0\0\0\1", b"\x80\0\0\0"):
        yield Case(f"binary masked with {mask.hex()}", [masked(B, message, mask=mask)], [Message(B, message)])


def sizes_beyond_the_caps(carrier: Carrier) -> Iterator[Case]:
    too_big = End(1009, "message of more than 2048 bytes")
    yield Case("binary of 2049", [header(0x82, 0xFE, 0x08, 0x01)], end=too_big)
    yield Case("binary of 65535", [header(0x82, 0xFE, 0xFF, 0xFF)], end=too_big)
    yield Case("binary of 65536", [header(0x82, 0xFF, 0, 0, 0, 0, 0, 1, 0, 0)], end=too_big)
    yield Case("binary of 2^63 - 1", [header(0x82, 0xFF, 0x7F) + b"\xff" * 7], end=too_big)
    yield Case("binary of 2^63", [header(0x82, 0xFF, 0x80) + bytes(7)], end=broken("length of 64 bits"))
    yield Case("binary of 2^64 - 1", [header(0x82, 0xFF) + b"\xff" * 8], end=broken("length of 64 bits"))
    start = masked(B, bytes(2000), final=False)
    yield Case("binary of 2000 and 49", [start, header(0x80, 0xB1)], end=too_big)
    yield Case("binary of 2000 and 49, more to come", [start, header(0x00, 0xB1)], end=too_big)
    tiny = masked(B, b"\x40", final=False) + masked(MORE, b"x", final=False) * 2047
    yield Case("binary of 2049 frames of one byte", [tiny, header(0x00, 0x81)], end=too_big)
    message = media_message(carrier, 2048)
    yield Case("binary of 2000 and 48", fragments(B, [message[:2000], message[2000:]]), [Message(B, message)])


def lengths_that_are_not_minimal(_: Carrier) -> Iterator[Case]:
    end = broken("length not in its shortest form")
    for opcode, name in ((0x82, "binary"), (0x02, "a first fragment")):
        for length in (0, 1, 125):
            yield Case(f"{name}: {length} in 16 bits", [header(opcode, 0xFE, 0, length)], end=end)
        for length in (0, 125, 126, 2048, 65535):
            yield Case(f"{name}: {length} in 64 bits", [header(opcode, 0xFF) + length.to_bytes(8)], end=end)


def masking(_: Carrier) -> Iterator[Case]:
    end = broken("unmasked frame")
    kinds = {"binary": 0x82, "ping": 0x89, "pong": 0x8A, "close": 0x88, "a first fragment": 0x02}
    for name, first in kinds.items():
        yield Case(f"unmasked {name}", [header(first, 0x05)], end=end)
        yield Case(f"unmasked and empty {name}", [header(first, 0x00)], end=end)
        yield Case(f"unmasked {name} behind a good ping", [masked(PING) + header(first, 5)], [Message(PONG, b"")], end)
    yield Case("unmasked continuation", [masked(B, b"\x40", final=False), header(0x80, 0x01)], end=end)
    yield Case("unmasked, and too long", [header(0x82, 0x7F)], end=end)


def reserved_bits(_: Carrier) -> Iterator[Case]:
    end = broken("reserved bits")
    kinds = {"binary": 0x82, "ping": 0x89, "pong": 0x8A, "close": 0x88, "reserved opcode": 0x83}
    for bits in range(1, 8):
        for name, first in kinds.items():
            yield Case(f"reserved bits {bits:03b} in {name}", [header(first | bits << 4)], end=end)
    start = masked(B, b"\x40", final=False)
    yield Case("reserved bit in a continuation", [start, header(0xC0)], end=end)
    yield Case("reserved bit behind a good ping", [masked(PING, b"1") + header(0xC2)], [Message(PONG, b"1")], end)


def opcodes(_: Carrier) -> Iterator[Case]:
    for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15):
        end = broken(f"reserved opcode {opcode}")
        yield Case(f"opcode {opcode}", [header(0x80 | opcode)], end=end)
        yield Case(f"opcode {opcode}, not final", [header(opcode)], end=end)
        yield Case(
            f"opcode {opcode} within a message", [masked(B, b"\x40", final=False), header(0x80 | opcode)], end=end
        )


def fragmentation(carrier: Carrier) -> Iterator[Case]:
    message = media_message(carrier, 20)
    echo = [Message(B, message)]
    yield Case("two fragments", fragments(B, [message[:7], message[7:]]), echo)
    yield Case("two fragments in one record", [b"".join(fragments(B, [message[:7], message[7:]]))], echo)
    yield Case("a fragment for each byte", fragments(B, each_byte(message)), echo)
    yield Case("a fragment for each byte, byte by byte", each_byte(b"".join(fragments(B, each_byte(message)))), echo)
    yield Case("an empty first fragment", fragments(B, [b"", message]), echo)
    yield Case("an empty last fragment", fragments(B, [message, b""]), echo)
    yield Case("empty fragments everywhere", fragments(B, [b"", message[:3], b"", b"", message[3:], b""]), echo)
    yield Case("1000 empty fragments", [b"".join(fragments(B, [message, *[b""] * 1000]))], echo)
    first, last = fragments(B, [message[:7], message[7:]])
    yield Case("a ping between", [first, masked(PING, b"?"), last], [Message(PONG, b"?"), *echo])
    yield Case("a pong between", [first, masked(PONG, b"?"), last], echo)
    yield Case("all in one record, a ping between", [first + masked(PING, b"?") + last], [Message(PONG, b"?"), *echo])
    pinged = [frame for part in fragments(B, each_byte(message)) for frame in (part, masked(PING, b"!"))]
    yield Case("a ping behind each byte", pinged, [*[Message(PONG, b"!")] * 20, *echo])
    yield Case("two messages in fragments", [first, last, first, last], echo * 2)
    yield Case("a message behind one in fragments", [first, last, masked(B, message)], echo * 2)
    nothing = broken("continuation of nothing")
    yield Case("continuation of nothing", [masked(MORE, b"x")], end=nothing)
    yield Case("continuation of nothing, not final", [masked(MORE, b"x", final=False)], end=nothing)
    yield Case("an empty continuation of nothing", [masked(MORE)], end=nothing)
    yield Case("continuation behind a ping", [masked(PING), masked(MORE)], [Message(PONG, b"")], nothing)
    within = broken("message within a message")
    yield Case("binary within binary", [first, header(0x82)], end=within)
    yield Case("binary within binary, not final", [first, header(0x02)], end=within)
    yield Case("text within binary", [first, header(0x81)], end=within)
    yield Case("binary within binary behind a ping", [first, masked(PING), header(0x82)], [Message(PONG, b"")], within)
    yield Case("close within a message", [first, masked(CLOSE, build_close(1000))], end=End(1000))


def control_frames(_: Carrier) -> Iterator[Case]:
    payloads = {
        "nothing": b"",
        "text": b"Hello, world!",
        "bytes": b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff",
        "125": b"\xfe" * 125,
    }
    for name, payload in payloads.items():
        yield Case(f"ping with {name}", [masked(PING, payload)], [Message(PONG, payload)])
        yield Case(f"ping with {name}, byte by byte", each_byte(masked(PING, payload)), [Message(PONG, payload)])
        yield Case(f"pong with {name}", [masked(PONG, payload)])
    ten = [masked(PING, str(number).encode()) for number in range(10)]
    pongs = [Message(PONG, str(number).encode()) for number in range(10)]
    yield Case("ten pings", ten, pongs)
    yield Case("ten pings in one record", [b"".join(ten)], pongs)
    yield Case("ten pings, byte by byte", each_byte(b"".join(ten)), pongs)
    yield Case("pong and ping", [masked(PONG, b"unasked"), masked(PING, b"asked")], [Message(PONG, b"asked")])
    too_long = broken("control frame of more than 125 bytes")
    fragmented = broken("fragmented control frame")
    for name, opcode in (("ping", PING), ("pong", PONG), ("close", CLOSE)):
        yield Case(f"{name} with 126", [header(0x80 | opcode, 0xFE)], end=too_long)
        yield Case(f"{name} with 64 bits of length", [header(0x80 | opcode, 0xFF)], end=too_long)
        yield Case(f"fragmented {name}", [header(opcode)], end=fragmented)
        yield Case(
            f"fragmented {name} within a message", [masked(B, b"\x40", final=False), header(opcode)], end=fragmented
        )


def ends(carrier: Carrier) -> Iterator[Case]:
    yield Case("close", [masked(CLOSE)], end=End(None))
    yield Case("close, byte by byte", each_byte(masked(CLOSE, build_close(1000, "ok"))), end=End(1000))
    for code in (*range(1000, 1004), *range(1007, 1015), 3000, 3999, 4000, 4999):
        yield Case(f"close with {code}", [masked(CLOSE, build_close(code))], end=End(code))
    yield Case("close with a reason", [masked(CLOSE, build_close(1000, "ünïcödé"))], end=End(1000))
    yield Case("close with the longest reason", [masked(CLOSE, build_close(1000, "x" * 123))], end=End(1000))
    for code in (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535):
        yield Case(f"close with {code}", [masked(CLOSE, build_close(code))], end=broken(f"close code {code}"))
    yield Case("close with half a code", [masked(CLOSE, b"\x03")], end=broken("close frame of 1 byte"))
    not_utf8 = End(1007, "close reason is not UTF-8")
    for reason in (b"\xff", b"ok\xed\xa0\x80", b"\xc0\x80", b"\xe2\x82"):
        yield Case(f"close because of {reason.hex()}", [masked(CLOSE, b"\x03\xe8" + reason)], end=not_utf8)
    bad = masked(CLOSE, build_close(1005, "x") + b"\xff")
    yield Case("close with a bad code and reason", [bad], end=broken("close code 1005"))
    close = masked(CLOSE, build_close(1000))
    for name, behind in {
        "another": masked(CLOSE, build_close(1001)),
        "a ping": masked(PING, b"?"),
        "media": masked(B, media_message(carrier, 50)),
        "rubbish": b"\xff" * 50,
    }.items():
        yield Case(f"{name} behind a close", [close + behind], end=End(1000))
        yield Case(f"{name} behind a close, in another record", [close, behind], end=End(1000))
    yield Case("a ping before a close", [masked(PING, b"?") + close], [Message(PONG, b"?")], End(1000))


def what_is_no_media(carrier: Carrier) -> Iterator[Case]:
    end = End(1007, "no channel number" if carrier is Carrier.SESSION else "no TURN message")
    for message in (b"", b"\x40", b"\x80\x01" + bytes(20), b"\x3f" * 20):
        yield Case(f"binary of {message.hex() or 'nothing'}", [masked(B, message)], end=end)
        yield Case(f"fragments of {message.hex() or 'nothing'}", fragments(B, [message[:1], message[1:]]), end=end)


def texts_where_none_belong(carrier: Carrier) -> Iterator[Case]:
    if carrier is Carrier.SESSION:
        return
    end = End(1003, "text message")
    yield Case("text", [masked(T, b"hello")], end=end)
    yield Case("empty text", [masked(T)], end=end)
    yield Case("text in fragments", fragments(T, [b"hel", b"lo"]), end=end)
    yield Case("no UTF-8", [masked(T, b"\xff")], end=end)
    yield Case("unmasked text", [header(0x81, 0x05)], end=end)


VALID_UTF8 = {
    "Hello": b"Hello",
    "umlauts": "Hello-µ@ßöäüàá-UTF-8!!".encode(),
    "Greek": "κόσμε".encode(),
    "emoji": "\U0001f600".encode(),
    "U+0000": b"\x00",
    "U+007F": b"\x7f",
    "U+0080": b"\xc2\x80",
    "U+07FF": b"\xdf\xbf",
    "U+0800": b"\xe0\xa0\x80",
    "U+D7FF": b"\xed\x9f\xbf",
    "U+E000": b"\xee\x80\x80",
    "U+FFFD": b"\xef\xbf\xbd",
    "U+FFFE, no character": b"\xef\xbf\xbe",
    "U+FFFF, no character": b"\xef\xbf\xbf",
    "U+10000": b"\xf0\x90\x80\x80",
    "U+10FFFF": b"\xf4\x8f\xbf\xbf",
}
INVALID_UTF8 = {
    "a lone continuation": b"\x80",
    "two lone continuations": b"\x80\xbf",
    "a start alone": b"\xc3",
    "a start and a space": b"\xc3 ",
    "three bytes less one": b"\xe2\x82",
    "three bytes less one, and more": b"\xe2\x82x",
    "four bytes less one": b"\xf0\x9f\x98",
    "five bytes": b"\xf8\x88\x80\x80\x80",
    "six bytes": b"\xfc\x84\x80\x80\x80\x80",
    "FE": b"\xfe",
    "FF": b"\xff",
    "overlong slash of two": b"\xc0\xaf",
    "overlong slash of three": b"\xe0\x80\xaf",
    "overlong slash of four": b"\xf0\x80\x80\xaf",
    "overlong U+007F": b"\xc1\xbf",
    "overlong U+07FF": b"\xe0\x9f\xbf",
    "overlong U+FFFF": b"\xf0\x8f\xbf\xbf",
    "overlong NUL": b"\xc0\x80",
    "first surrogate": b"\xed\xa0\x80",
    "last surrogate": b"\xed\xbf\xbf",
    "a pair of surrogates": b"\xed\xa0\xbd\xed\xb8\x80",
    "U+110000": b"\xf4\x90\x80\x80",
    "good, and bad at the end": "κόσμε".encode() + b"\xed\xa0\x80edited",
}


def texts(carrier: Carrier) -> Iterator[Case]:
    if carrier is not Carrier.SESSION:
        return
    for size in (0, 1, 125, 126, 127, 128, 65_535, 65_536):
        payload = b"*" * size
        yield Case(f"text of {size}", [masked(T, payload)], [Message(T, payload)])
    too_big = End(1009, "message of more than 65536 bytes")
    yield Case("text of 65537", [header(0x81, 0xFF, 0, 0, 0, 0, 0, 1, 0, 1)], end=too_big)
    yield Case("text of 2^63 - 1", [header(0x81, 0xFF, 0x7F) + b"\xff" * 7], end=too_big)
    halves = [masked(T, b"*" * 40_000, final=False), header(0x80, 0xFE, 0xFF, 0xFF)]
    yield Case("text of 40000 and 65535", halves, end=too_big)
    whole = fragments(T, [b"*" * 40_000, b"*" * 25_536])
    yield Case("text of 40000 and 25536", whole, [Message(T, b"*" * 65_536)])
    for name, data in VALID_UTF8.items():
        yield Case(name, [masked(T, data)], [Message(T, data)])
        yield Case(f"{name}, a fragment for each byte", fragments(T, each_byte(data)), [Message(T, data)])
    bad = End(1007, "text is not UTF-8")
    for name, data in INVALID_UTF8.items():
        yield Case(name, [masked(T, data)], end=bad)
        yield Case(f"{name}, a fragment for each byte", fragments(T, each_byte(data)), end=bad)
    split = fragments(T, ["€".encode()[:1], "€".encode()[1:]])
    yield Case(
        "a ping within a character", [split[0], masked(PING), split[1]], [Message(PONG, b""), Message(T, "€".encode())]
    )
    within = broken("message within a message")
    yield Case("binary within text", [split[0], header(0x82)], end=within)
    yield Case("text within text", [split[0], header(0x81)], end=within)
    message = media_message(carrier, 30)
    both = [masked(T, b"a"), masked(B, message), masked(T, b"b")]
    yield Case("texts and media", both, [Message(T, b"a"), Message(T, b"b"), Message(B, message)])
    yield Case("unmasked text", [header(0x81, 0x05)], end=broken("unmasked frame"))
    yield Case("125 in 16 bits", [header(0x81, 0xFE, 0, 125)], end=broken("length not in its shortest form"))
    for bits in range(1, 8):
        yield Case(f"reserved bits {bits:03b} in text", [header(0x81 | bits << 4)], end=broken("reserved bits"))


Chapter = Callable[[Carrier], Iterator[Case]]
CHAPTERS: list[Chapter] = [
    sizes_of_binary_messages,
    sizes_beyond_the_caps,
    lengths_that_are_not_minimal,
    masking,
    reserved_bits,
    opcodes,
    fragmentation,
    control_frames,
    ends,
    what_is_no_media,
    texts_where_none_belong,
    texts,
]
CARRIERS = [Carrier.WEBSOCKET, Carrier.SESSION]


# ---- The examiner


@contextlib.asynccontextmanager
async def examined(bench: Bench, carrier: Carrier) -> AsyncIterator[Carried]:
    """A connection that is ready."""
    async with bench.client() as tls:
        client = await upgrade(bench, tls, carrier, None if carrier is Carrier.SESSION else bench.target)
        if carrier is Carrier.SESSION:
            bench.plane.move(client.connection, bench.target)
            bench.plane.tell(client.connection, "ready")
            await client.expect(T, b"ready")
        yield client


async def examine(bench: Bench, carrier: Carrier, case: Case) -> None:
    async with asyncio.timeout(CASE_TIMEOUT_S), examined(bench, carrier) as client:
        await client.send(*case.sent)
        received = [await client.message() for _ in case.replies]
        for opcode in (B, T, PONG):
            expected = [reply for reply in case.replies if reply.opcode is opcode]
            assert [reply for reply in received if reply.opcode is opcode] == expected
        if case.end is None:
            await client.send(masked(PING, b"still good"))
            await client.expect(PONG, b"still good")
            await client.send(masked(CLOSE, build_close(1000)))
        await client.expect_close(*(End(1000) if case.end is None else case.end))


@pytest.mark.parametrize("make", PLANES.values(), ids=PLANES.keys())
@pytest.mark.parametrize("carrier", CARRIERS)
async def test_conformance(make: MakePlane, tmp_path: Path, carrier: Carrier) -> None:
    failures: list[str] = []
    places = asyncio.Semaphore(SIDE_BY_SIDE)

    async def run(case: Case) -> None:
        async with places:
            try:
                await examine(bench, carrier, case)
            except (AssertionError, EOFError, OSError, TimeoutError) as error:
                failures.append(f"{case.name}: {type(error).__name__} {error}")

    async with echoing_bench(make, tmp_path) as bench:
        await asyncio.gather(*[run(case) for chapter in CHAPTERS for case in chapter(carrier)])
    assert not failures, "\n".join(failures)


def test_the_table_is_long_enough() -> None:
    for carrier in CARRIERS:
        names = [(chapter, case.name) for chapter in CHAPTERS for case in chapter(carrier)]
        assert len(names) == len(set(names))
        assert len(names) >= 120
