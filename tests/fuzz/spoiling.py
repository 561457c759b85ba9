"""What a fuzzer does to what a client says: now and then, and in one of several ways. All of it follows from a seed."""

from __future__ import annotations

import random
from collections.abc import Callable

# Lengths, types and first bytes at which readers of them change their mind.
ODD_WORDS = (0, 1, 3, 4, 20, 125, 126, 127, 255, 256, 2048, 2049, 0x3FFF, 0x4000, 0x7FFF, 0x8000, 0xFFEC, 0xFFFF)
ODD_BYTES = (0, 1, 2, 0x0D, 0x0A, 0x16, 0x17, 0x20, 0x40, 0x7F, 0x80, 0x81, 0x82, 0x88, 0x89, 0xBF, 0xC0, 0xFE, 0xFF)
# A message that comes again and again, and bytes that are made up.
MAX_COPIES = 40
MAX_NEW_BYTES = 400
# Of a message: more than any reader keeps of one.
MAX_BYTES = 100_000
# Kept of what was said, to be put into what is said later.
MAX_KEPT = 200


class Spoiler:
    """Spoils one message in ``1 / share``; what it does is chosen by ``source``."""

    def __init__(self, source: random.Random, share: float) -> None:
        self.messages = self.spoiled = 0
        self._source = source
        self._share = share
        self._said: list[bytes] = []
        self._ways: tuple[Callable[[bytearray], bytes], ...] = (
            self._flip,
            self._odd_byte,
            self._odd_word,
            self._insert,
            self._remove,
            self._repeat_part,
            self._repeat_all,
            self._put_in,
            self._cut_short,
            self._replace,
        )

    def spoil(self, message: bytes) -> list[bytes]:
        """What is sent instead of a message, in pieces: often the message itself."""
        self.messages += 1
        if message and len(self._said) < MAX_KEPT:
            self._said.append(message)
        if message and self._source.random() < self._share:
            self.spoiled += 1
            for _ in range(self._source.choice((1, 1, 1, 2, 4))):
                if message:
                    message = self._source.choice(self._ways)(bytearray(message))[:MAX_BYTES]
        return self._in_pieces(message)

    def _in_pieces(self, message: bytes) -> list[bytes]:
        if len(message) < 2 or self._source.random() < 0.8:
            return [message] if message else []
        at = self._source.randrange(1, len(message))
        return [message[:at], message[at:]]

    def _place(self, message: bytearray) -> int:
        """Somewhere, and near the beginning as often as behind it: that is where heads are."""
        end = len(message) if self._source.random() < 0.5 else min(len(message), 24)
        return self._source.randrange(end)

    def _flip(self, message: bytearray) -> bytes:
        message[self._place(message)] ^= 1 << self._source.randrange(8)
        return bytes(message)

    def _odd_byte(self, message: bytearray) -> bytes:
        message[self._place(message)] = self._source.choice(ODD_BYTES)
        return bytes(message)

    def _odd_word(self, message: bytearray) -> bytes:
        at = self._place(message)
        message[at : at + 2] = self._source.choice(ODD_WORDS).to_bytes(2)
        return bytes(message)

    def _insert(self, message: bytearray) -> bytes:
        at = self._place(message)
        message[at:at] = self._source.randbytes(self._source.randrange(1, MAX_NEW_BYTES))
        return bytes(message)

    def _remove(self, message: bytearray) -> bytes:
        at = self._place(message)
        del message[at : at + self._source.randrange(1, 40)]
        return bytes(message)

    def _repeat_part(self, message: bytearray) -> bytes:
        at = self._place(message)
        part = message[at : at + self._source.randrange(1, 40)]
        message[at:at] = part * self._source.randrange(1, MAX_COPIES)
        return bytes(message)

    def _repeat_all(self, message: bytearray) -> bytes:
        return bytes(message) * self._source.randrange(2, MAX_COPIES)

    def _put_in(self, message: bytearray) -> bytes:
        at = self._place(message)
        message[at:at] = self._source.choice(self._said)
        return bytes(message)

    def _cut_short(self, message: bytearray) -> bytes:
        return bytes(message[: self._place(message)])

    def _replace(self, message: bytearray) -> bytes:
        return self._source.choice((self._source.choice(self._said), self._source.randbytes(len(message))))
