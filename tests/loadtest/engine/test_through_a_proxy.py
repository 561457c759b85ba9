"""The engine's clients through a web proxy."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.engine.engine import Cause, Phase
from loadtest.engine.plans import Carrier, ClientPlan, StreamPlan, WebProxy
from tests.loadtest.engine.driver import running_engine
from tests.support.benches.gateway import Relay, relay_with_hosts
from tests.support.peers.behind_turn import open_echo
from tests.support.peers.connect_proxy import PASSWORD, USERNAME, ConnectProxy, connect_proxy


def plan(relay: Relay, proxy: ConnectProxy, carrier: Carrier, password: str = PASSWORD) -> ClientPlan:
    return ClientPlan(
        relay.tls,
        carrier,
        "trader",
        "secret",
        authorities=str(relay.authority.ca_certificate),
        web_proxy=WebProxy(proxy.address, USERNAME, password),
    )


@pytest.mark.parametrize("carrier", [Carrier.TLS, Carrier.SESSION])
async def test_a_stream_comes_back(tmp_path: Path, carrier: Carrier) -> None:
    async with (
        relay_with_hosts(tmp_path, count=1) as (relay, _),
        open_echo() as echo,
        connect_proxy() as proxy,
        running_engine() as driver,
    ):
        opened = await driver.opened(plan(relay, proxy, carrier))
        assert proxy.asked == [str(relay.tls)]
        assert Phase.PROXY in opened.seconds
        driver.engine.bind(opened.client, echo)
        while not (await driver.spoken(StreamPlan(opened.client), 5)).received:
            pass
        await driver.closed(opened.client)


async def test_a_wrong_password_is_the_proxys_error(tmp_path: Path) -> None:
    async with relay_with_hosts(tmp_path, count=1) as (relay, _), connect_proxy() as proxy, running_engine() as driver:
        ended = await driver.ended(plan(relay, proxy, Carrier.TLS, "wrong"))
        assert (ended.cause, ended.code, ended.phase) == (Cause.PROXY, 407, Phase.PROXY)
        assert ended.words.startswith("HTTP/1.1 407")


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (b"HTTP/1.1 503 Busy\r\n\r\n", Cause.PROXY),
        (b"SSH-2.0-none of HTTP\r\n\r\n", Cause.PROXY),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 20000, Cause.BROKEN),
    ],
    ids=["busy", "not HTTP", "endless"],
)
async def test_what_else_a_proxy_may_say(tmp_path: Path, answer: bytes, cause: Cause) -> None:
    async with relay_with_hosts(tmp_path, count=1) as (relay, _), connect_proxy() as proxy, running_engine() as driver:
        proxy.refuses = answer
        ended = await driver.ended(plan(relay, proxy, Carrier.TLS))
        assert (ended.cause, ended.phase) == (cause, Phase.PROXY)
