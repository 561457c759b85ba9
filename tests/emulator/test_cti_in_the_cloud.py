"""A program calls for a user over CTI, and both phones ring: the whole cloud, from the key to the call's record."""

from __future__ import annotations

import io
import json
import time
import zipfile
from pathlib import Path
from typing import Any

import aiohttp

from relay.emulator.apis.signing import SignedRequest, http_date, new_nonce, sign
from tests.support.benches.cloud import running_cloud
from tests.support.benches.emulated_signaling import phone
from tests.support.peers.cti_client import CtiClient, open_cti

KEY, SECRET = "atlas-key-1", "atlas-secret-for-a-laptop"
LINE = "sPK-10000001-100001"
CALLS = "/v2/calls/transcriptions"


async def codes(program: CtiClient) -> set[int]:
    """The codes of the next two statuses."""
    return {(await program.hear("callStatus"))["callStatusCode"] for _ in range(2)}


async def test_a_call_that_a_program_places(tmp_path: Path) -> None:
    async with running_cloud(tmp_path) as client:
        host = str(client.cloud.http)
        tokens = [(await client.login(user))["token"] for user in ("anna", "ben")]
        async with (
            phone(f"http://{host}", tokens[0]) as anna,
            phone(f"http://{host}", tokens[1]) as ben,
            open_cti(host, KEY, SECRET) as program,
        ):
            await program.send("initiateCall", {"userId": "anna", "farEndNumber": "ben", "farEndType": 2})
            ringing = await ben.heard("line.state", state="ringing")
            assert await codes(program) == {2, 3}
            await ben.do("line.answer", line=LINE)
            assert await codes(program) == {18}
            await program.send("releaseCall", {"userId": "anna"})
            await anna.heard("line.state", state="idle")
            # Messages are done one after the other, so by this answer the call's record is on disk.
            await program.ask("userStatusSnapshot", {})
        record = await record_of_the_call(host)
        assert record["callId"] == ringing["call_id"]
        assert {each["userId"] for each in record["participants"]} == {"anna", "ben"}


async def record_of_the_call(host: str) -> dict[str, Any]:
    """The only call that there was, from the Call Data API."""
    body = json.dumps({"beginDate": "2020-01-01T00:00:00Z", "endDate": "2100-01-01T00:00:00Z"})
    signed = SignedRequest("POST", "http", host, CALLS, "application/json", body.encode())
    headers = sign(signed, KEY, SECRET, nonce=new_nonce(), date=http_date(time.time()))
    headers["Content-Type"] = "application/json"
    async with aiohttp.ClientSession() as http, http.post(f"http://{host}{CALLS}", data=body, headers=headers) as got:
        assert got.status == 200
        with zipfile.ZipFile(io.BytesIO(await got.read())) as packed:
            (name,) = packed.namelist()
            return dict(json.loads(packed.read(name)))
