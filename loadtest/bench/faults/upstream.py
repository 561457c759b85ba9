"""A TURN server whose mood changes: ``upstream.py HOST:PORT``; what it is to do comes on standard input.

``mood NAME`` changes it, ``count`` makes it print what it has seen, as one JSON object. It prints ``ready`` when it
serves. It keeps no state, and asks for no credentials.

well       says yes to requests, and sends everything else back
garbage    sends everything else back, and bytes that are neither STUN nor ChannelData; requests get only these
401, 438, 508    sends everything else back, and refuses requests
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import sys
from dataclasses import asdict, dataclass

from relay.addresses import parse_address
from relay.wire.stun import AttributeType, Method, StunError, is_stun, parse_message
from tests.support.messages import allocated, answer

MOODS = ("well", "garbage", "401", "438", "508")
CHALLENGES = ("401", "438")
CHALLENGE = ((AttributeType.REALM, b"faults"), (AttributeType.NONCE, b"another each time"))
# What ten calls send in four seconds, while this process is stopped.
RECEIVE_BUFFER_BYTES = 8 << 20
# Neither by the first byte; a channel with more bytes than there are; a STUN message with more bytes than there are.
GARBAGE = (b"\xff" * 40, b"\x40\x00\x7f\xff" + b"x" * 30, b"\x00\x01\x7f\xfc\x21\x12\xa4\x42" + bytes(12), b"\x80")


@dataclass
class Counts:
    """Datagrams: what came that was no request, what of it was sent back, requests, and garbage."""

    received: int = 0
    echoed: int = 0
    requests: int = 0
    garbage: int = 0


class Upstream:
    """One socket."""

    def __init__(self, host: str, port: int) -> None:
        self.mood = "well"
        self.counts = Counts()
        self.socket = socket.socket(type=socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        # The constant has no name in Python: SO_RCVBUFFORCE of socket(7), for root.
        with contextlib.suppress(PermissionError):
            self.socket.setsockopt(socket.SOL_SOCKET, 33, RECEIVE_BUFFER_BYTES)
        self.socket.bind((host, port))

    def serve(self) -> None:
        """All that has come."""
        with contextlib.suppress(BlockingIOError):
            while True:
                data, sender = self.socket.recvfrom(65_536)
                if is_stun(data):
                    self.counts.requests += 1
                    self._send(self._answer(data), sender)
                else:
                    self.counts.received += 1
                    self.counts.echoed += self._send(data, sender)
                if self.mood == "garbage":
                    bad = GARBAGE[self.counts.garbage % len(GARBAGE)]
                    self.counts.garbage += self._send(bad, sender)

    def _send(self, data: bytes | None, to: tuple[str, int]) -> bool:
        if data is None:
            return False
        # ConnectionRefusedError is of an earlier datagram, whose receiver has gone.
        for _ in range(2):
            with contextlib.suppress(OSError):
                self.socket.sendto(data, to)
                return True
        return False

    def _answer(self, request: bytes) -> bytes | None:
        if self.mood == "garbage":
            return None
        try:
            method = parse_message(request).method
        except StunError:
            return None
        if self.mood != "well":
            return answer(request, *(CHALLENGE if self.mood in CHALLENGES else ()), error=int(self.mood))
        return allocated(request) if method == Method.ALLOCATE else answer(request)


def main() -> None:
    """Serve until standard input ends."""
    upstream = Upstream(*parse_address(sys.argv[1]))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    waiting = b""
    while True:
        readable, _, _ = select.select([upstream.socket, 0], [], [])
        upstream.serve()
        if 0 not in readable:
            continue
        if not (told := os.read(0, 4096)):
            return
        *lines, waiting = (waiting + told).split(b"\n")
        for line in lines:
            word, _, mood = line.decode().partition(" ")
            if word == "mood":
                upstream.mood = mood
            else:
                sys.stdout.write(json.dumps(asdict(upstream.counts)) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
