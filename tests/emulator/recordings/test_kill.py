"""Nothing that was acknowledged is lost when the process is killed in the middle of uploads."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp

from tests.support.media_files import MediaFile, ogg_opus

KILLS = 4
PARTS = 40
MEDIA = MediaFile(ogg_opus(PARTS * 20_000))

SERVER = """
import asyncio, sys
from pathlib import Path
from tests.support.benches.apis import open_apis

async def serve() -> None:
    folder = Path(sys.argv[1])
    async with open_apis(folder / "media", database=str(folder / "e.db")) as apis:
        print(apis.port, await apis.token("anna"), flush=True)
        await asyncio.Event().wait()

asyncio.run(serve())
"""


@contextlib.asynccontextmanager
async def server(folder: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, str, dict[str, str]]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVER, str(folder), stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[3]
    )
    try:
        assert process.stdout is not None
        port, token = (await process.stdout.readline()).decode().split()
        yield process, f"http://127.0.0.1:{port}/recordings/v1", {"Authorization": f"Bearer {token}"}
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        # Its transport is closed a turn of the loop later.
        await asyncio.sleep(0)


async def upload(base: str, headers: dict[str, str], recording: str, acknowledged: int) -> int:
    """Go on until it is whole, or the server is gone. Returns what was acknowledged."""
    url = f"{base}/{recording}/media"
    with contextlib.suppress(aiohttp.ClientError):
        async with aiohttp.ClientSession(headers=headers) as http:
            async with http.head(url) as known:
                on_disk = int(known.headers["Upload-Offset"]) if known.status == 200 else 0
            assert on_disk >= acknowledged
            acknowledged = on_disk
            while acknowledged < len(MEDIA.content):
                part = {
                    "Content-Type": "application/offset+octet-stream",
                    "Upload-Offset": str(acknowledged),
                    "Upload-Length": str(len(MEDIA.content)),
                }
                body = MEDIA.content[acknowledged : acknowledged + 20_000]
                async with http.patch(url, data=body, headers=part) as answer:
                    assert answer.status == 204
                    acknowledged = int(answer.headers["Upload-Offset"])
    return acknowledged


async def test_no_acknowledged_byte_is_lost_by_a_kill(tmp_path: Path) -> None:
    chance = random.Random(7)
    recordings = {str(uuid.UUID(int=chance.getrandbits(128))): 0 for _ in range(4)}
    killed_in_the_middle = 0
    for _ in range(KILLS):
        async with server(tmp_path) as (process, base, headers):
            uploads = [upload(base, headers, name, known) for name, known in recordings.items()]
            running = asyncio.gather(*uploads)
            # Not at a time but after some work, so that a slow machine is killed in the middle, too.
            path = tmp_path / "media" / "atlas" / chance.choice([*recordings])
            wanted = recordings[path.name] + chance.randrange(20_000, 140_000)
            while not running.done() and (not path.exists() or path.stat().st_size < wanted):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            killed_in_the_middle += not running.done()
            os.kill(process.pid, signal.SIGKILL)
            recordings = dict(zip(recordings, await running, strict=True))
    assert killed_in_the_middle >= KILLS // 2
    async with server(tmp_path) as (_, base, headers), aiohttp.ClientSession(headers=headers) as http:
        for name, known in recordings.items():
            assert await upload(base, headers, name, known) == len(MEDIA.content)
            async with http.put(f"{base}/{name}/metadata", json=MEDIA.metadata()) as done:
                assert (await done.json())["state"] == "complete"
