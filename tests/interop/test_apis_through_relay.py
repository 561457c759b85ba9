"""The emulator's APIs behind a real relay: signatures name what the client sees, and uploads pass as they are."""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path

import aiohttp
from websockets.asyncio.client import connect

from relay.emulator.apis.signing import SignedRequest, http_date, new_nonce, sign
from tests.support.benches.apis import ATLAS, SECRETS, open_apis
from tests.support.benches.gateway import SERVER_NAME, running_relay
from tests.support.benches.signaling import NO_UPSTREAM
from tests.support.media_files import MediaFile, ogg_opus
from tests.support.peers.cti_client import CtiClient

USERS = "/external/apis/users"


def signed(request: SignedRequest) -> dict[str, str]:
    return sign(request, ATLAS, SECRETS[ATLAS], nonce=new_nonce(), date=http_date(time.time()))


async def test_apis_through_the_relay(tmp_path: Path) -> None:
    async with (
        open_apis(tmp_path / "media") as apis,
        running_relay(tmp_path, NO_UPSTREAM, signaling={"upstreams": [f"http://{apis.host}"]}) as relay,
        aiohttp.ClientSession() as http,
    ):
        # The client says https and the relay's own name; the relay asks the emulator over plain HTTP.
        host = f"{SERVER_NAME}:{relay.tls.port}"
        base, tls = f"https://127.0.0.1:{relay.tls.port}", {"ssl": relay.trust, "server_hostname": SERVER_NAME}

        headers = signed(SignedRequest("POST", "https", host, USERS, "application/json", b"{}"))
        headers |= {"Host": host, "Content-Type": "application/json"}
        async with http.post(f"{base}{USERS}", data=b"{}", headers=headers, **tls) as answer:  # type: ignore[arg-type]
            assert (answer.status, len((await answer.json())["users"])) == (200, 6)

        handshake = SignedRequest("GET", "wss", host, "/api")
        async with connect(
            f"wss://{host}/api",
            host="127.0.0.1",
            ssl=relay.trust,
            additional_headers=signed(handshake),
            compression=None,
            proxy=None,
        ) as socket:
            client = CtiClient(socket, handshake, ATLAS, SECRETS[ATLAS])
            assert len((await client.ask("userStatusSnapshot", {}))["userStatuses"]) == 6

        media = MediaFile(ogg_opus(3_000_000))
        path, token = f"{base}/recordings/v1/{uuid.uuid4()}", {"Authorization": f"Bearer {await apis.token('anna')}"}
        part = {**token, "Host": host, "Content-Type": "application/offset+octet-stream", "Upload-Length": "3000000"}
        for offset in (0, 1_000_000, 2_000_000):
            body = media.content[offset : offset + 1_000_000]
            named = {**part, "Upload-Offset": str(offset)}
            async with http.patch(f"{path}/media", data=body, headers=named, **tls) as answer:  # type: ignore[arg-type]
                assert (answer.status, answer.headers["Upload-Offset"]) == (204, str(offset + 1_000_000))
        named = {**token, "Host": host, "Content-Type": "application/json"}
        text = json.dumps(media.metadata())
        async with http.put(f"{path}/metadata", data=text, headers=named, **tls) as answer:  # type: ignore[arg-type]
            assert (await answer.json())["state"] == "complete"
        async with http.get(f"{path}/media", headers={**token, "Host": host}, **tls) as answer:  # type: ignore[arg-type]
            assert await answer.read() == media.content
