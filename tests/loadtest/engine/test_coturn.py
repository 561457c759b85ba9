"""The engine's clients with a real coturn: both families, through a real squid, and when it is killed."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from loadtest.engine.engine import Cause, Phase
from loadtest.engine.plans import Carrier, ClientPlan, StreamPlan, WebProxy
from relay.addresses import Address
from relay.demo.authority import Authority
from tests.loadtest.engine.driver import Driver, running_engine
from tests.support.peers.behind_turn import open_echo
from tests.support.peers.coturn import Coturn, open_coturn
from tests.support.peers.squid import needs_squid, open_squid

pytestmark = pytest.mark.skipif(shutil.which("turnserver") is None, reason="coturn is not installed")

FAST = 0.002
PATIENCE = 10.0


def plan(coturn: Coturn, carrier: Carrier, *peers: Address, password: str = "", **more: Any) -> ClientPlan:
    server = coturn.address if carrier is Carrier.UDP else coturn.tls_address
    assert server is not None
    return ClientPlan(server, carrier, coturn.username, password or coturn.password, peers, **more)


async def carries_voice(driver: Driver, client_plan: ClientPlan) -> None:
    opened = await driver.opened(client_plan)
    silenced = await driver.spoken(StreamPlan(opened.client, interval_s=FAST, patience_s=PATIENCE), 20)
    assert silenced.received == 20
    assert driver.engine.window().counters["forged"] == 0
    assert (await driver.closed(opened.client)).cause is Cause.ASKED


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_voice_over_udp(host: str) -> None:
    async with open_coturn(host=host) as coturn, open_echo(host) as echo, running_engine() as driver:
        await carries_voice(driver, plan(coturn, Carrier.UDP, echo))
        ended = await driver.ended(plan(coturn, Carrier.UDP, echo, password="wrong"))
        assert (ended.cause, ended.code) == (Cause.STUN, 401)


@needs_squid
async def test_voice_over_tls_through_a_web_proxy(tmp_path: Path) -> None:
    """With a certificate that is checked. squid wants a name and a password."""
    authority = Authority(tmp_path)
    certificate = authority.issue("coturn.test", "127.0.0.1")
    async with (
        open_coturn(certificate=certificate) as coturn,
        open_squid() as squid,
        open_echo() as echo,
        running_engine() as driver,
    ):
        trusting: dict[str, Any] = {"server_name": "coturn.test", "authorities": str(authority.ca_certificate)}
        trusting["tunnel"] = coturn.tls_address
        proxy = WebProxy(squid.address, squid.username, squid.password)
        await carries_voice(driver, plan(coturn, Carrier.TLS, echo, web_proxy=proxy, **trusting))
        assert [(method, url) for _, _, method, url, _ in squid.requests()] == [("CONNECT", str(coturn.tls_address))]
        stranger = WebProxy(squid.address, squid.username, "wrong")
        ended = await driver.ended(plan(coturn, Carrier.TLS, echo, web_proxy=stranger, **trusting))
        assert (ended.cause, ended.code, ended.phase) == (Cause.PROXY, 407, Phase.PROXY)


@pytest.mark.parametrize("carrier", [Carrier.TLS, Carrier.UDP])
async def test_a_server_that_is_killed_in_the_middle(tmp_path: Path, carrier: Carrier) -> None:
    """Its client ends with a cause. The stream goes on, and says what was not sent."""
    certificate = Authority(tmp_path).issue("coturn.test")
    async with open_coturn(certificate=certificate) as coturn, open_echo() as echo, running_engine() as driver:
        opened = await driver.opened(plan(coturn, carrier, echo))
        number = driver.engine.talk(StreamPlan(opened.client, interval_s=FAST, patience_s=0.1))
        while not (await driver.window()).counters["received"]:
            pass
        os.kill(coturn.process_id, signal.SIGKILL)
        ended = await driver.next_ended()
        assert ended.client == opened.client
        assert ended.phase is Phase.READY
        assert ended.cause in {Cause.CONNECTION, Cause.CLOSED, Cause.TLS}
        while not (await driver.window()).counters["unsent"]:
            pass
        driver.engine.silence(number)
        silenced = await driver.next_silenced()
        assert silenced.received > 0
        assert silenced.unsent > 0
        # Nobody is there any longer.
        again = await asyncio.wait_for(driver.ended(plan(coturn, carrier, echo)), 30)
        assert again.cause is Cause.CONNECTION
