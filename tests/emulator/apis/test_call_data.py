"""The Call Data API and the audit API."""

from __future__ import annotations

import io
import json
import time
import zipfile
from pathlib import Path
from typing import Any

from relay.emulator.store.store import audit
from tests.support.benches.apis import BOREALIS, Answer, Apis, add_call, open_apis

PATH = "/v2/calls/transcriptions"
ENTRIES = "/audit/v1/entries"
T0 = 1_790_000_000.0
RANGE = {"beginDate": "2026-09-21T00:00:00Z", "endDate": "2026-09-22T00:00:00+00:00"}
ANNA, BEN, FAY = ("anna", "atlas"), ("ben", "atlas"), ("fay", "borealis")


def files(answer: Answer) -> dict[str, Any]:
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.body)) as packed:
        assert packed.testzip() is None
        return {name: json.loads(packed.read(name)) for name in packed.namelist()}


async def test_one_file_for_each_call(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis:
        call = await add_call(apis.store, ANNA, FAY, ended_at=T0)
        missed = await add_call(apis.store, ANNA, BEN, ended_at=T0 + 1, answered=False)
        found = files(await apis.post(PATH, RANGE))
        assert set(found) == {f"{call}.json", f"{missed}.json"}
        whole = found[f"{call}.json"]
        assert whole["synthetic"] is True
        assert [each["userId"] for each in whole["participants"]] == ["anna", "fay"]
        assert [(each["beginOffsetMs"], each["endOffsetMs"]) for each in whole["segments"]] == [
            (2000, 6000),
            (6000, 10000),
        ]
        assert all(each["text"].startswith("[synthetic]") for each in whole["segments"])
        assert whole["endDate"] == "2026-09-21T14:13:20.000Z"
        assert found[f"{missed}.json"]["segments"] == []
        assert found[f"{missed}.json"]["answerDate"] is None


async def test_a_firm_gets_its_own_calls_in_the_range_and_region(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis:
        await add_call(apis.store, ANNA, BEN, ended_at=T0)
        both = await add_call(apis.store, ANNA, FAY, ended_at=T0, region="euc1")
        await add_call(apis.store, ANNA, FAY, ended_at=T0 + 86_400)
        assert set(files(await apis.post(PATH, RANGE, key=BOREALIS))) == {f"{both}.json"}
        assert set(files(await apis.post(PATH, {**RANGE, "region": "euc1"}))) == {f"{both}.json"}
        assert files(await apis.post(PATH, {**RANGE, "region": "apse1"})) == {}


async def all_pages(apis: Apis) -> list[list[str]]:
    found: list[list[str]] = []
    asked: dict[str, str] = {**RANGE}
    while True:
        answer = await apis.post(PATH, asked)
        found.append(list(files(answer)))
        if (token := answer.headers.get("Next-Page-Token")) is None:
            return found
        asked["nextPageToken"] = token


async def test_pages_have_every_call_once_even_if_many_end_at_once(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis:
        # Three times, with more digits than a microsecond has, and many calls at each.
        ends = [T0 + 0.1234567 * (number // 81) for number in range(243)]
        calls = [await add_call(apis.store, ANNA, BEN, ended_at=end) for end in ends]
        found = await all_pages(apis)
        assert [len(page) for page in found] == [100, 100, 43]
        assert sorted(name for page in found for name in page) == sorted(f"{call}.json" for call in calls)


async def test_wrong_ranges_and_fields_are_named(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis:
        empty = await apis.post(PATH, {"beginDate": RANGE["endDate"], "endDate": RANGE["beginDate"]})
        assert (empty.status, empty.json["error"]["where"]) == (400, "body.endDate")
        for change, where in (
            ({"beginDate": "yesterday"}, "body.beginDate"),
            ({"beginDate": "2026-09-21"}, "body.beginDate"),
            ({"beginDate": "2026-09-21T00:00:00"}, "body.beginDate"),
            ({"beginDate": 1}, "body.beginDate"),
            ({"region": "mars"}, "body.region"),
            ({"nextPageToken": "x"}, "body.nextPageToken"),
            ({"nextPageToken": "99999999999999_x"}, "body.nextPageToken"),
        ):
            answer = await apis.post(PATH, {**RANGE, **change})
            assert (answer.status, answer.json["error"]["where"]) == (422, where)


async def entries(apis: Apis, *, key: str = "atlas-key-1", **asked: object) -> list[dict[str, Any]]:
    answer = await apis.post(ENTRIES, asked, key=key)
    assert answer.status == 200
    return list(answer.json["entries"])


async def test_downloads_are_in_the_audit(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis:
        await add_call(apis.store, ANNA, BEN, ended_at=T0)
        before = time.time()
        await apis.post(PATH, RANGE)
        found = await entries(apis, action="call_data.download")
        assert [(each["actor"], each["details"]) for each in found] == [("key:atlas-key-1", {"calls": 1})]
        assert await entries(apis, key=BOREALIS) == []
        assert before - 1 < time.time()


async def test_the_audit_is_read_in_pages_and_cannot_be_changed(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis:
        async with apis.store.writing() as session:
            for number in range(5):
                audit(session, "atlas", "anna" if number % 2 else "ben", "test.done", f"thing {number}", number=number)
        whole = await entries(apis)
        assert [each["details"]["number"] for each in whole] == [0, 1, 2, 3, 4]
        first = (await apis.post(ENTRIES, {"pageSize": 3})).json
        rest = (await apis.post(ENTRIES, {"pageSize": 3, "pageToken": first["nextPageToken"]})).json
        assert first["entries"] + rest["entries"] == whole
        assert rest["nextPageToken"] is None
        assert [each["object"] for each in await entries(apis, actor="anna")] == ["thing 1", "thing 3"]
        assert await entries(apis, beginDate="2036-01-01T00:00:00Z") == []
        assert await entries(apis, endDate="2016-01-01T00:00:00Z") == []
        for method in ("PUT", "DELETE", "PATCH"):
            answer = await apis.send(method, ENTRIES, b"{}", apis.signed(method, ENTRIES, b"{}"))
            assert (answer.status, answer.headers["Allow"]) == (405, "POST")
        assert await entries(apis) == whole
