"""Link-local addresses with their zone (``fe80::1%lo``), wherever the configuration has an address."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from relay.addresses import Address
from relay.demo.authority import Authority
from relay.demo.wan.netns import Namespace, refusal
from relay.emulator.turn.slow import TurnHost
from relay.errors import OperatorError
from relay.gateway.routing.upstreams import Health
from relay.plane.certificates import read_certificate
from relay.plane.settings import PlaneSettings
from relay.turn.credentials import StaticCredentials
from tests.support.benches.gateway import running_relay
from tests.support.benches.plane import PLANES
from tests.support.waiting import eventually

ZONED = "fe80::1%lo"
CREDENTIALS = StaticCredentials({"trader": "secret"})


@pytest.mark.skipif(refusal() is not None or shutil.which("ip") is None, reason=refusal() or "there is no ip command")
@pytest.mark.parametrize("plane", PLANES)
async def test_a_call_over_link_local_addresses(tmp_path: Path, plane: str) -> None:
    """All of ``listen``, an upstream, and the source of UDP."""

    async def inside() -> None:
        sections = {
            "listen": {
                "tls": [f"[{ZONED}]:0"],
                "admin": f"[{ZONED}]:0",
                "admin_unprotected": True,
                "web_proxy": [f"[{ZONED}]:0"],
                "plane": plane,
            },
            "media": {"source_addresses": [ZONED]},
        }
        async with (
            TurnHost(Address(ZONED, 0), CREDENTIALS, exposed=True, relayed_hosts=("127.0.0.1",)) as host,
            running_relay(tmp_path, host.address, **sections) as relay,
        ):
            (state,) = relay.gateway.upstreams
            await eventually(lambda: state.health is Health.UP)
            bound = [relay.tls, relay.admin, *relay.gateway.web_proxy.addresses, host.address]
            assert [address.host for address in bound] == [ZONED] * 4
            async with await relay.open_turn("trader", "secret") as turn:
                await turn.allocate()
                (flow,) = relay.gateway.plane.snapshot().flows
                assert flow.upstream.address == host.address
            proxy = relay.gateway.web_proxy.addresses[0]
            reader, writer = await asyncio.open_connection(*proxy)
            writer.write(b"GET /proxy.pac HTTP/1.0\r\n\r\n")
            # Without the zone, which is this machine's own.
            assert f"PROXY [fe80::1]:{proxy.port}" in (await reader.read()).decode()
            writer.close()
            await writer.wait_closed()

    with Namespace() as namespace:
        async with namespace.process("ip", "-6", "addr", "add", "fe80::1/64", "dev", "lo", "nodad") as process:
            assert await process.wait() == 0
        await namespace.run(inside)


@pytest.mark.parametrize("plane", PLANES)
async def test_an_interface_that_is_missing(tmp_path: Path, plane: str) -> None:
    issued = Authority(tmp_path).issue("relay.test")
    made = PLANES[plane](PlaneSettings(), [read_certificate(issued)], lambda _: None)
    try:
        with pytest.raises(OperatorError, match=r"cannot listen on \[fe80::1%absent\]:0"):
            await made.listen(Address("fe80::1%absent", 0))
    finally:
        await made.stop()
