"""``check-config --resolve``: who answers, who does not, and which name leads nowhere."""

from __future__ import annotations

import io
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web
from rich.console import Console

from relay import config
from relay.addresses import Address
from relay.emulator.turn.slow import TurnHost
from relay.gateway.checking.reach import Reached, reach, table_of
from tests.support.benches.gateway import CREDENTIALS
from tests.support.network.ports import reserved_address
from tests.support.ssrf_table import FakeDns

LOOPBACK = ["127.0.0.0/8"]
# An upstream that does not answer is waited for three times this long.
BRIEF = {"timeout_s": 0.05}


def settings(*upstreams: dict[str, Any], **sections: Any) -> config.Config:
    tree = {
        "certificates": [{"certificate": "cert.pem", "private_key": "key.pem"}],
        "upstreams": [{"name": f"stun{number}", **one} for number, one in enumerate(upstreams, 1)],
        "media": {"allowed_networks": LOOPBACK},
        **sections,
    }
    return config.parse(tree, folder=Path(), source="relay.toml")


def turn_host() -> TurnHost:
    return TurnHost(Address("127.0.0.1", 0), CREDENTIALS)


async def test_upstreams_that_answer() -> None:
    async with turn_host() as host:
        port = host.address.port
        known = {"username": "trader", "password": "secret"}
        wanted = settings(
            {"address": str(host.address)},
            {"address": f"turn.test:{port}", **known},
            {"address": str(host.address), "probe": "none"},
        )
        found = await reach(wanted, FakeDns({"turn.test": [["127.0.0.1"]]}))
    assert [(one.server, one.address, one.question, one.trouble) for one in found] == [
        ("stun1", f"127.0.0.1:{port}", "a Binding", ""),
        ("stun2", f"127.0.0.1:{port}", "a Binding", ""),
        ("stun2", f"127.0.0.1:{port}", "an allocation", ""),
        ("stun3", f"127.0.0.1:{port}", 'none (probe = "none")', ""),
    ]
    assert found[0].took_s is not None


async def test_upstreams_that_do_not_answer() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent, reserved_address() as nobody:
        silent.bind(("127.0.0.1", 0))
        silent_address = Address(*silent.getsockname())
        async with turn_host() as host:
            wanted = settings(
                {"address": str(silent_address)},
                {"address": str(nobody)},
                {"address": "none.test:3478"},
                {"address": "private.test:3478"},
                {"address": str(host.address), "username": "trader", "password": "wrong"},
                health=BRIEF,
            )
            dns = FakeDns({"private.test": [["10.0.0.1"]], "none.test": [[]]})
            found = await reach(wanted, dns)
    troubles = [one.trouble for one in found]
    assert troubles[0] == "no answer within 0.05 s"
    assert "refused" in troubles[1].lower()
    assert troubles[2] == "none.test: the name has no address"
    assert troubles[3] == "private.test: 10.0.0.1 may not be relayed to (allowed_networks)"
    assert troubles[4] == ""
    assert "401" in troubles[5]


@asynccontextmanager
async def http_server(status: int) -> AsyncIterator[Address]:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status)

    app = web.Application()
    app.router.add_get("/alive", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield Address(*runner.addresses[0][:2])
    finally:
        await runner.cleanup()


async def test_servers_of_signaling() -> None:
    async with turn_host() as host, http_server(200) as good, http_server(500) as bad:
        with reserved_address() as nobody:
            upstreams = [f"http://{good}", f"http://{bad}", f"http://{nobody}", "http://none.test"]
            signaling = {"upstreams": upstreams, "health_path": "/alive", "routes": [{"upstreams": upstreams[:1]}]}
            wanted = settings({"address": str(host.address)}, signaling=signaling)
            found = (await reach(wanted, FakeDns({"none.test": [[]]})))[1:]
    assert {one.address: one.trouble for one in found} == {
        upstreams[0]: "",
        upstreams[1]: "status 500",
        upstreams[2]: "connection refused",
        upstreams[3]: "none.test: the name has no address",
    }
    assert {one.question for one in found} == {"GET /alive"}


def test_what_servers_say_is_text() -> None:
    out = io.StringIO()
    rows = [
        Reached("stun1", "192.0.2.7:3478", "a Binding", 0.0123),
        Reached("stun2", "192.0.2.8:3478", "a Binding", None, "[bold]\x1b[2J"),
    ]
    Console(file=out, width=120).print(table_of(rows))
    shown = out.getvalue()
    assert "12.3" in shown
    assert "[bold]\\x1b[2J" in shown
    assert "\x1b[2J" not in shown
