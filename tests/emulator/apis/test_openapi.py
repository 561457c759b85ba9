"""The description of the APIs, and schemathesis, which reads it and asks everything."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.support.benches.apis import ATLAS, SECRETS, open_apis
from tests.support.peers.schemathesis_run import ask_everything

MARKS = {"documented", "observed", "invented"}


async def test_every_operation_and_every_schema_has_a_mark(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis:
        description = (await apis.send("GET", "/openapi.json")).json
    operations = [each for path in description["paths"].values() for each in path.values()]
    assert {each["x-mark"] for each in operations} <= MARKS
    schemas = description["components"]["schemas"]
    assert {name for name, schema in schemas.items() if schema.get("x-mark") not in MARKS} == set()
    assert schemas["UsersRequest"]["x-mark"] == "observed"
    assert schemas["UsersAnswer"]["x-mark"] == "invented"
    assert json.dumps(description)


async def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis:
        url = f"http://{apis.host}/openapi.json"
        token = await apis.token("anna")
        report = await ask_everything(url, tmp_path, key=ATLAS, secret=SECRETS[ATLAS], token=token)
        tested = re.search(r"Tested: (\d+)", report)
        cases = re.search(r"(\d+) generated, ", report)
        assert tested is not None
        assert cases is not None
        # It does not ask for the description again.
        assert int(tested[1]) == len(apis.site.endpoints) - 1
        assert int(cases[1]) > 500
        for phase in ("Coverage", "Fuzzing", "Stateful"):
            assert phase in report
