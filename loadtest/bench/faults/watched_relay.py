"""``relay`` whose tasks can be counted from outside: ``watched_relay.py SOCKET serve --config FILE``.

Whoever connects to the socket is told how many tasks of asyncio there are. A relay has no other way to say so: nothing
in operation depends on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import threading

import uvloop

from relay.cli import main

LOOPS: list[asyncio.AbstractEventLoop] = []
_new_event_loop = uvloop.new_event_loop


def _noted() -> uvloop.Loop:
    loop = _new_event_loop()
    LOOPS.append(loop)
    return loop


def _count() -> int:
    while True:
        # The set may change in another thread while it is read.
        with contextlib.suppress(RuntimeError):
            return sum(len(asyncio.all_tasks(loop)) for loop in LOOPS)


def _tell(listener: socket.socket) -> None:
    while True:
        with contextlib.suppress(OSError):
            asking, _ = listener.accept()
            with asking:
                asking.sendall(b"%d\n" % _count())


if __name__ == "__main__":
    path = sys.argv.pop(1)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen()
    threading.Thread(target=_tell, args=(listening,), daemon=True).start()
    uvloop.new_event_loop = _noted
    main()
