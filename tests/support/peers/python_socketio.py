"""python-socketio's server as a process, which ends with its input.

``python -m tests.support.peers.python_socketio OPTIONS``
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import socketio
from aiohttp import web


def say(**event: Any) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


async def main() -> None:
    server = socketio.AsyncServer(async_mode="aiohttp", cors_allowed_origins="*", **json.loads(sys.argv[1]))

    async def on_connect(sid: str, _: Any) -> None:
        await server.emit("hello", {"port": 0}, to=sid)

    async def on_echo(_: str, value: Any) -> Any:
        return value

    server.on("connect", on_connect)
    server.on("echo", on_echo)
    app = web.Application()
    server.attach(app)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    say(event="ready", port=runner.addresses[0][1])
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main())
