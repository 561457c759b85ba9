"""The far end that sends everything back."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from asyncio.subprocess import PIPE

import pytest

from loadtest.engine.engine import Engine
from loadtest.engine.plans import Carrier, ClientPlan, StreamPlan
from loadtest.engine.sink import SinkError, main, open_sink
from relay.addresses import Address, parse_address
from tests.loadtest.engine.driver import running_engine

ANY_PORTS = [Address("127.0.0.1", 0), Address("::1", 0)]
RTP = b"\x80" + bytes(40)


async def test_it_reflects_until_it_is_interrupted() -> None:
    command = [sys.executable, "-m", "loadtest.engine.sink", "--listen=127.0.0.1:0", "--every=600"]
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)
    assert process.stderr is not None
    try:
        said = (await process.stderr.readline()).decode()
        assert said.startswith("listening on 127.0.0.1:"), said
        address = parse_address(said.split()[-1])
        async with running_engine() as driver:
            opened = await driver.opened(ClientPlan(ANY_PORTS[0], Carrier.PEER, peers=(address,)))
            silenced = await driver.spoken(StreamPlan(opened.client, interval_s=0.002, patience_s=10), 20)
            assert silenced.received == 20
        process.send_signal(signal.SIGINT)
        printed, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    result = json.loads(printed)
    assert (process.returncode, result["reflected"], result["refused"]) == (0, 20, 0)


def test_only_voice_of_those_who_are_named_goes_back() -> None:
    with Engine(max_clients=4, max_streams=1) as engine, socket.socket(type=socket.SOCK_DGRAM) as sender:
        sender.bind(("127.0.0.1", 0))
        named, other = (open_sink(engine, ANY_PORTS[:1], [host])[0] for host in ("127.0.0.1", "127.0.0.2"))
        sender.settimeout(30)
        sender.sendto(RTP, (other.host, other.port))
        for data in (b"", b"x", b"\x40" + RTP[1:], RTP):
            sender.sendto(data, (named.host, named.port))
        assert sender.recvfrom(100) == (RTP, (named.host, named.port))
        refused = 0
        while refused < 3:
            counted = engine.window().counters
            refused += counted["foreign"]
            assert counted["reflected"] <= 1


def test_both_families() -> None:
    with Engine(max_clients=4, max_streams=1) as engine:
        one, other = open_sink(engine, ANY_PORTS)
        assert (one.host, other.host) == ("127.0.0.1", "::1")
        assert one.port
        assert other.port


def test_nobody_but_loopback_without_a_name() -> None:
    with (
        Engine(max_clients=4, max_streams=1) as engine,
        pytest.raises(SinkError, match=r"0\.0\.0\.0:16384: expected the hosts that may send to it"),
    ):
        open_sink(engine, [Address("0.0.0.0", 16384)])


def test_an_address_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        assert main([f"--listen={where}"]) == 2
    assert f"sink: {where}: Address already in use" in capsys.readouterr().err
