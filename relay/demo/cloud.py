"""The demo's cloud: the emulator with its usual users and two more for each path, and a relay in front of it."""

from __future__ import annotations

import contextlib
import ssl
import tomllib
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from relay import catalog, config
from relay.addresses import Address
from relay.demo.calls import Pair, RelayAccess
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

    @property
    def url(self) -> str:
        """Where everything of the cloud answers."""
        return f"http://{self.cloud.http}"

    def relay_access(self, server_name: str) -> RelayAccess:
        """How softphones reach the relay, and know it."""
        trust = ssl.create_default_context(cafile=str(self.cloud.files.ca))
        return RelayAccess(self.gateway.tls[0], server_name, trust)


@contextlib.asynccontextmanager
async def running_floor(
    folder: Path,
    people: fixtures.Fixtures,
    *,
    known_ports: bool = False,
    bad_web_proxy: Address | None = None,
    limits: dict[str, Any] | None = None,
) -> AsyncIterator[Floor]:
    """Start all, with state in memory. ``known_ports``: the ports of ``relay emulate``. Raises OperatorError.

    ``bad_web_proxy`` is where the firm's web proxy listens that faults make bad; without one there is none.
    """
    settings = EmulatorSettings(
        folder=folder,
        fixtures=people,
        catalog=catalog.load(),
        database=IN_MEMORY,
        tls=DEFAULT_TLS if known_ports else _ANY,
        http=DEFAULT_HTTP if known_ports else _ANY,
        turn_port=0,
        # Calls are measured: nothing of ours lies on their way.
        udp_hop_port=None,
        bad_web_proxy=DEFAULT_BAD_WEB_PROXY if known_ports else bad_web_proxy,
        relay=RelayPlan() if known_ports else RelayPlan(_ANY, _ANY, _ANY),
    )
    async with Cloud(settings) as cloud:
        tree = tomllib.loads(relay_toml(cloud))
        tls, admin = (RELAY_TLS, RELAY_ADMIN) if known_ports else (_ANY, _ANY)
        tree["listen"] = {"tls": [str(tls)], "admin": str(admin)}
        tree["limits"] = limits or {}
        async with running_gateway(config.parse(tree, folder=folder, source="demo")) as gateway:
            yield Floor(cloud, gateway)


def with_more(
    usual: fixtures.Fixtures, users: Iterable[fixtures.UserFixture], lines: Iterable[fixtures.LineFixture]
) -> fixtures.Fixtures:
    """Fixtures with a firm of softphones, ``FIRM``, its users and their lines. Raises ValueError."""
    firm = fixtures.FirmFixture(id=FIRM, name="Softphones")
    return fixtures.Fixtures(
        firms=(*usual.firms, firm),
        groups=usual.groups,
        users=(*usual.users, *users),
        lines=(*usual.lines, *lines),
        buttons=usual.buttons,
        api_keys=usual.api_keys,
    )


def softphone_user(name: str, hashed: str) -> fixtures.UserFixture:
    """A user of ``FIRM`` who may use the relay. Many share a password, and so its hash."""
    return fixtures.UserFixture(
        id=name,
        firm=FIRM,
        name=f"Softphone {name}",
        email=f"{name}@demo.example",
        password_hash=SecretStr(hashed),
        voice_via_web_proxy=True,
    )


def pairs_of(count: int, password: str) -> list[Pair]:
    """Two users for each path, and a line between them."""
    return [
        Pair(f"demo-{number}a", f"demo-{number}b", f"sPK-20000001-{number:06}", password)
        for number in range(1, count + 1)
    ]


def with_pairs(usual: fixtures.Fixtures, pairs: Sequence[Pair], hashed: str) -> fixtures.Fixtures:
    """Fixtures in which these pairs exist."""
    users = [softphone_user(name, hashed) for pair in pairs for name in (pair.caller, pair.callee)]
    lines = [
        fixtures.LineFixture(number=pair.line, kind=LineKind.RINGDOWN, label="Demo", members=(pair.caller, pair.callee))
        for pair in pairs
    ]
    return with_more(usual, users, lines)
