"""An emulated cloud in the test's own loop: a folder and a database of its own, free ports, and clients for it."""

from __future__ import annotations

import contextlib
import dataclasses
import ssl
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp

from relay import catalog
from relay.addresses import Address
from relay.emulator import fixtures
from relay.emulator.cloud import Cloud
from relay.emulator.settings import EmulatorSettings
from tests.support import brief_stores

PASSWORD = "trader"
brief_stores.shorten()


def cloud_settings(folder: Path, **changes: Any) -> EmulatorSettings:
    """Settings for a test: no TURN hosts unless ``runs_turn`` is given, everything in memory or in ``folder``."""
    settings = EmulatorSettings(
        folder=folder,
        fixtures=fixtures.bundled(),
        catalog=catalog.load(),
        database=":memory:",
        tls=Address("127.0.0.1", 0),
        http=Address("127.0.0.1", 0),
        turn_port=0,
        runs_turn=False,
        udp_hop_port=None,
        bad_web_proxy=None,
    )
    return dataclasses.replace(settings, **changes)


def through_relay(*users: str) -> fixtures.Fixtures:
    """The default set, with Voice via Web Proxy on for these users, too."""
    usual = fixtures.bundled()
    changed = [
        user.model_copy(update={"voice_via_web_proxy": True}) if user.id in users else user for user in usual.users
    ]
    return usual.model_copy(update={"users": tuple(changed)})


class CloudClient:
    """Asks a cloud over HTTP, as any of the vendor's hosts."""

    def __init__(self, cloud: Cloud, session: aiohttp.ClientSession) -> None:
        self.cloud = cloud
        self._session = session
        self.trust = ssl.create_default_context(cafile=str(cloud.files.ca))

    async def ask(
        self,
        method: str,
        path: str,
        *,
        host: str = "localhost",
        token: str = "",
        secure: bool = False,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> tuple[int, Any, Mapping[str, str]]:
        """One request. Returns status, body (JSON's values, or text) and headers."""
        address = self.cloud.tls if secure else self.cloud.http
        sent = {"Host": host, **(headers or {})}
        if token:
            sent["Authorization"] = f"Bearer {token}"
        tls: dict[str, Any] = {"ssl": self.trust, "server_hostname": host} if secure else {}
        url = f"{'https' if secure else 'http'}://{address}{path}"
        async with self._session.request(method, url, headers=sent, allow_redirects=False, **tls, **more) as answer:
            body = await answer.json() if answer.content_type == "application/json" else await answer.text()
            return answer.status, body, answer.headers.copy()

    async def login(self, user: str = "anna", password: str = PASSWORD, **more: Any) -> Any:
        """Log in. Returns the answer."""
        wanted = {"user": user, "password": password}
        status, body, _ = await self.ask("POST", "/rest/v1/login", json=wanted, **more)
        assert status == 200, body
        return body


@contextlib.asynccontextmanager
async def running_cloud(folder: Path, **changes: Any) -> AsyncIterator[CloudClient]:
    """A cloud that runs while the block does."""
    # A connection for each request: each says anew by which name it comes.
    connector = aiohttp.TCPConnector(force_close=True)
    async with Cloud(cloud_settings(folder, **changes)) as cloud, aiohttp.ClientSession(connector=connector) as session:
        yield CloudClient(cloud, session)
