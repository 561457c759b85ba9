"""A hoot as softphones have it: each behind a TURN allocation, with the SFU as the peer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from relay.addresses import Address
from relay.client.turn import TurnConnection, open_turn_udp
from relay.emulator.sfu import GroupCipher, Hoot, Sfu, keepalive
from relay.emulator.turn.slow import TurnHost
from relay.turn.credentials import StaticCredentials
from relay.wire.rtp import RtpHeader, build_packet
from tests.support.waiting import becomes

CREDENTIALS = StaticCredentials({"trader": "secret"})


@dataclass
class Phone:
    turn: TurnConnection
    relayed: Address
    heard: asyncio.Queue[bytes]


@contextlib.asynccontextmanager
async def phone(host: TurnHost, hoot: Hoot) -> AsyncIterator[Phone]:
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    def on_data(_: Address, data: bytes) -> None:
        heard.put_nowait(data)

    async with await open_turn_udp(host.address, "trader", "secret", on_data=on_data) as turn:
        relayed = await turn.allocate()
        await turn.bind_channel(hoot.address)
        yield Phone(turn, relayed, heard)
        await turn.close()


async def test_voice_passes_from_allocation_to_allocation() -> None:
    async with (
        TurnHost(Address("127.0.0.1", 0), CREDENTIALS, allow_loopback_peers=True) as host,
        Sfu() as sfu,
        contextlib.AsyncExitStack() as stack,
    ):
        hoot = sfu.open("sPK-12345678-987654")
        phones = [await stack.enter_async_context(phone(host, hoot)) for _ in range(4)]
        for number, one in enumerate(phones):
            hoot.subscribe(f"user-{number}", one.relayed)
            one.turn.send(hoot.address, keepalive())
        await becomes(lambda: hoot.figures().keepalives, 4)
        hoot.allow("user-0", 7, phones[0].relayed)
        packets = [build_packet(RtpHeader(0, number, number * 160, 7), bytes([number]) * 160) for number in range(10)]
        talker = GroupCipher(hoot.key)
        for packet in packets:
            phones[0].turn.send(hoot.address, talker.protect(packet, 0.0))
        for one in phones[1:]:
            listener = GroupCipher(hoot.key)
            assert [listener.unprotect(await one.heard.get(), 0.0) for _ in packets] == packets
        assert phones[0].heard.empty()
