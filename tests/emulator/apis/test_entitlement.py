"""The service of users, asked by the relay's own policy and by anybody else, and what a refused user is told."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from pydantic import SecretStr
from sqlalchemy import update

from relay import catalog
from relay.config import EntitlementSettings
from relay.emulator import fixtures
from relay.emulator.apis.entitlement import CALLS_AT_ONCE, CLIENT, VoiceEntitlement
from relay.emulator.http.site import Names, Site
from relay.emulator.store import Store
from relay.emulator.store.seeding import seed
from relay.emulator.store.tables import LoginSession, User
from relay.gateway.entitlement.policies import PolicyUnavailable, Question, Rule
from relay.gateway.entitlement.policy_http import UserService

TOKEN = "a-token-of-relay.toml"
NOW = 1_700_000_000.0


class Service:
    """The service on a free port, its clock and its database."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.now = NOW
        self.url = ""
        self.voice = VoiceEntitlement(store, TOKEN, clock=lambda: self.now)
        self._logins = 0

    async def log_in(self, user: str, *, kind: str = CLIENT, lasts_s: float = 3600.0) -> None:
        """As the login does: the session keeps the setting as it is now."""
        self._logins += 1
        async with self.store.writing() as session:
            found = await session.get_one(User, user)
            session.add(
                LoginSession(
                    token_hash=f"{self._logins:064}",
                    user_id=user,
                    kind=kind,
                    created_at=self.now,
                    expires_at=self.now + lasts_s,
                    voice_via_web_proxy=found.voice_via_web_proxy,
                    client_version="",
                )
            )

    async def set(self, user: str, **values: Any) -> None:
        """As the portal does."""
        async with self.store.writing() as session:
            await session.execute(update(User).where(User.user_id == user).values(**values))

    async def allowed(self, user: str) -> bool:
        """What the relay's own policy hears; it remembers nothing here."""
        settings = EntitlementSettings(
            policy="http", url=self.url, token=SecretStr(TOKEN), cache_s=0.0, refused_cache_s=0.0
        )
        policy = UserService(settings)
        try:
            return (await policy.rule(Question(user, "use1", "192.0.2.1"))).allowed
        finally:
            await policy.close()


@contextlib.asynccontextmanager
async def service() -> AsyncIterator[Service]:
    store = await Store.open(":memory:")
    runner: web.AppRunner | None = None
    try:
        await seed(store, fixtures.bundled())
        made = Service(store)
        site = Site(Names(catalog.load()))
        site.add(made.voice.for_relay())
        runner = web.AppRunner(site.app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/entitlement/v1/voice"
        yield made
    finally:
        if runner is not None:
            await runner.cleanup()
        await store.close()


async def test_the_switch_counts_from_the_next_login_both_ways() -> None:
    async with service() as asked:
        await asked.log_in("dora")  # on in the fixtures
        await asked.log_in("chen")  # off
        assert (await asked.allowed("dora"), await asked.allowed("chen")) == (True, False)
        await asked.set("dora", voice_via_web_proxy=False)
        await asked.set("chen", voice_via_web_proxy=True)
        assert (await asked.allowed("dora"), await asked.allowed("chen")) == (True, False)
        asked.now += 60
        await asked.log_in("dora")
        await asked.log_in("chen")
        assert (await asked.allowed("dora"), await asked.allowed("chen")) == (False, True)


async def test_the_relay_hears_how_many_calls() -> None:
    async with service() as asked:
        await asked.log_in("dora")
        policy = UserService(EntitlementSettings(policy="http", url=asked.url, token=SecretStr(TOKEN)))
        try:
            assert await policy.rule(Question("dora", "use1", "")) == Rule(True, CALLS_AT_ONCE)
        finally:
            await policy.close()


@pytest.mark.parametrize(
    "user", ["emil", "nobody", "Dora", "", "a\x00b", "%", "' OR 1=1 --", "dora@atlas.example", "ü" * 254]
)
async def test_who_is_not_logged_in_and_who_does_not_exist(user: str) -> None:
    async with service() as asked:
        await asked.log_in("dora")
        assert not await asked.allowed(user)


async def test_only_a_login_of_a_client_that_still_lasts_counts() -> None:
    async with service() as asked:
        await asked.log_in("dora", kind="portal")
        assert not await asked.allowed("dora")
        await asked.log_in("dora", lasts_s=100)
        assert await asked.allowed("dora")
        asked.now += 100
        assert not await asked.allowed("dora")


async def test_a_disabled_user_is_refused_at_once() -> None:
    async with service() as asked:
        await asked.log_in("dora")
        await asked.set("dora", enabled=False)
        assert not await asked.allowed("dora")
        assert "disabled" in (await asked.voice.explain("dora")).reason


@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer other", f"Basic {TOKEN}", f"bearer {TOKEN} ", TOKEN])
async def test_strangers_learn_nothing(authorization: str) -> None:
    headers = {"Authorization": authorization} if authorization else {}
    async with service() as asked, aiohttp.ClientSession() as client:
        async with client.get(asked.url, params={"user": "dora"}, headers=headers) as answer:
            assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, 'Bearer realm="c9"')
            told = (await answer.json())["error"]
        assert told["where"] == "Authorization"
        assert TOKEN not in str(told)
        policy = UserService(EntitlementSettings(policy="http", url=asked.url))
        try:
            with pytest.raises(PolicyUnavailable, match="expected status 200, but it is 401"):
                await policy.rule(Question("dora", "use1", ""))
        finally:
            await policy.close()


async def test_a_question_without_a_user() -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with service() as asked, aiohttp.ClientSession() as client, client.get(asked.url, headers=headers) as answer:
        assert answer.status == 422
        assert (await answer.json())["error"]["where"] == "query.user"


async def test_a_refused_user_is_told_which_setting_is_missing_and_who_can_change_it() -> None:
    async with service() as asked:
        await asked.log_in("chen")
        told = await asked.voice.explain("chen")
        assert (told.allowed, told.now, told.at_login) == (False, False, False)
        assert told.setting == "Voice via Web Proxy"
        assert "Voice via Web Proxy is off. An administrator of the firm can switch it on" in told.reason
        # Of their own firm only.
        assert [each.email for each in told.administrators] == ["admin@atlas.example"]
        await asked.set("chen", voice_via_web_proxy=True)
        told = await asked.voice.explain("chen")
        assert (told.allowed, told.now, told.at_login) == (False, True, False)
        assert "log out, and log in again" in told.reason
        asked.now += 1
        await asked.log_in("chen")
        await asked.set("chen", voice_via_web_proxy=False)
        told = await asked.voice.explain("chen")
        assert (told.allowed, told.now, told.at_login) == (True, False, True)
        assert "from the next login on, calls are refused" in told.reason
        assert "log in with a client" in (await asked.voice.explain("ben")).reason
        assert (await asked.voice.explain("nobody")).administrators == []
