"""The description of everything that the emulator answers, and schemathesis, which reads it and asks everything."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from relay.emulator.http import site
from relay.emulator.http.endpoints import Endpoint
from relay.emulator.http.openapi import describe
from tests.support.benches.cloud import running_cloud
from tests.support.peers.schemathesis_run import ask_everything

MARKS = {"documented", "observed", "invented"}
KEY, SECRET = "atlas-key-1", "atlas-secret-for-a-laptop"
# It would end the login that all other requests have.
LOGOUT = "/rest/v1/logout"


async def test_every_operation_and_every_schema_has_a_mark(tmp_path: Path) -> None:
    async with running_cloud(tmp_path) as client:
        _, description, _ = await client.ask("GET", "/openapi.json")
    operations = [each for path in description["paths"].values() for each in path.values()]
    assert {each["x-mark"] for each in operations} <= MARKS
    schemas = description["components"]["schemas"]
    assert {name for name, schema in schemas.items() if schema.get("x-mark") not in MARKS} == set()
    assert schemas["UsersRequest"]["x-mark"] == "observed"
    assert schemas["UsersAnswer"]["x-mark"] == "invented"


async def test_the_description_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []

    def describing(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
        made.append(endpoints)
        return describe(endpoints)

    monkeypatch.setattr(site, "describe", describing)
    async with running_cloud(tmp_path) as client:
        answers = [await client.ask("GET", "/openapi.json") for _ in range(3)]
    assert len(made) == 1
    assert answers[0][1] == answers[2][1]


async def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    async with running_cloud(tmp_path / "cloud") as client:
        cloud = client.cloud
        token = (await client.login())["token"]
        secrets = {"KEY": KEY, "SECRET": SECRET, "TOKEN": token, "ENTITLEMENT": cloud.entitlement_token}
        report = await ask_everything(f"http://{cloud.http}/openapi.json", tmp_path, secrets, without=LOGOUT)
    tested, cases = re.search(r"Tested: (\d+)", report), re.search(r"(\d+) generated, ", report)
    assert tested is not None
    assert cases is not None
    # It does not ask for the description again.
    left_out = {LOGOUT, "/openapi.json"}
    assert int(tested[1]) == sum(endpoint.path not in left_out for endpoint in cloud.site.endpoints)
    assert int(cases[1]) > 1000
    assert "Authentication failed" not in report
