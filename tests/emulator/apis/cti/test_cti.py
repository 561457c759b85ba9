"""The CTI API: what a firm's program sees and does, and how it is told that something will not do."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError
from websockets.exceptions import InvalidStatus

from relay.emulator.apis.cti import connection, server
from relay.emulator.apis.security import Keys
from relay.emulator.signaling.messages import LineAnswer, LineRelease, LineRing, LineTalk, PresenceStatus
from relay.emulator.store import tables
from tests.support.benches.apis import ATLAS, BOREALIS, SECRETS, Apis, open_apis
from tests.support.peers.cti_client import CtiClient, open_cti
from tests.support.waiting import eventually

ANNA_BEN, BOTH_FIRMS, SHOUT = "sPK-10000001-100001", "sPK-10000001-100002", "sPK-10000002-100001"
INTERCOM, DIAL_TONE = "sPK-10000004-100001", "sPK-10000005-100001"
REJECTIONS = "/emulator/v1/rejections"


def atlas(apis: Apis, **changes: Any) -> Any:
    return open_cti(apis.host, ATLAS, SECRETS[ATLAS], **changes)


async def allow(cloud: Apis, key: str, /, **values: object) -> None:
    async with cloud.store.writing() as session:
        row = await session.get_one(tables.ApiKey, key)
        for name, value in values.items():
            setattr(row, name, value)


def call(**changes: Any) -> dict[str, Any]:
    return {"userId": "anna", "farEndNumber": ANNA_BEN, "farEndType": 0, "privacyOn": False, **changes}


async def statuses(client: CtiClient, count: int) -> dict[str, int]:
    heard = [await client.hear("callStatus") for _ in range(count)]
    return {each["userId"]: each["callStatusCode"] for each in heard}


# What happens


async def test_a_call_from_its_beginning_to_its_end(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis, atlas(apis) as client:
        await apis.log_in("anna", "ben")
        await client.send("initiateCall", call(privacyOn=True))
        ringing = [await client.hear("callStatus") for _ in range(2)]
        assert {each["userId"]: each["callStatusCode"] for each in ringing} == {"anna": 2, "ben": 3}
        assert {each["nearEndNumber"] for each in ringing} == {ANNA_BEN}
        call_id = ringing[0]["callId"]
        await apis.hub.act("ben", "use1", LineAnswer(line=ANNA_BEN))
        assert await statuses(client, 2) == {"anna": 18, "ben": 18}
        snapshot = await client.ask("callStatusSnapshot", {"userIds": ["anna"]})
        of_anna = {each["nearEndNumber"]: each for each in snapshot["callStatuses"]}
        assert (of_anna[ANNA_BEN]["callStatusCode"], of_anna[ANNA_BEN]["callId"]) == (18, call_id)
        assert of_anna[ANNA_BEN]["privacyOn"] is True
        assert (of_anna[INTERCOM]["callStatusCode"], of_anna[INTERCOM]["timestamp"]) == (1, None)
        await client.send("releaseCall", {"userId": "anna"})
        ended = [await client.hear("callStatus") for _ in range(2)]
        assert {each["callStatusCode"] for each in ended} == {1}
        assert {each["reason"] for each in ended} == {"released"}
        # Messages are done one after the other, so by its answer the one before is done.
        await client.ask("userStatusSnapshot", {})
        entries = (await apis.post("/audit/v1/entries", {})).json["entries"]
        done = [
            (each["action"], each["actor"], each["object"]) for each in entries if each["action"].startswith("cti.")
        ]
        assert done == [
            ("cti.initiate_call", "key:atlas-key-1", "anna"),
            ("cti.release_call", "key:atlas-key-1", "anna"),
        ]
        async with apis.store.reading() as session:
            assert (await session.get_one(tables.Call, call_id)).reason == "released"


async def test_one_way_lines_have_a_direction(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis, atlas(apis) as client:
        await allow(apis, BOREALIS, apis=["cti"])
        async with open_cti(apis.host, BOREALIS, SECRETS[BOREALIS]) as other:
            await apis.log_in("dora", "fay")
            await client.send("initiateCall", call(userId="dora", farEndNumber=SHOUT))
            heard = [await client.hear("callStatus"), await other.hear("callStatus")]
            # Who shouts talks at once, and the other hears it.
            assert [(each["userId"], each["callStatusCode"]) for each in heard] == [("dora", 16), ("fay", 17)]
            await apis.hub.act("dora", "use1", LineTalk(line=SHOUT, on=False))
            await client.hear("callStatus")


async def test_dial_tone_reaches_a_user_of_another_firm(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis, atlas(apis) as client:
        await allow(apis, BOREALIS, apis=["cti"])
        async with open_cti(apis.host, BOREALIS, SECRETS[BOREALIS]) as other:
            await apis.log_in("anna", "fay")
            await client.send("initiateCall", call(farEndNumber="2001", farEndType=1))
            near, far = await client.hear("callStatus"), await other.hear("callStatus")
            assert (near["nearEndNumber"], near["farEndNumber"], near["farEndType"]) == (DIAL_TONE, "2001", 1)
            assert (far["userId"], far["callStatusCode"], far["farEndNumber"], far["farEndType"]) == (
                "fay",
                3,
                "anna",
                2,
            )
            ringing = await other.ask("callStatusSnapshot", {"userIds": ["fay"]})
            assert [each["callStatusCode"] for each in ringing["callStatuses"] if each["callId"]] == [3]
            await client.send("releaseCall", {"userId": "anna", "nearEndNumber": DIAL_TONE})
            assert (await other.hear("callStatus"))["callStatusCode"] == 1


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"farEndType": 2, "farEndNumber": "ben"}, ANNA_BEN),
        ({"farEndType": 2, "farEndNumber": "chen"}, INTERCOM),
        ({"farEndType": 2, "farEndNumber": "ben", "nearEndNumber": INTERCOM}, INTERCOM),
        ({"farEndType": 3, "farEndNumber": "1002"}, DIAL_TONE),
        ({"farEndType": 1, "farEndNumber": "1002", "nearEndNumber": DIAL_TONE}, DIAL_TONE),
    ],
)
async def test_what_the_far_end_may_be(tmp_path: Path, change: dict[str, Any], line: str) -> None:
    async with open_apis(tmp_path) as apis, atlas(apis) as client:
        await apis.log_in("anna", "ben", "chen")
        await client.send("initiateCall", call(**change))
        assert (await client.hear("callStatus"))["nearEndNumber"] == line


async def test_users_come_and_go(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis, atlas(apis) as client:
        before = await client.ask("userStatusSnapshot", {})
        assert {each["userId"] for each in before["userStatuses"]} >= {"anna", "ben", "atlas-admin"}
        assert not any(each["loggedIn"] for each in before["userStatuses"])
        await apis.log_in("fay", "anna")
        # Of Fay, who is of another firm, nothing is heard.
        assert await client.hear("userStatusUpdate") == {
            "userId": "anna",
            "userName": "Anna Keller",
            "loggedIn": True,
            "status": "available",
        }
        await apis.hub.handle("anna", "presence.set", {"state": "busy"})
        assert (await client.hear("userStatusUpdate"))["status"] == "busy"
        now = await client.ask("userStatusSnapshot", {"userIds": ["anna", "ben"]})
        assert [each["status"] for each in now["userStatuses"]] == ["busy", "offline"]
        calls = await client.ask("callStatusSnapshot", {"userIds": ["anna", "ben"]})
        codes = {(each["userId"], each["callStatusCode"]) for each in calls["callStatuses"]}
        assert codes == {("anna", 1), ("ben", 0)}
        await apis.hub.announcer.tell_presence("anna", (), PresenceStatus.OFFLINE)
        assert (await client.hear("userStatusUpdate"))["loggedIn"] is False


async def test_another_firm_is_neither_seen_nor_served(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis, atlas(apis) as client:
        await apis.log_in("anna", "fay", "gus")
        for body in (call(userId="fay", farEndNumber=BOTH_FIRMS), call(userId="nobody")):
            assert (await client.rejected("initiateCall", body))["rejectionCode"] == 404
        assert (await client.rejected("releaseCall", {"userId": "fay"}))["rejectionCode"] == 404
        assert (await client.rejected("callStatusSnapshot", {"userIds": ["anna", "fay"]}))["rejectionCode"] == 404
        await apis.hub.act("fay", "euc1", LineRing(line=BOTH_FIRMS))
        heard = await client.hear("callStatus")
        assert heard["userId"] == "anna"
        snapshot = await client.ask("callStatusSnapshot", {})
        firm = {"anna", "ben", "chen", "dora", "emil"}
        assert {each["userId"] for each in snapshot["callStatuses"]} == firm
        await apis.hub.act("fay", "euc1", LineRelease(line=BOTH_FIRMS))


# What will not do


async def test_rejections_say_what_is_wrong(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis, atlas(apis) as client:
        await apis.log_in("anna", "ben", "chen")
        for message_type, body, code, where in (
            ("initiateCall", call(userId="dora"), 409, "userId"),
            ("initiateCall", call(farEndNumber="sPK-1-1"), 404, ""),
            ("initiateCall", call(farEndNumber="not a line"), 400, "messageBody.farEndNumber"),
            ("initiateCall", call(farEndNumber="notaline"), 400, "nearEndNumber or farEndNumber"),
            ("initiateCall", call(farEndType=1, farEndNumber="letters"), 400, "farEndNumber"),
            ("initiateCall", call(farEndType=2, farEndNumber="fay", nearEndNumber=ANNA_BEN), 404, "farEndNumber"),
            ("initiateCall", call(userId="ben", farEndType=1, farEndNumber="1"), 404, "farEndType"),
            ("initiateCall", call(farEndType=4), 400, "messageBody.farEndType"),
            ("initiateCall", call(privacyOn=1), 400, "messageBody.privacyOn"),
            ("initiateCall", {"userId": "anna"}, 400, "messageBody.farEndNumber"),
            ("releaseCall", {"userId": "anna"}, 409, "userId"),
            ("callStatusSnapshot", {"userIds": "anna"}, 400, "messageBody.userIds"),
            ("userStatusSnapshot", [], 400, "messageBody"),
            ("userStatusSnapshot", "not JSON", 400, "messageBody"),
            ("callStatus", {}, 400, "messageType"),
        ):
            rejection = await client.rejected(message_type, body)
            assert (rejection["rejectionCode"], rejection["where"]) == (code, where), rejection
            assert rejection["messageType"] == message_type
            assert rejection["nonce"]
            assert rejection["rejectionReason"]
        # And the connection still serves.
        assert (await client.ask("userStatusSnapshot", {}))["userStatuses"]


async def test_which_of_two_calls_to_end_must_be_said(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis, atlas(apis) as client:
        await apis.log_in("anna", "ben", "chen", "gus")
        await client.send("initiateCall", call())
        await client.send("initiateCall", call(farEndNumber=BOTH_FIRMS))
        rejection = await client.rejected("releaseCall", {"userId": "anna"})
        assert (rejection["rejectionCode"], rejection["where"]) == (409, "callId")
        first = rejection["expected"].split(", ")[0]
        await client.send("releaseCall", {"userId": "anna", "callId": first})
        await client.send("releaseCall", {"userId": "anna"})
        snapshot = await client.ask("callStatusSnapshot", {"userIds": ["anna"]})
        assert all(each["callStatusCode"] == 1 for each in snapshot["callStatuses"])


async def test_each_message_is_checked_by_itself(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis, atlas(apis) as client:
        envelope = client.sealed("userStatusSnapshot", {})
        await client.socket.send(json.dumps(envelope))
        await client.hear("userStatusSnapshot")
        await client.socket.send(json.dumps(envelope))
        assert "used before" in (await client.hear("rejection"))["rejectionReason"]
        scheme = await client.rejected("userStatusSnapshot", {}, scheme="http")
        assert (scheme["rejectionCode"], scheme["where"]) == (401, "scheme")
        await client.socket.send(json.dumps({**client.sealed("userStatusSnapshot", {}), "messageBody": "[]"}))
        assert (await client.hear("rejection"))["rejectionCode"] == 401
        await client.socket.send(json.dumps({**client.sealed("userStatusSnapshot", {}), "headers": {}}))
        assert (await client.hear("rejection"))["rejectionReason"] == "the request has no Authorization header"
        for wrong in ("", "[]", "{", "1", '{"headers": {}}', "[" * 50_000, json.dumps({**envelope, "more": 1})):
            await client.socket.send(wrong)
            assert (await client.hear("rejection"))["rejectionCode"] == 400
        await allow(apis, ATLAS, apis=["management"])
        assert (await client.rejected("userStatusSnapshot", {}))["rejectionCode"] == 403


async def test_a_message_of_another_key_is_rejected(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis, atlas(apis) as client:
        await allow(apis, BOREALIS, apis=["cti"])
        client.secret, own = SECRETS[BOREALIS], client.secret
        await client.send("userStatusSnapshot", {}, key=BOREALIS)
        client.secret = own
        rejection = await client.hear("rejection")
        assert (rejection["rejectionCode"], rejection["where"]) == (401, "api key")


async def test_handshakes_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_apis(tmp_path) as apis:

        async def status(key: str = ATLAS, secret: str | None = None, **changes: Any) -> int:
            with pytest.raises(InvalidStatus) as refused:
                async with open_cti(apis.host, key, secret or SECRETS[key], **changes):
                    pass
            return refused.value.response.status_code

        assert await status(secret="another") == 401
        assert await status(scheme="http") == 401
        assert await status(key=BOREALIS) == 403
        unsigned = await apis.send("GET", "/api")
        assert (unsigned.status, unsigned.code) == (401, "unsigned")
        monkeypatch.setattr(server, "MAX_CONNECTIONS_OF_KEY", 1)
        async with atlas(apis):
            assert await status() == 429
            monkeypatch.setattr(server, "MAX_CONNECTIONS", 1)
            await allow(apis, BOREALIS, apis=["cti"])
            assert await status(key=BOREALIS) == 503


async def test_without_an_upgrade_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_apis(tmp_path) as apis:
        monkeypatch.setattr(server, "SCHEMES", {})
        answer = await apis.send("GET", "/api", b"", apis.signed("GET", "/api", content_type=""))
        assert (answer.status, answer.headers["Upgrade"]) == (426, "websocket")


# Rejections on demand


async def test_a_program_asks_for_rejections(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis, atlas(apis) as client:
        await apis.log_in("anna", "ben")
        plan = {"messageType": "initiateCall", "rejectionCode": 4711, "rejectionReason": "no trunk", "count": 2}
        added = await apis.post(REJECTIONS, {**plan, "userId": "anna"})
        assert (added.status, added.json["rejections"]) == (201, [{**plan, "userId": "anna"}])
        rejection = await client.rejected("initiateCall", call())
        assert (rejection["rejectionCode"], rejection["rejectionReason"]) == (4711, "no trunk")
        waiting = await apis.send("GET", REJECTIONS, b"", apis.signed("GET", REJECTIONS, content_type=""))
        assert [each["count"] for each in waiting.json["rejections"]] == [1]
        # Ben is not meant, and is not rejected.
        await client.send("initiateCall", call(userId="ben"))
        await client.hear("callStatus")
        await client.send("releaseCall", {"userId": "ben"})
        assert (await client.rejected("initiateCall", call()))["rejectionCode"] == 4711
        await client.send("initiateCall", call())
        await client.hear("callStatus")


async def test_rejections_of_one_firm_are_not_another_firms(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis, atlas(apis) as client:
        await allow(apis, BOREALIS, apis=["cti"])
        plan = {"messageType": "userStatusSnapshot", "rejectionCode": 1, "rejectionReason": "x"}
        await apis.post(REJECTIONS, plan, key=BOREALIS)
        assert await client.ask("userStatusSnapshot", {})
        await apis.post(REJECTIONS, plan)
        cleared = await apis.send("DELETE", REJECTIONS, b"", apis.signed("DELETE", REJECTIONS, content_type=""))
        assert cleared.status == 204
        assert await client.ask("userStatusSnapshot", {})
        for _ in range(100):
            await apis.post(REJECTIONS, plan)
        assert (await apis.post(REJECTIONS, plan)).status == 409


# Bounds


async def test_a_client_that_does_not_read_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_QUEUED", 5)
    monkeypatch.setattr(connection, "LINGER_S", 0.2)
    async with open_apis(tmp_path) as apis, atlas(apis) as client:
        await eventually(lambda: len(apis.cti) == 1)
        # All at once, before the connection has its turn.
        for _ in range(10):
            apis.hub.announcer.heard_presence("anna", PresenceStatus.BUSY)
        code, reason = await client.closed()
        assert (code, reason) == (1013, "too slow: 5 messages wait")
        await eventually(lambda: not len(apis.cti))


async def test_a_client_that_stops_reading_its_socket_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "SEND_TIMEOUT_S", 0.2)
    monkeypatch.setattr(connection, "LINGER_S", 0.2)
    monkeypatch.setattr(connection, "MAX_QUEUED", 1_000_000)
    async with open_apis(tmp_path) as apis, atlas(apis) as client:
        await eventually(lambda: len(apis.cti) == 1)
        client.socket.transport.pause_reading()
        while len(apis.cti):
            for _ in range(1000):
                apis.hub.announcer.heard_presence("anna", PresenceStatus.BUSY)
            await asyncio.sleep(0)
        client.socket.transport.resume_reading()
        await client.closed()


async def test_too_many_messages_are_rejected_and_then_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MESSAGES_PER_SECOND", 0.001)
    monkeypatch.setattr(connection, "MAX_REJECTED_IN_A_ROW", 3)
    async with open_apis(tmp_path) as apis, atlas(apis) as client:
        assert await client.ask("userStatusSnapshot", {})
        for _ in range(3):
            assert (await client.rejected("userStatusSnapshot", {}))["rejectionCode"] == 429
        await client.send("userStatusSnapshot", {})
        assert await client.closed() == (1008, "too many rejected messages")


async def test_messages_that_are_too_large_or_binary_end_the_connection(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis:
        async with atlas(apis) as client:
            await client.socket.send("x" * 70_000)
            assert (await client.closed())[0] == 1009
        async with atlas(apis) as client:
            await client.socket.send(b"{}")
            assert (await client.closed())[0] == 1003


async def test_a_disabled_key_loses_its_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "RECHECK_S", 0.05)
    async with open_apis(tmp_path) as apis, atlas(apis) as client:
        await allow(apis, ATLAS, enabled=False)
        assert await client.closed() == (1008, "the API key was disabled")


async def test_a_key_that_is_kept_to_other_addresses_loses_its_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "RECHECK_S", 0.05)
    async with open_apis(tmp_path) as apis, atlas(apis) as client:
        await allow(apis, ATLAS, networks=["192.0.2.0/24"])
        assert await client.closed() == (1008, f"the key {ATLAS} may not be used from 127.0.0.1")


async def test_a_database_that_fails_ends_no_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(connection, "RECHECK_S", 0.01)
    rechecked, find, fails = asyncio.Event(), Keys.find, True

    async def failing(keys: Keys, name: str) -> Any:
        if not fails:
            return await find(keys, name)
        rechecked.set()
        raise OperationalError("SELECT", {}, Exception("it is gone"))

    async with open_apis(tmp_path) as apis, atlas(apis) as client:
        monkeypatch.setattr(Keys, "find", failing)
        async with asyncio.timeout(10):
            await rechecked.wait()
        told = await client.rejected("userStatusSnapshot", {})
        assert (told["rejectionCode"], told["rejectionReason"]) == (503, "the database does not answer")
        fails = False
        assert (await client.ask("userStatusSnapshot", {}))["userStatuses"]
    logged = capsys.readouterr()
    assert "Traceback" not in logged.out + logged.err


async def test_a_stop_says_good_bye(tmp_path: Path) -> None:
    async with open_apis(tmp_path) as apis, atlas(apis) as client:
        await eventually(lambda: len(apis.cti) == 1)
        stopping = asyncio.ensure_future(apis.cti.stop())
        assert await client.closed() == (1001, "the emulator stops")
        await stopping
        assert len(apis.cti) == 0
