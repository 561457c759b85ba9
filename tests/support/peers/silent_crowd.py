"""Connections that say nothing, in a process of their own: ``python -m tests.support.peers.silent_crowd PORT COUNT``.

It says ``connected`` when all are, and then, when the server has closed every one, how many seconds the first and the
last of them were left alone.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time

# The kernel has 28,000 source ports for each address.
ADDRESSES = 100


def main(port: int, count: int) -> None:
    poll, opened = select.epoll(), {}
    began = {}
    for number in range(count):
        one = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        one.bind((f"127.0.1.{1 + number % ADDRESSES}", 0))
        began[one.fileno()] = time.monotonic()
        one.connect(("127.0.0.1", port))
        opened[one.fileno()] = one
        poll.register(one, select.EPOLLIN)
    sys.stdout.write("connected\n")
    sys.stdout.flush()
    alone = []
    while opened:
        for fd, _ in poll.poll():
            alone.append(time.monotonic() - began[fd])
            assert opened[fd].recv(1) == b""
            poll.unregister(fd)
            opened.pop(fd).close()
    sys.stdout.write(json.dumps([min(alone), max(alone)]))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
