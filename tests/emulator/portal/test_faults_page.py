"""Faults, turned on and off by hand."""

from __future__ import annotations

import re

import pytest

from relay.emulator.faults.kinds import KINDS, Hop, Kind
from tests.support.benches.portal import ADMIN, made_up_portal

PATH = "/portal/faults"


async def test_on_and_off() -> None:
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        assert "Nothing goes wrong on purpose." in (await admin.get(PATH)).words
        page = await admin.post(
            PATH, {"place": "desk_udp/loss", "percent": "12.5", "target": "use1", "seconds": "3600"}
        )
        assert page.location == f"{PATH}?done=fault-on"
        [fault] = portal.faults.active
        assert (fault.hop, fault.kind, fault.setting.percent, fault.target) == (Hop.DESK_UDP, Kind.LOSS, 12.5, "use1")
        page = await admin.get(PATH)
        assert "loss desk_udp seconds: 3600.0 target: use1 percent: 12.5" in page.words
        # What is left empty has its default.
        await admin.post(PATH, {"place": "cloud/expired_credentials", "seconds": ""})
        await admin.post(PATH, {"place": "web_proxy/proxy_authentication", "username": "a", "password": "s3cret<x>"})
        page = await admin.get(PATH)
        assert "until it is taken off" in page.words
        assert "s3cret" not in page.text
        await admin.post(f"{PATH}/off", {"place": "desk_udp/loss"}, on=PATH)
        assert [fault.kind for fault in portal.faults.active] == [Kind.EXPIRED_CREDENTIALS, Kind.PROXY_AUTHENTICATION]
        await admin.post(f"{PATH}/off", {"place": "all"}, on=PATH)
        # None is on: nothing to note.
        await admin.post(f"{PATH}/off", {"place": "all"}, on=PATH)
        assert portal.faults.active == []
        entries = [(each.action, each.object) for each in await portal.audited() if each.action != "portal login"]
        assert entries == [
            ("fault on", "desk_udp/loss"),
            ("fault on", "cloud/expired_credentials"),
            ("fault on", "web_proxy/proxy_authentication"),
            ("fault off", "desk_udp/loss"),
            ("fault off", "all"),
        ]
        assert "s3cret" not in str([each.details for each in await portal.audited()])


async def test_each_kind_can_be_turned_on_as_the_page_offers_it() -> None:
    targets = {Kind.REGION_DOWN: "use1", Kind.NAME_NOT_FOUND: "c9rest.xhoot.com"}
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        places = [(hop, kind) for kind, spec in KINDS.items() for hop in spec.hops]
        for hop, kind in places:
            page = await admin.post(
                PATH, {"place": f"{hop}/{kind}", "target": targets.get(kind, ""), "seconds": "3600"}
            )
            assert (kind, page.status) == (kind, 303)
        assert [(fault.hop, fault.kind) for fault in portal.faults.active] == places


async def test_a_target_is_chosen_from_what_there_is() -> None:
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        page = await admin.get(PATH)
        for place, label, offered in (
            ("cloud/region_down", "Region", ["apse1", "apse2", "euc1", "use1"]),
            ("cloud/name_not_found", "Host", portal.faults.hosts),
            ("desk_udp/loss", "Region or host (empty: all)", portal.faults.regions + portal.faults.turn_hosts),
        ):
            field = re.search(
                rf'<label for="{place}/target">([^<]+)</label>\s*<input id="{place}/target"([^>]*)>', page.text
            )
            assert field is not None
            assert field[1] == label
            chosen = re.search(r'list="([^"]+)"', field[2])
            assert chosen is not None
            [options] = re.findall(rf'<datalist id="{chosen[1]}">(.*?)</datalist>', page.text)
            assert re.findall(r"<option>([^<]+)", options) == offered


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {"place": "desk_udp/loss", "percent": "101"},
            "“101” does not fit. Expected a number, more than 0 and at most 100.",
        ),
        ({"place": "desk_udp/loss", "percent": "nan"}, "“nan” does not fit."),
        ({"place": "desk_udp/loss", "seconds": "-1"}, "“-1” does not fit."),
        ({"place": "desk_udp/loss", "target": "mars"}, "The catalog does not have 'mars'."),
        ({"place": "cloud/region_down"}, "region_down needs a target. Expected a region of the catalog."),
        ({"place": "cloud/region_down", "target": "<img src=x>"}, "The catalog does not have '<img src=x>'."),
        ({"place": "web_proxy/delay", "target": "use1"}, "delay at web_proxy has no target."),
        ({"place": "desk_udp/loss", "delay_ms": "5"}, "loss at desk_udp has no delay_ms."),
        ({"place": "web_proxy/proxy_authentication", "username": "a b"}, "“a b” does not fit."),
    ],
)
async def test_a_fault_that_cannot_be(fields: dict[str, str], told: str) -> None:
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        page = await admin.post(PATH, fields)
        assert page.status == 422
        assert told in page.text.replace("&#39;", "'").replace("&lt;", "<").replace("&gt;", ">")
        assert "<img" not in page.text
        assert portal.faults.active == []


async def test_there_is_no_such_fault() -> None:
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        for place in ("", "x", "desk_udp", "desk_udp/x", "x/loss", "../x", "cloud/loss"):
            for path in (PATH, f"{PATH}/off"):
                page = await admin.post(path, {"place": place}, on=PATH)
                assert (place, page.status) == (place, 404)
        assert portal.faults.active == []
