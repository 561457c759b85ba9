"""The SFU of the benchmark ``hoot``, in a process of its own: ours, or one that encrypts again for each subscriber.

Reads a line of JSON (who talks, who listens), prints the hoot's address and then, when its input ends, what it counted.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from typing import Any

import pylibsrtp
import uvloop

from relay.addresses import Address
from relay.emulator.sfu import GroupKey, Sfu
from relay.emulator.turn.sockets import open_udp_socket

LINE = "sPK-12345678-987654"
MAX_PACKET_BYTES = 2048


async def _until_input_ends() -> None:
    await asyncio.to_thread(sys.stdin.read)


def _say(value: object) -> None:
    print(json.dumps(value), flush=True)  # noqa: T201


async def forward(setup: dict[str, Any]) -> None:
    """Our SFU."""
    async with Sfu() as sfu:
        hoot = sfu.open(LINE)
        for ssrc, address in enumerate(setup["talkers"]):
            hoot.allow(f"talker-{ssrc}", ssrc, Address(*address))
        for number, address in enumerate(setup["subscribers"]):
            hoot.subscribe(f"user-{number}", Address(*address))
        _say(hoot.address)
        await _until_input_ends()
        _say(asdict(hoot.figures()))


class Encrypting:
    """Decrypts each packet once, and encrypts it for each subscriber with a key of their own."""

    def __init__(self, setup: dict[str, Any]) -> None:
        any_outbound = pylibsrtp.Policy.SSRC_ANY_OUTBOUND
        self._talkers = {tuple(address) for address in setup["talkers"]}
        policy = pylibsrtp.Policy(key=bytes.fromhex(setup["key"]), ssrc_type=pylibsrtp.Policy.SSRC_ANY_INBOUND)
        self._inbound = pylibsrtp.Session(policy)
        self._subscribers = [
            (
                tuple(address),
                pylibsrtp.Session(pylibsrtp.Policy(key=GroupKey.new(1).master_key, ssrc_type=any_outbound)),
            )
            for address in setup["subscribers"]
        ]
        self.figures = {"forwarded": 0, "copies": 0, "copies_no_room": 0}
        self._socket = open_udp_socket(Address("127.0.0.1", 0))
        self.address = self._socket.getsockname()

    def receive(self) -> None:
        """Take what has come."""
        while True:
            try:
                data, sender = self._socket.recvfrom(MAX_PACKET_BYTES)
            except BlockingIOError:
                return
            if sender in self._talkers:
                self._forward(self._inbound.unprotect(data))

    def _forward(self, packet: bytes) -> None:
        self.figures["forwarded"] += 1
        for address, session in self._subscribers:
            try:
                self._socket.sendto(session.protect(packet), address)
                self.figures["copies"] += 1
            except BlockingIOError:
                self.figures["copies_no_room"] += 1

    @property
    def descriptor(self) -> int:
        """Of the socket."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


async def encrypt(setup: dict[str, Any]) -> None:
    """The other design."""
    sfu, loop = Encrypting(setup), asyncio.get_running_loop()
    loop.add_reader(sfu.descriptor, sfu.receive)
    _say(sfu.address)
    await _until_input_ends()
    loop.remove_reader(sfu.descriptor)
    _say(sfu.figures)
    sfu.close()


def main() -> None:
    """Serve until the input ends."""
    setup = json.loads(sys.stdin.readline())
    serve = {"forward": forward, "encrypt": encrypt}[setup["mode"]]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(setup))


if __name__ == "__main__":
    main()
