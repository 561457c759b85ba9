"""An emulator as a process, which ends with its input: ``python -m tests.support.peers.emulator_process OPTIONS``.

Several with one database and one Redis are one cloud. It says where it listens, as a JSON object in a line.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import uvloop

from tests.support.benches.cloud import cloud_settings


async def main(folder: str, grace_s: float, **changes: str) -> None:
    from relay.emulator.cloud import Cloud

    settings = cloud_settings(Path(folder), event_log=Path(folder) / "events.jsonl", **changes)
    async with Cloud(settings) as cloud:
        cloud.signaling.hub.grace_s = grace_s
        sys.stdout.write(json.dumps({"event": "ready", "port": cloud.http.port}) + "\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    uvloop.run(main(**json.loads(sys.argv[1])))
