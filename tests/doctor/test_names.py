"""Names in DNS: those that are there, those that are not, and a server that says nothing."""

from __future__ import annotations

from relay.doctor.probes.names import look_up
from relay.doctor.seen import NameSeen
from tests.support.peers.dns import dns_server


async def test_names_that_dns_knows_and_does_not_know() -> None:
    known = {"a.xhoot.test": ["192.0.2.7"], "b.xhoot.test": ["192.0.2.8", "2001:db8::8"]}
    async with dns_server(known) as server:
        found = await look_up(["a.xhoot.test", "b.xhoot.test", "c.xhoot.test"], 30.0, (server.address,))
    assert found["a.xhoot.test"] == NameSeen(("192.0.2.7",))
    assert set(found["b.xhoot.test"].addresses) == {"192.0.2.8", "2001:db8::8"}
    assert found["c.xhoot.test"].addresses == ()
    assert found["c.xhoot.test"].fault


async def test_a_server_that_says_nothing() -> None:
    async with dns_server() as server:
        found = await look_up(["a.slow"], 0.5, (server.address,))
    assert found["a.slow"] == NameSeen(fault="DNS gives no answer within 0.5 s")
