"""The API of the board, on a whole cloud."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from relay.emulator.faults.kinds import Kind
from relay.emulator.faults.service import PATH
from tests.support.benches.cloud import running_cloud


async def test_faults_are_listed_put_and_taken_off(tmp_path: Path) -> None:
    async with running_cloud(tmp_path) as client:
        status, body, _ = await client.ask("GET", PATH)
        assert status == 200
        assert [kind["kind"] for kind in body["kinds"]] == list(Kind)
        assert body["active"] == []
        blocked = body["kinds"][0]
        assert (blocked["mark"], blocked["hops"][0]["takes_target"]) == ("documented", True)

        status, body, _ = await client.ask("PUT", f"{PATH}/desk_udp/loss", json={"target": "use1", "percent": 20})
        assert (status, body["setting"]["percent"], body["remaining_s"]) == (200, 20, None)
        status, body, _ = await client.ask("PUT", f"{PATH}/web_proxy/stall", json={"seconds": 3600})
        assert status == 200
        assert 3500 < body["remaining_s"] <= 3600
        status, body, _ = await client.ask(
            "PUT", f"{PATH}/web_proxy/proxy_authentication", json={"username": "x", "password": "hidden"}
        )
        assert (status, body["setting"]["username"], body["setting"]["password"]) == (200, "x", None)

        _, body, _ = await client.ask("GET", PATH)
        assert [(fault["hop"], fault["kind"]) for fault in body["active"]] == [
            ("desk_udp", "loss"),
            ("web_proxy", "stall"),
            ("web_proxy", "proxy_authentication"),
        ]
        status, body, _ = await client.ask("DELETE", f"{PATH}/desk_udp/loss")
        assert (status, body) == (200, {"removed": 1})
        status, body, _ = await client.ask("DELETE", PATH)
        assert (status, body) == (200, {"removed": 2})


@pytest.mark.parametrize(
    ("path", "body", "where", "told"),
    [
        ("desk_udp/loss", {"percent": 101}, "body.percent", 422),
        ("desk_udp/loss", {"percent": 0}, "body.percent", 422),
        ("desk_udp/loss", {"percent": "many"}, "body.percent", 422),
        ("desk_udp/loss", {"target": "nowhere"}, "body.target", 422),
        ("desk_udp/loss", {"idle_s": 5}, "body.idle_s", 422),
        ("desk_udp/loss", {"nonsense": 5}, "body.nonsense", 422),
        ("desk_udp/loss", {"seconds": 90_000}, "body.seconds", 422),
        ("desk_udp/delay", {"delay_ms": 100_000}, "body.delay_ms", 422),
        ("web_proxy/loss", {}, "path.hop", 404),
        ("moon/loss", {}, "path.hop", 422),
        ("desk_udp/gremlins", {}, "path.kind", 422),
        ("web_proxy/proxy_authentication", {"username": "a:b"}, "body.username", 422),
        ("cloud/region_down", {}, "body.target", 422),
    ],
)
async def test_mistakes_are_told_and_change_nothing(
    tmp_path: Path, path: str, body: dict[str, Any], where: str, told: int
) -> None:
    async with running_cloud(tmp_path) as client:
        status, answer, _ = await client.ask("PUT", f"{PATH}/{path}", json=body)
        assert (status, answer["error"]["where"]) == (told, where)
        _, answer, _ = await client.ask("GET", PATH)
        assert answer["active"] == []


async def test_the_vendors_hosts_do_not_have_it(tmp_path: Path) -> None:
    async with running_cloud(tmp_path) as client:
        status, _, _ = await client.ask("GET", PATH, host="c9rest.xhoot.com")
        assert status == 404
