"""What our own kernel does not send is sent again, and the server is not blamed for it."""

from __future__ import annotations

import asyncio
import errno

import pytest

from relay.addresses import Address
from relay.client.requests import TurnRequestError
from relay.client.turn import open_turn_udp
from relay.emulator.turn.slow import TurnHost
from relay.turn.credentials import StaticCredentials
from tests.support.network.refusing import WAYS, allow, in_namespace, refuse
from tests.support.waiting import eventually

ERRNO = {
    "drop": errno.EPERM,
    "reject": errno.EPERM,
    "prohibited": errno.EPERM,
    "no route": errno.ENETUNREACH,
    "route prohibited": errno.EACCES,
}


@pytest.mark.parametrize("way", WAYS)
async def test_a_request_goes_on_once_the_kernel_sends_again(way: str) -> None:
    async def main() -> None:
        credentials = StaticCredentials({"ann": "sesame"})
        async with (
            TurnHost(Address("127.0.0.1", 0), credentials) as host,
            await open_turn_udp(host.address, "ann", "sesame", rto_s=0.05) as turn,
        ):
            refuse(way, host.address.port)
            allocation = asyncio.ensure_future(turn.allocate())
            await eventually(lambda: turn.dropped >= 2)
            allow(way)
            assert (await allocation).host == "127.0.0.1"
            refuse(way, host.address.port)
            refresh = asyncio.ensure_future(turn.refresh())
            await eventually(lambda: turn.dropped >= 4)
            allow(way)
            assert await refresh == 600

    await in_namespace(main)


@pytest.mark.parametrize("way", WAYS)
async def test_who_was_never_asked_is_not_blamed(way: str) -> None:
    async def main() -> None:
        async with TurnHost(Address("127.0.0.1", 0), StaticCredentials({})) as host:
            turn = await open_turn_udp(host.address, rto_s=0.05, timeout_s=0.2)
            refuse(way, host.address.port)
            with pytest.raises(TurnRequestError, match="BINDING: our own machine did not send: ") as caught:
                await turn.binding()
            cause = caught.value.__cause__
            assert isinstance(cause, OSError)
            assert cause.errno == ERRNO[way]
            allow(way)
            assert await turn.binding() == turn.local_address
            await turn.close()

    await in_namespace(main)


async def test_a_server_that_does_not_listen_is_told_at_once() -> None:
    """Also right after an answer that came; ICMP is proof."""
    async with TurnHost(Address("127.0.0.1", 0), StaticCredentials({})) as host:
        turn = await open_turn_udp(host.address, timeout_s=3600)
        await turn.binding()
    with pytest.raises(TurnRequestError, match="cannot be reached: Connection refused") as caught:
        await turn.binding()
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)
    await turn.close()
