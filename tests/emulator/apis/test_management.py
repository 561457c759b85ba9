"""The Management API: filters, pages, and firms that do not see each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from relay.emulator.store import tables
from tests.support.benches.apis import BOREALIS, Apis, open_apis

BASE = "/external/apis"


async def ids(apis: Apis, **asked: object) -> list[str]:
    answer = await apis.post(f"{BASE}/users", asked)
    assert answer.status == 200
    return [user["userId"] for user in answer.json["users"]]


async def pages(apis: Apis, path: str, items: str, size: int) -> list[Any]:
    found: list[Any] = []
    token = None
    while True:
        answer = (await apis.post(path, {"pageSize": size, "pageToken": token})).json
        assert len(answer[items]) <= size
        found += answer[items]
        if (token := answer["nextPageToken"]) is None:
            return found


async def test_users_of_the_firm(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis:
        assert await ids(apis) == ["anna", "atlas-admin", "ben", "chen", "dora", "emil"]
        assert await ids(apis, userIds=["ben", "fay", "nobody"]) == ["ben"]
        assert await ids(apis, emails=["anna@atlas.example"], userNames=["Dora Lind"]) == ["anna", "dora"]
        assert await ids(apis, userIds=[]) == []
        anna = (await apis.post(f"{BASE}/users", {"userIds": ["anna"]})).json["users"][0]
        # Dora's voice goes through the relay.
        assert (await apis.post(f"{BASE}/users", {"userIds": ["dora"]})).json["users"][0]["voiceViaWebProxy"] is True
        assert anna == {
            "userId": "anna",
            "userName": "Anna Keller",
            "email": "anna@atlas.example",
            "firmId": "atlas",
            "groupId": "atlas-rates",
            "extension": "1001",
            "role": "user",
            "region": "use1",
            "voiceViaWebProxy": False,
            "enabled": True,
        }


async def test_pages_have_everything_once(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis:
        for size in (1, 2, 5, 6, 7):
            users = await pages(apis, f"{BASE}/users", "users", size)
            assert [user["userId"] for user in users] == await ids(apis)
            buttons = await pages(apis, f"{BASE}/users/anna/buttons", "buttons", size)
            assert [button["position"] for button in buttons] == [1, 2, 3, 4]
            connections = await pages(apis, f"{BASE}/connections", "connections", size)
            assert len({each["connectionNumber"] for each in connections}) == len(connections) == 7


async def test_buttons_of_a_user_of_the_firm_only(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis:
        answer = (await apis.post(f"{BASE}/users/anna/buttons", {})).json
        assert answer["buttons"][3] == {
            "position": 4,
            "label": "Fay by dial tone",
            "connectionNumber": "sPK-10000005-100001",
            "dial": "2001",
        }
        foreign, unknown = [await apis.post(f"{BASE}/users/{user}/buttons", {}) for user in ("fay", "nobody")]
        assert (foreign.status, unknown.status) == (404, 404)
        assert foreign.json["error"]["message"].replace("fay", "nobody") == unknown.json["error"]["message"]


async def test_connections_by_group_and_number(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis:

        async def numbers(**asked: object) -> list[str]:
            answer = await apis.post(f"{BASE}/connections", asked)
            return [each["connectionNumber"] for each in answer.json["connections"]]

        energy = await numbers(groupId="atlas-energy")
        assert "sPK-10000002-100001" in energy
        assert "sPK-10000001-100001" not in energy
        assert await numbers(groupId="borealis-sales") == []
        assert await numbers(connectionNumbers=["sPK-10000001-100002", "sPK-10000005-100002"]) == [
            "sPK-10000001-100002"
        ]
        shared = (await apis.post(f"{BASE}/connections", {"connectionNumbers": ["sPK-10000001-100002"]})).json
        assert {"userId": "fay", "firmId": "borealis", "role": "talker"} in shared["connections"][0]["members"]


async def test_wrong_fields_are_named(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis:
        for body, where in (
            ({"pageSize": 0}, "body.pageSize"),
            ({"pageSize": "10"}, "body.pageSize"),
            ({"userIds": "anna"}, "body.userIds"),
            ({"userIds": ["a b"]}, "body.userIds.0"),
            ({"emails": ["\0"]}, "body.emails.0"),
            ({"user_ids": []}, "body.user_ids"),
            ({"pageToken": ""}, "body.pageToken"),
            ({"pageToken": "anna"}, "body.pageToken"),
            ([], "body"),
        ):
            answer = await apis.post(f"{BASE}/users", body)
            assert (answer.status, answer.json["error"]["where"]) == (422, where)


async def test_a_token_that_no_answer_had_is_refused_everywhere(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis:
        for path in (f"{BASE}/users", f"{BASE}/connections", f"{BASE}/users/anna/buttons", "/audit/v1/entries"):
            answer = await apis.post(path, {"pageToken": "junk"})
            error = answer.json["error"]
            assert (answer.status, error["where"]) == (422, "body.pageToken")
            assert error["expected"] == "nextPageToken of the answer before"


async def test_a_key_of_another_firm_sees_that_firm(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis:
        async with apis.store.writing() as session:
            (await session.get_one(tables.ApiKey, BOREALIS)).apis = ["management"]
        users = (await apis.post(f"{BASE}/users", {}, key=BOREALIS)).json["users"]
        assert {user["firmId"] for user in users} == {"borealis"}
