"""A whole floor in the test's own loop: an emulated cloud, and a relay from the files that the cloud writes."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relay import config
from relay.emulator.folder import write_files
from relay.emulator.settings import RelayPlan
from relay.floor.relays import running_gateway
from relay.gateway.app import Gateway
from tests.support.benches.cloud import CloudClient, running_cloud
from tests.support.network.ports import reserved_address
from tests.support.waiting import eventually


@dataclass(frozen=True)
class Floor:
    """A running cloud, and the relay in front of it."""

    client: CloudClient
    gateway: Gateway
    folder: Path

    @property
    def cloud_origin(self) -> str:
        """The cloud itself, for a browser on this machine."""
        return f"http://{self.client.cloud.http}"

    @property
    def relay_origin(self) -> str:
        """The cloud as the relay passes it on, by HTTPS."""
        return f"https://{self.gateway.tls[0]}"

    @property
    def admin_origin(self) -> str:
        """The relay's dashboard."""
        return f"http://{self.gateway.admin}"

    @property
    def trust_option(self) -> str:
        """Makes Chromium trust the cloud's authority, as ``browser.sh`` does."""
        found = re.search(r"--ignore-certificate-errors-spki-list=\S+", (self.folder / "browser.sh").read_text())
        assert found is not None
        return found[0]


@contextlib.asynccontextmanager
async def running_floor(folder: Path, **changes: Any) -> AsyncIterator[Floor]:
    """A floor that runs while the block does. All its TURN hosts are up."""
    with reserved_address() as tls, reserved_address() as web_proxy, reserved_address() as admin:
        plan = RelayPlan(tls, web_proxy, admin)
        async with running_cloud(folder, runs_turn=True, relay=plan, **changes) as client:
            await asyncio.to_thread(write_files, client.cloud)
            async with running_gateway(config.load(folder / "relay.toml")) as gateway:
                await eventually(lambda: all(one.health == "up" for one in gateway.upstreams), "all TURN hosts up")
                yield Floor(client, gateway, folder)
