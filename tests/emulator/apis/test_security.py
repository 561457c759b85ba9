"""Signed requests over HTTP: who is let in, and that 401 and 403 are never confused."""

from __future__ import annotations

import base64
import time
from pathlib import Path

import pytest

from relay.emulator.apis import security
from relay.emulator.apis.signing import SignedRequest, http_date, new_nonce, sign
from relay.emulator.store import tables
from tests.support.benches.apis import ATLAS, BOREALIS, SECRETS, Apis, open_apis

USERS = "/external/apis/users"
ENTRIES = "/audit/v1/entries"


async def change_key(apis: Apis, key: str, **values: object) -> None:
    async with apis.store.writing() as session:
        row = await session.get_one(tables.ApiKey, key)
        for name, value in values.items():
            setattr(row, name, value)


async def test_a_signed_request_is_answered(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis:
        assert (await apis.post(USERS, {})).status == 200


async def test_without_a_right_signature_it_is_401(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis:
        headers = apis.signed("POST", USERS, b"{}")
        unsigned = await apis.send("POST", USERS, b"{}", {"Content-Type": "application/json"})
        assert (unsigned.status, unsigned.code) == (401, "unsigned")
        assert unsigned.headers["WWW-Authenticate"] == "HmacSHA512"
        changed = await apis.send("POST", USERS, b'{"pageSize":1}', headers)
        assert (changed.status, changed.code) == (401, "wrong_signature")
        assert (await apis.send("POST", USERS, b"{}", headers)).status == 200
        replayed = await apis.send("POST", USERS, b"{}", headers)
        assert (replayed.status, replayed.code) == (401, "replayed_nonce")
        unknown = {**headers, "Authorization": headers["Authorization"].replace(ATLAS, "who")}
        assert (await apis.send("POST", USERS, b"{}", unknown)).code == "unknown_key"
        for key in ("\0", "\x7f", "é", "x" * 400):
            raw = f"HmacSHA512 {key}:{new_nonce()}:AAAA".encode("latin-1").decode("latin-1")
            if key.isprintable():
                assert (await apis.send("POST", USERS, b"{}", {**headers, "Authorization": raw})).status == 401


async def test_the_answer_names_the_field(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis:
        request = SignedRequest("POST", "https", apis.host, USERS, "application/json", b"{}")
        signed = sign(request, ATLAS, SECRETS[ATLAS], nonce=new_nonce(), date=http_date(time.time()))
        answer = await apis.send("POST", USERS, b"{}", {"Content-Type": "application/json", **signed})
        error = answer.json["error"]
        assert (answer.status, error["where"], error["expected"]) == (401, "scheme", 'scheme "http"')
        assert SECRETS[ATLAS].encode() not in answer.body


async def test_only_some_wrong_signatures_of_a_key_are_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One at once, and the next one in a quarter of an hour.
    monkeypatch.setattr(security, "EXPLAINED_PER_S", 0.001)
    async with open_apis(tmp_path) as apis:

        async def refused(key: str) -> tuple[int, str, str]:
            signed = apis.signed("POST", USERS, b"{}", key=key)
            answer = await apis.send("POST", USERS, b'{"pageSize":1}', signed)
            return answer.status, answer.code, answer.json["error"]["expected"][:16]

        assert await refused(ATLAS) == (401, "wrong_signature", "the body's 14 by")
        for _ in range(3):
            assert await refused(ATLAS) == (401, "wrong_signature", "another attempt ")
        assert await refused(BOREALIS) == (401, "wrong_signature", "the body's 14 by")
        assert (await apis.post(USERS, {})).status == 200


async def test_a_disabled_key_is_401_and_an_address_or_api_that_is_not_allowed_403(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis:
        other_api = await apis.post(USERS, {}, key=BOREALIS)
        assert (other_api.status, other_api.code) == (403, "api_not_allowed")
        await change_key(apis, ATLAS, networks=["192.0.2.0/24"])
        other_address = await apis.post(USERS, {})
        assert (other_address.status, other_address.code) == (403, "address_not_allowed")
        assert other_address.json["error"]["expected"] == "192.0.2.0/24"
        forged = apis.signed("POST", USERS, b"{}")
        forged["Authorization"] = (
            forged["Authorization"].rpartition(":")[0] + ":" + base64.b64encode(bytes(64)).decode()
        )
        assert (await apis.send("POST", USERS, b"{}", forged)).status == 401
        await change_key(apis, ATLAS, enabled=False)
        disabled = await apis.post(USERS, {})
        assert (disabled.status, disabled.code) == (401, "disabled_key")


@pytest.mark.parametrize(
    ("forwarded", "status"),
    [(["192.0.2.1"], 403), (["127.0.0.1, 192.0.2.1"], 403), (["192.0.2.1, 127.0.0.1"], 200)],
)
async def test_a_proxy_on_this_machine_says_who_its_client_is(
    tmp_path: Path, forwarded: list[str], status: int
) -> None:
    async with open_apis(tmp_path) as apis:
        headers = {**apis.signed("POST", USERS, b"{}"), "X-Forwarded-For": forwarded[0]}
        assert (await apis.send("POST", USERS, b"{}", headers)).status == status


@pytest.mark.parametrize("forwarded", ["not an address", "127.0.0.1, unknown", "127.0.0.1:80", "", "127.0.0.1,", "é"])
@pytest.mark.parametrize("path", [USERS, "/api"])
async def test_an_address_that_is_not_one_does_not_pass_as_local(tmp_path: Path, forwarded: str, path: str) -> None:
    async with open_apis(tmp_path) as apis:
        headers = {**apis.signed("POST", USERS, b"{}"), "X-Forwarded-For": forwarded}
        answer = await apis.send("GET" if path == "/api" else "POST", path, b"{}", headers)
        assert (answer.status, answer.code, answer.json["error"]["where"]) == (400, "wrong_header", "X-Forwarded-For")
        assert "IP address" in answer.json["error"]["expected"]


async def test_a_scheme_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis:
        headers = {**apis.signed("POST", USERS, b"{}"), "X-Forwarded-Proto": "gopher"}
        answer = await apis.send("POST", USERS, b"{}", headers)
        assert (answer.status, answer.json["error"]["where"]) == (400, "X-Forwarded-Proto")
        assert answer.json["error"]["expected"] == "one of https, wss, http, ws"


async def test_the_scheme_is_that_of_a_proxys_client(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis:
        request = SignedRequest("POST", "https", "managementapi.xhoot.com", USERS, "application/json", b"{}")
        signed = sign(request, ATLAS, SECRETS[ATLAS], nonce=new_nonce(), date=http_date(time.time()))
        headers = {"Content-Type": "application/json", "Host": "managementapi.xhoot.com", "X-Forwarded-Proto": "https"}
        assert (await apis.send("POST", USERS, b"{}", {**headers, **signed})).status == 200


async def test_a_stranger_learns_nothing_of_the_models(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis:
        assert (await apis.send("POST", USERS, b"nonsense", {"Content-Type": "text/plain"})).status == 401
        assert (await apis.post(USERS, {"nonsense": 1})).status == 422
