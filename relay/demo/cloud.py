"""The demo's cloud: the emulator with its usual users and two more for each path, and a relay in front of it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import tomllib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from relay import catalog, config
from relay.addresses import Address
from relay.demo.calls import Pair
from relay.emulator import fixtures
from relay.emulator.cloud import Cloud
from relay.emulator.folder import relay_toml
from relay.emulator.lines import LineKind
from relay.emulator.settings import (
    DEFAULT_BAD_WEB_PROXY,
    DEFAULT_HTTP,
    DEFAULT_TLS,
    RELAY_ADMIN,
    RELAY_TLS,
    EmulatorSettings,
    RelayPlan,
)
from relay.emulator.store.passwords import hash_password
from relay.emulator.store.store import IN_MEMORY
from relay.floor.relays import running_gateway
from relay.gateway.app import Gateway

FIRM = "demo"
_ANY = Address("127.0.0.1", 0)


@dataclass(frozen=True)
class Floor:
    """What runs."""

    cloud: Cloud
    gateway: Gateway
    pairs: list[Pair]

    @property
    def url(self) -> str:
        """Where everything of the cloud answers."""
        return f"http://{self.cloud.http}"


@contextlib.asynccontextmanager
async def running_floor(folder: Path, pairs: int, *, known_ports: bool) -> AsyncIterator[Floor]:
    """Start all, with state in memory. ``known_ports``: those of ``relay emulate``. Raises OperatorError."""
    password = secrets.token_urlsafe(16)
    people, lines = _people(pairs, await asyncio.to_thread(hash_password, password))
    usual = fixtures.bundled()
    settings = EmulatorSettings(
        folder=folder,
        fixtures=usual.model_copy(
            update={
                "firms": (*usual.firms, fixtures.FirmFixture(id=FIRM, name="The demo's softphones")),
                "users": (*usual.users, *people),
                "lines": (*usual.lines, *lines),
            }
        ),
        catalog=catalog.load(),
        database=IN_MEMORY,
        tls=DEFAULT_TLS if known_ports else _ANY,
        http=DEFAULT_HTTP if known_ports else _ANY,
        turn_port=0,
        # Calls are measured: nothing of ours lies on their way.
        udp_hop_port=None,
        bad_web_proxy=DEFAULT_BAD_WEB_PROXY if known_ports else None,
        relay=RelayPlan() if known_ports else RelayPlan(_ANY, _ANY, _ANY),
    )
    async with Cloud(settings) as cloud:
        tree = tomllib.loads(relay_toml(cloud))
        tls, admin = (RELAY_TLS, RELAY_ADMIN) if known_ports else (_ANY, _ANY)
        tree["listen"] = {"tls": [str(tls)], "admin": str(admin)}
        async with running_gateway(config.parse(tree, folder=folder, source="demo")) as gateway:
            named = [Pair(line.members[0], line.members[1], line.number, password) for line in lines]
            yield Floor(cloud, gateway, named)


def _people(pairs: int, hashed: str) -> tuple[list[fixtures.UserFixture], list[fixtures.LineFixture]]:
    """Two users for each path, and a line between them. They share a password, and so its hash."""
    people, lines = [], []
    for number in range(1, pairs + 1):
        names = (f"demo-{number}a", f"demo-{number}b")
        people += [
            fixtures.UserFixture(
                id=name,
                firm=FIRM,
                name=f"Softphone {name[-2:]}",
                email=f"{name}@demo.example",
                password_hash=SecretStr(hashed),
                voice_via_web_proxy=True,
            )
            for name in names
        ]
        lines.append(
            fixtures.LineFixture(
                number=f"sPK-20000001-{number:06}",
                kind=LineKind.RINGDOWN,
                label=f"Demo {number}",
                members=names,
            )
        )
    return people, lines
