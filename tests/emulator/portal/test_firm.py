"""API keys, the firm with its groups, and the audit."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlencode

import pytest
from sqlalchemy import select

from relay.emulator.store.store import audit
from relay.emulator.store.tables import ApiKey, Firm, Group
from tests.support.benches.portal import ADMIN, MadeUpPortal, made_up_portal

KEY: dict[str, str | list[str]] = {
    "name": "Reports",
    "networks": "10.1.0.0/16\r\n2001:db8::7",
    "apis": ["call_data", "audit"],
}


async def keys(portal: MadeUpPortal) -> dict[str, ApiKey]:
    async with portal.store.reading() as session:
        return {key.api_key: key for key in await session.scalars(select(ApiKey))}


async def audited(portal: MadeUpPortal) -> list[tuple[str, str, Any]]:
    return [
        (each.action, each.object, each.details) for each in await portal.audited() if each.action != "portal login"
    ]


async def test_a_secret_is_shown_once() -> None:
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        page = await admin.post("/portal/keys/new", KEY)
        assert page.status == 200
        found = re.search(r'id="secret">([^<]+)<', page.text)
        assert found is not None
        stored = {key.secret: key for key in (await keys(portal)).values()}[found[1]]
        assert (stored.firm_id, stored.enabled, stored.created_at) == ("atlas", True, portal.now)
        assert stored.networks == ["10.1.0.0/16", "2001:db8::7/128"]
        assert sorted(stored.apis) == ["audit", "call_data"]
        for path in ("/portal/keys", f"/portal/keys/{stored.api_key}", "/portal/audit"):
            page = await admin.get(path)
            assert stored.api_key in page.text
            assert found[1] not in page.text


async def test_a_key_is_changed_and_disabled() -> None:
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        page = await admin.post("/portal/keys/atlas-key-1", {**KEY, "name": "Less"})
        assert page.location == "/portal/keys/atlas-key-1?done=saved"
        key = (await keys(portal))["atlas-key-1"]
        assert (key.name, key.enabled, key.secret) == ("Less", False, "atlas-secret-for-a-laptop")
        [(action, name, details)] = await audited(portal)
        assert (action, name) == ("API key changed", "atlas-key-1")
        assert details["changes"]["enabled"] == ["on", ""]
        assert "disabled" in (await admin.get("/portal/keys")).words
        await admin.post("/portal/keys/atlas-key-1", {**KEY, "name": "Less", "enabled": "on"})
        assert (await keys(portal))["atlas-key-1"].enabled


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"name": ""}, "Fill this in: 1 to 128 characters."),
        ({"networks": ""}, "Fill this in: 1 to 50 networks, one a line."),
        ({"networks": "everywhere"}, "does not appear to be an IPv4 or IPv6 network. Expected networks such as"),
        ({"networks": "10.1.2.3/8"}, "10.1.2.3/8 has host bits set."),
        ({"networks": "\n".join(f"10.0.0.{n}" for n in range(51))}, "Expected 1 to 50 networks, one a line."),
        ({"apis": []}, "Fill this in: at least one API."),
        ({"apis": ["root"]}, "Expected at least one API."),
    ],
)
async def test_a_key_that_cannot_be(fields: dict[str, Any], told: str) -> None:
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        for path in ("/portal/keys/new", "/portal/keys/atlas-key-1"):
            page = await admin.post(path, {**KEY, **fields})
            assert (page.status, told in page.words) == (422, True), page.words
        assert len(await keys(portal)) == 2
        assert await audited(portal) == []


async def test_two_administrators_at_once() -> None:
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as one, portal.visitor(*ADMIN) as other:
        key = (await one.get("/portal/keys/atlas-key-1")).field("version")
        firm = (await one.get("/portal/firm")).field("version")
        await other.post("/portal/keys/atlas-key-1", {**KEY, "name": "Theirs"})
        await other.post("/portal/firm", {"name": "Theirs", "region": "use1"})
        page = await one.post("/portal/keys/atlas-key-1", {**KEY, "version": key})
        assert (page.status, "Stored now: Theirs" in page.words) == (409, True)
        page = await one.post("/portal/firm", {"name": "Ours", "region": "use1", "version": firm})
        assert (page.status, "Stored now: Theirs" in page.words) == (409, True)
        page = await one.post("/portal/firm", {"name": "Ours", "region": "use1", "version": page.field("version")})
        assert page.status == 303
        was = {"group_name": "Mine", "was": "Rates"}
        await other.post("/portal/firm/groups/atlas-rates", {**was, "group_name": "Theirs"}, on="/portal/firm")
        page = await one.post("/portal/firm/groups/atlas-rates", was, on="/portal/firm")
        assert (page.status, "renamed this group to “Theirs” meanwhile" in page.words) == (409, True)


async def test_a_firm_has_only_so_many_keys_and_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.emulator.portal.firms.MAX_KEYS", 1)
    monkeypatch.setattr("relay.emulator.portal.firms.MAX_GROUPS", 2)
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        page = await admin.post("/portal/keys/new", KEY)
        assert (page.status, "The firm has 1 keys" in page.words) == (422, True)
        page = await admin.post("/portal/firm/groups", {"group_name": "One more"}, on="/portal/firm")
        assert (page.status, "The firm has 2 groups" in page.words) == (422, True)


async def test_the_firm_and_its_groups() -> None:
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        page = await admin.post("/portal/firm", {"name": "", "region": "mars"})
        assert page.status == 422
        assert "Fill this in: 1 to 128 characters." in page.words
        page = await admin.post("/portal/firm", {"name": "Atlas & Sons", "region": "euc1"})
        assert page.location == "/portal/firm?done=saved"
        async with portal.store.reading() as session:
            assert (await session.get_one(Firm, "atlas")).name == "Atlas & Sons"
        page = await admin.post("/portal/firm/groups", {"group_name": "FX"}, on="/portal/firm")
        assert page.location == "/portal/firm?done=added"
        async with portal.store.reading() as session:
            group = (await session.scalars(select(Group).where(Group.name == "FX"))).one()
        assert group.firm_id == "atlas"
        path = f"/portal/firm/groups/{group.group_id}"
        page = await admin.post(path, {"group_name": "", "was": "FX"}, on="/portal/firm")
        assert (page.status, "Fill this in" in page.words) == (422, True)
        await admin.post(path, {"group_name": "Spot", "was": "FX"}, on="/portal/firm")
        page = await admin.post("/portal/firm/groups/atlas-rates/delete", {}, on="/portal/firm")
        assert (page.status, "The group has 3 users." in page.words) == (422, True)
        page = await admin.post(f"{path}/delete", {}, on="/portal/firm")
        assert page.location == "/portal/firm?done=deleted"
        assert [each[0] for each in await audited(portal)] == [
            "firm changed",
            "group added",
            "group changed",
            "group deleted",
        ]


async def test_an_action_is_shown_in_words_and_found_by_them_and_by_its_name() -> None:
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        async with portal.store.writing() as session:
            audit(session, "atlas", "key:atlas-key-1", "call_data.download", "x")
        for wanted in ("", "call data: download", "Call data", "call_data.down"):
            page = await admin.get(f"/portal/audit?{urlencode({'q': wanted})}")
            assert "key:atlas-key-1 call data: download x" in page.words
        # The underscore is a letter, not a wildcard.
        assert "Nothing matches" in (await admin.get("/portal/audit?q=callxdata")).words


async def test_the_audit_is_the_firms_own() -> None:
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        async with portal.store.writing() as session:
            audit(session, "borealis", "borealis-admin", "secret thing", "fay", note="theirs")
            audit(session, "atlas", "anna", "tried", "x", much="y" * 5000, none=None, number=7, nested={"a": [1]})
        page = await admin.get("/portal/audit")
        assert "secret thing" not in page.text
        assert "number: 7" in page.words
        assert "y" * 200 + "…" in page.text
        assert "y" * 201 not in page.text
        assert "secret thing" not in (await admin.get("/portal/audit?q=secret")).words.replace("q=secret", "")
        assert "Nothing matches" in (await admin.get("/portal/audit?q=secret")).words
