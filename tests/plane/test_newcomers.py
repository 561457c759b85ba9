"""Who may come in: networks of clients, connections of one source, and how fast handshakes begin; on every plane."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from relay.addresses import Address, IpNetwork
from relay.plane.api import AcceptPaused, Closed, CloseReason, ConnectionId, PauseCause
from relay.plane.networks import ClientNetworks
from relay.plane.settings import PlaneSettings
from tests.support.benches.plane import PLANES, Bench, MakePlane, bounds, plane_bench
from tests.support.messages import HELLO
from tests.support.waiting import becomes

every_plane = pytest.mark.parametrize("make", PLANES.values(), ids=PLANES.keys())
NEVER_REFUSED = CloseReason.HANDSHAKE_FAILED  # it goes away without a word


def networks(*texts: str) -> tuple[IpNetwork, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


@contextlib.asynccontextmanager
async def arriving(bench: Bench, *clients: str) -> AsyncIterator[list[tuple[ConnectionId, socket.socket]]]:
    """Connections that the plane is given one right after the other, with their other ends. Control names clients."""
    loop, pairs = asyncio.get_running_loop(), contextlib.ExitStack()
    with pairs, socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        accepted, ends = [], []
        for _ in clients:
            end = pairs.enter_context(socket.socket())
            end.setblocking(False)
            await loop.sock_connect(end, listener.getsockname())
            accepted.append((await loop.sock_accept(listener))[0].detach())
            ends.append(end)
        given = [
            bench.plane.adopt(fd, b"", Address(client, 40_000)) for fd, client in zip(accepted, clients, strict=True)
        ]
        yield list(zip(given, ends, strict=True))


async def reason_of(bench: Bench, connection: ConnectionId) -> CloseReason:
    return (await bench.event(Closed, lambda closed: closed.connection == connection)).reason


async def reasons(bench: Bench, *clients: str) -> list[CloseReason]:
    """Why each of these is closed. Those that are not refused go away by themselves, once all have come.

    Several workers take them, in any order.
    """
    before = bench.plane.snapshot().accepted
    async with arriving(bench, *clients) as given:
        await becomes(lambda: bench.plane.snapshot().accepted, before + len(given))
        for _, end in given:
            end.close()
        return [await reason_of(bench, connection) for connection, _ in given]


# Networks


Case = tuple[Sequence[str], Sequence[str], str, bool]
CASES: list[Case] = [
    ([], [], "10.1.2.3", False),
    (["10.0.0.0/8"], [], "10.1.2.3", False),
    (["10.0.0.0/8"], [], "11.1.2.3", True),
    (["10.0.0.0/8", "192.0.2.7/32"], [], "192.0.2.7", False),
    (["10.0.0.0/9"], [], "10.128.0.1", True),
    (["10.0.0.0/9"], [], "10.127.255.255", False),
    ([], ["10.1.2.3/32"], "10.1.2.3", True),
    ([], ["10.1.2.3/32"], "10.1.2.2", False),
    (["10.0.0.0/8"], ["10.1.0.0/16"], "10.1.2.3", True),
    (["10.0.0.0/8"], ["10.1.0.0/16"], "10.2.2.3", False),
    # An IPv4 client is in no network of IPv6, and the other way round; unless the network is IPv4 inside IPv6.
    ([], ["::/0"], "10.1.2.3", False),
    ([], ["::/0"], "2001:db8::1", True),
    ([], ["::/80"], "10.1.2.3", False),
    ([], ["0.0.0.0/0"], "2001:db8::1", False),
    ([], ["0.0.0.0/0"], "10.1.2.3", True),
    ([], ["::ffff:10.1.0.0/112"], "10.1.2.3", True),
    ([], ["10.1.0.0/16"], "::ffff:10.1.2.3", True),
    ([], ["2001:db8::/33"], "2001:db8:7fff::1", True),
    ([], ["2001:db8::/33"], "2001:db8:8000::1", False),
    (["2001:db8::1/128"], [], "2001:db8::2", True),
]


@every_plane
async def test_clients_are_judged_by_their_network(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench:
        for allowed, denied, client, refused in CASES:
            rules = bounds(allowed_clients=networks(*allowed), denied_clients=networks(*denied))
            bench.plane.configure(rules)
            expected = CloseReason.NETWORK_REFUSED if refused else NEVER_REFUSED
            assert await reasons(bench, client) == [expected], (allowed, denied, client)


def test_what_is_no_address_is_in_no_network() -> None:
    assert not ClientNetworks().refuses("")
    assert ClientNetworks(denied=networks("10.0.0.0/8")).refuses("")
    assert ClientNetworks(allowed=networks("10.0.0.0/8")).refuses("a name")
    assert not ClientNetworks(exempt=networks("0.0.0.0/0")).is_exempt("a name")


@every_plane
async def test_refused_clients_get_no_handshake_and_the_others_go_on(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path) as bench, bench.flow(HELLO) as (caller, _):
        bench.plane.configure(bounds(denied_clients=networks("127.0.0.0/8")))
        with pytest.raises((ConnectionError, ssl.SSLError)):
            await bench.connect()
        assert (await bench.closed()).reason is CloseReason.NETWORK_REFUSED
        # Who is inside stays: the list is for those who come.
        await caller.send(HELLO)
        await bench.upstream.expect(HELLO)
        bench.plane.configure(bounds())
        async with bench.flow(HELLO):
            pass


# Connections of one source


@every_plane
async def test_a_network_of_ipv6_is_one_source(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path, bounds(max_connections_per_source=1)) as bench:
        for pair in (("2001:db8::1", "2001:db8::2"), ("10.1.2.3", "::ffff:10.1.2.3")):
            # The second time shows that places are free again.
            for _ in range(2):
                found = await reasons(bench, *pair)
                assert sorted(found) == sorted([CloseReason.TOO_MANY_CONNECTIONS, NEVER_REFUSED])
                await becomes(lambda: bench.plane.snapshot().connections, 0)
        assert await reasons(bench, "2001:db8::1", "2001:db8:0:1::1", "10.1.2.3") == [NEVER_REFUSED] * 3


@every_plane
async def test_bounds_of_one_source_do_not_count_for_exempt_networks(make: MakePlane, tmp_path: Path) -> None:
    exempt = networks("10.0.0.0/8", "2001:db8::/32")
    settings = bounds(max_connections_per_source=1, handshakes_per_second_per_source=1, exempt_clients=exempt)
    async with plane_bench(make, tmp_path, settings) as bench:
        for client in ("10.1.2.3", "2001:db8::1"):
            assert await reasons(bench, client, client, client) == [NEVER_REFUSED] * 3
        # The others are still counted, and so are all connections together.
        assert CloseReason.TOO_MANY_CONNECTIONS in await reasons(bench, "11.1.2.3", "11.1.2.3", "11.1.2.3")
        bench.plane.configure(bounds(max_connections=2, exempt_clients=exempt))
        await becomes(lambda: bench.plane.snapshot().connections, 0)
        assert CloseReason.TOO_MANY_CONNECTIONS in await reasons(bench, "10.1.2.3", "10.1.2.3", "10.1.2.3")


# Handshakes in a second


# One a second may begin, so of ten that come at once one may, and the last may not, even on a slow machine.
AT_ONCE = 10


@every_plane
async def test_one_source_begins_only_so_many_handshakes_in_a_second(make: MakePlane, tmp_path: Path) -> None:
    async with plane_bench(make, tmp_path, bounds(handshakes_per_second_per_source=1)) as bench:
        found = await reasons(bench, *["10.1.2.3"] * AT_ONCE)
        assert set(found) == {NEVER_REFUSED, CloseReason.TOO_MANY_HANDSHAKES}
        assert await reasons(bench, "10.1.2.4") == [NEVER_REFUSED]


@every_plane
@pytest.mark.parametrize("exempt", [(), networks("10.0.0.0/8")])
async def test_all_together_begin_only_so_many(make: MakePlane, tmp_path: Path, exempt: tuple[IpNetwork, ...]) -> None:
    """Control has accepted these already, so they cannot wait. To be exempt helps one source, not against all."""
    async with plane_bench(make, tmp_path, bounds(handshakes_per_second=1, exempt_clients=exempt)) as bench:
        found = await reasons(bench, *[f"10.1.2.{number}" for number in range(AT_ONCE)])
        assert set(found) == {NEVER_REFUSED, CloseReason.TOO_MANY_HANDSHAKES}


@every_plane
async def test_refused_clients_take_no_handshake_from_others(make: MakePlane, tmp_path: Path) -> None:
    settings = bounds(handshakes_per_second=1, denied_clients=networks("10.0.0.0/8"))
    async with plane_bench(make, tmp_path, settings) as bench:
        found = await reasons(bench, *["10.1.2.3"] * AT_ONCE, "11.1.2.3")
        assert found == [CloseReason.NETWORK_REFUSED] * AT_ONCE + [NEVER_REFUSED]


@every_plane
async def test_who_waits_for_a_handshake_is_not_refused(make: MakePlane, tmp_path: Path) -> None:
    """Clients of the plane's own listener wait in the kernel's queue: more come at once than may, and all get in."""
    settings = bounds(handshakes_per_second=20)
    async with plane_bench(make, tmp_path, settings) as bench:
        clients = await asyncio.gather(*(bench.connect() for _ in range(30)))
        assert await bench.event(AcceptPaused) == AcceptPaused(PauseCause.HANDSHAKES)
        assert bench.plane.snapshot().closed == {}
        for client in clients:
            client.abort()


@every_plane
async def test_many_sources_are_told_apart(make: MakePlane, tmp_path: Path) -> None:
    """Sources that are gone give up their place in the table, and do not leave a count behind."""
    async with plane_bench(make, tmp_path, bounds(max_connections_per_source=1)) as bench:
        for turn in range(3):
            clients = [f"10.{turn}.{number}.1" for number in range(20) for _ in range(2)]
            found = Counter(await reasons(bench, *clients))
            assert found == {NEVER_REFUSED: 20, CloseReason.TOO_MANY_CONNECTIONS: 20}
            await becomes(lambda: bench.plane.snapshot().connections, 0)


def test_defaults_bound_nothing() -> None:
    """A plane by itself; the configuration has other defaults."""
    settings = PlaneSettings()
    assert (settings.max_connections_per_source, settings.handshakes_per_second) == (0, 0)
