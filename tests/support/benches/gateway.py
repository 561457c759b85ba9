"""A whole relay in the test's own loop: throw-away certificate, free loopback ports, and a client for it."""

from __future__ import annotations

import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relay import config
from relay.addresses import Address
from relay.client.turn import OnData, TurnConnection, open_turn_tls
from relay.demo.authority import Authority
from relay.emulator.turn.host import Host
from relay.emulator.turn.hosts import TurnHosts
from relay.gateway.app import Gateway
from relay.turn.credentials import StaticCredentials
from tests.support.waiting import eventually

SERVER_NAME = "relay.test"
# The certificate's names: one name, a name of any region, and the addresses that tests listen on.
CERTIFICATE_NAMES = (SERVER_NAME, "*.relay.test", "127.0.0.1", "::1")

# As many connections as a machine with few file descriptors can serve: where the limits need more, the relay says so.
# And no bound on what flows carry: tests send as fast as the machine does. Where many of them run, memory may be short.
LIMITS = {
    "connections": 3500,
    "packets_per_second_per_flow": 0,
    "bytes_per_second_per_flow": 0,
    "packets_per_second_per_user": 0,
    "bytes_per_second_per_user": 0,
    "watch_memory": False,
}

# What the TURN hosts of the tests know.
CREDENTIALS = StaticCredentials({"trader": "secret"})

Section = Mapping[str, Any]


def _ignore(_: Address, __: bytes) -> None:
    """Nobody asked for data."""


@dataclass(frozen=True)
class Relay:
    """A running relay, the file it was told to read, and what its clients need to reach and trust it."""

    gateway: Gateway
    config_file: Path
    tree: dict[str, Any]
    authority: Authority
    trust: ssl.SSLContext

    @property
    def tls(self) -> Address:
        """Where clients connect."""
        return self.gateway.tls[0]

    @property
    def admin(self) -> Address:
        """Where operators look."""
        assert isinstance(self.gateway.admin, Address)
        return self.gateway.admin

    @property
    def connections(self) -> int:
        """How many connections the plane has."""
        return self.gateway.plane.snapshot().connections

    async def open_turn(
        self,
        username: str = "",
        password: str = "",
        *,
        on_data: OnData = _ignore,
        server_name: str = SERVER_NAME,
        timeout_s: float = 60.0,
    ) -> TurnConnection:
        """Connect a TURN/TLS client to the relay. Raises UpstreamError."""
        return await open_turn_tls(
            self.tls,
            username,
            password,
            ssl_context=self.trust,
            server_hostname=server_name,
            on_data=on_data,
            timeout_s=timeout_s,
        )


def settings_tree(
    authority: Authority, *upstreams: Address | Section, names: tuple[str, ...] = CERTIFICATE_NAMES, **sections: Any
) -> dict[str, Any]:
    """The tree of a relay's TOML file. ``sections`` are added to it; ``listen`` is merged with what is there."""
    issued = authority.issue(*names)
    tree: dict[str, Any] = {
        "certificates": [{"certificate": str(issued.chain), "private_key": str(issued.private_key)}],
        "upstreams": [_upstream(number, one) for number, one in enumerate(upstreams, 1)],
        "limits": LIMITS,
        **sections,
    }
    tree["listen"] = {"tls": ["127.0.0.1:0"], "admin": "127.0.0.1:0", **tree.get("listen", {})}
    return tree


def _upstream(number: int, given: Address | Section) -> dict[str, Any]:
    if isinstance(given, Address):
        return {"name": f"stun{number}", "address": str(given)}
    return {"name": f"stun{number}", **given, "address": str(given["address"])}


def write_config(path: Path, tree: Section) -> None:
    """Write a tree of settings as TOML."""
    path.write_text("".join(f"{key} = {_toml(value)}\n" for key, value in tree.items()), encoding="utf-8")


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(one) for one in value) + "]"
    return json.dumps(value)


@contextlib.asynccontextmanager
async def running_relay(
    folder: Path, *upstreams: Address | Section, lookup: Any = None, **sections: Any
) -> AsyncIterator[Relay]:
    """A relay that serves while the block runs; its certificate and its relay.toml are written to ``folder``.

    An upstream is an address, or the keys of its ``[[upstreams]]`` entry; unnamed ones are stun1, stun2 and so on.
    ``sections`` are those of the TOML file, such as ``limits={"drain_timeout_s": 1}``; ``lookup`` resolves names.
    """
    authority, path = Authority(folder), folder / "relay.toml"
    tree = settings_tree(authority, *upstreams, **sections)
    write_config(path, tree)
    gateway = Gateway(config.load(path), lookup)
    await gateway.start()
    try:
        yield Relay(gateway, path, tree, authority, authority.client_context())
    finally:
        await gateway.stop()


@contextlib.asynccontextmanager
async def relay_with_hosts(
    folder: Path, plane: str = "compiled", count: int = 2, **sections: Any
) -> AsyncIterator[tuple[Relay, TurnHosts]]:
    """A relay whose region ``use1`` has this many TURN hosts, all of them up."""
    names = [f"stun{number}" for number in range(1, count + 1)]
    async with TurnHosts({"use1": names}, CREDENTIALS, allow_loopback_peers=True) as hosts:
        upstreams = [{"name": host.name, "region": "use1", "address": host.address} for host in hosts]
        async with running_relay(folder, *upstreams, listen={"plane": plane}, **sections) as relay:
            await eventually(lambda: all(one.health == "up" for one in relay.gateway.upstreams))
            yield relay, hosts


def fall_silent(host: Host) -> None:
    """Make the host answer nothing from now on, and without ICMP."""
    host.paused = True
