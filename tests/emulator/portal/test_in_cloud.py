"""The portal within the whole cloud: what is changed there is what the relay, softphones and uploads see."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
from pydantic import SecretStr

from relay.config import EntitlementSettings
from relay.gateway.entitlement.policies import Question
from relay.gateway.entitlement.policy_http import UserService
from tests.support.benches.cloud import CloudClient, running_cloud
from tests.support.benches.emulated_signaling import phone
from tests.support.benches.portal import ADMIN, Visitor
from tests.support.media_files import MediaFile, ogg_opus

PAIR = "sPK-10000001-100001"
RECORDING = "1b4e28ba-2fa1-4d3b-9f2d-5d8f1f5d6c7a"


@contextlib.asynccontextmanager
async def visitor(cloud: CloudClient, *login: str) -> AsyncIterator[Visitor]:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as http:
        opened = Visitor(http, f"http://{cloud.cloud.http}")
        assert (await opened.log_in(*login)).status == 303
        yield opened


async def is_allowed(cloud: CloudClient, user: str) -> bool:
    """What a relay hears that has the relay.toml of this cloud; it remembers nothing here."""
    settings = EntitlementSettings(
        policy="http",
        url=f"http://{cloud.cloud.http}/entitlement/v1/voice",
        token=SecretStr(cloud.cloud.entitlement_token),
        cache_s=0.0,
        refused_cache_s=0.0,
    )
    policy = UserService(settings)
    try:
        return (await policy.rule(Question(user, "use1", "127.0.0.1"))).allowed
    finally:
        await policy.close()


async def test_the_switch_counts_for_the_relay_from_the_next_login(tmp_path: Path) -> None:
    async with running_cloud(tmp_path) as cloud, visitor(cloud, *ADMIN) as admin:
        for to, before in (("on", False), ("off", True)):
            token = (await cloud.login("chen"))["token"]
            assert await is_allowed(cloud, "chen") is before
            await admin.post("/portal/users/chen/voice", {"voice": to}, on="/portal/users/chen")
            assert await is_allowed(cloud, "chen") is before
            # The softphone can say why, and who can change it.
            status, told, _ = await cloud.ask("GET", "/rest/v1/voice", token=token)
            assert status == 200
            assert (told["allowed"], told["now"], told["at_login"]) == (before, to == "on", before)
            assert told["administrators"] == [{"name": "Atlas Administrator", "email": "admin@atlas.example"}]
        answer = await cloud.login("chen")
        assert not answer["settings"]["voiceViaWebProxy"]
        assert not await is_allowed(cloud, "chen")


async def test_softphones_see_changed_lines_and_a_disabled_user_is_gone(tmp_path: Path) -> None:
    async with running_cloud(tmp_path) as cloud, visitor(cloud, *ADMIN) as admin:
        url = f"http://{cloud.cloud.http}"
        anna, ben = [(await cloud.login(user))["token"] for user in ("anna", "ben")]
        async with phone(url, anna) as first, phone(url, ben) as second:
            await first.heard("welcome")
            await first.do("line.ring", line=PAIR)
            await second.heard("line.state", line=PAIR, state="ringing")
            page = await admin.get("/portal/calls")
            assert "Anna - Ben ringdown ringing" in page.words
            assert "Anna Keller" in page.words
            fields = {"label": "Ben - Chen", "region": "use1", "talkers": "ben chen", "listeners": ""}
            assert (await admin.post(f"/portal/lines/{PAIR}", fields)).status == 303
            welcome = await first.heard("welcome")
            assert PAIR not in {line["line"] for line in welcome["lines"]}
            assert "No calls now." in (await admin.get("/portal/calls")).words
            await admin.post("/portal/users/anna/enabled", {"enabled": "off"}, on="/portal/users/anna")
            assert await first.heard("session.ended") == {"reason": "disabled"}
            await first.heard("disconnect")
        status, _, _ = await cloud.ask("GET", "/rest/v1/settings", token=anna)
        assert status == 401


async def test_a_recording_that_was_uploaded_is_heard(tmp_path: Path) -> None:
    media = MediaFile(ogg_opus(5000))
    async with running_cloud(tmp_path) as cloud, visitor(cloud, *ADMIN) as admin:
        token = (await cloud.login("anna"))["token"]
        headers = {
            "Content-Type": "application/offset+octet-stream",
            "Upload-Offset": "0",
            "Upload-Length": str(len(media.content)),
        }
        path = f"/recordings/v1/{RECORDING}"
        status, _, _ = await cloud.ask("PATCH", f"{path}/media", token=token, headers=headers, data=media.content)
        assert status < 300
        page = await admin.get("/portal/recordings")
        assert "its metadata has not arrived yet" in page.words
        headers = {"Content-Type": "application/json"}
        body = json.dumps(media.metadata())
        status, told, _ = await cloud.ask("PUT", f"{path}/metadata", token=token, headers=headers, data=body)
        assert status < 300, told
        page = await admin.get("/portal/recordings")
        assert f"/portal/recordings/{RECORDING}/media" in page.text
        answer = await admin.get(f"/portal/recordings/{RECORDING}/media", headers={"Range": "bytes=10-19"})
        assert (answer.status, answer.body) == (206, media.content[10:20])


async def test_the_portal_is_on_its_own_host_only(tmp_path: Path) -> None:
    async with running_cloud(tmp_path) as cloud:
        for host, status in (("c9portal.xhoot.com", 200), ("c9rest.xhoot.com", 404), ("localhost", 200)):
            for secure in (False, True) if host != "localhost" else (False,):
                answer = await cloud.ask("GET", "/portal/login", host=host, secure=secure)
                assert (host, secure, answer[0]) == (host, secure, status)
        answer = await cloud.ask("GET", "/portal/login", host="c9portal.xhoot.com.localhost:8080")
        assert answer[0] == 200
        assert "Secure" not in answer[2]["Set-Cookie"]
        answer = await cloud.ask("GET", "/portal/login", host="c9portal.xhoot.com", secure=True)
        assert answer[2]["Set-Cookie"].startswith("__Host-")
