"""What is in a network namespace: its devices and its processes."""

from __future__ import annotations

import os
from pathlib import Path

from relay.demo.wan.netns import Namespace


def devices() -> set[str]:
    """The network devices of this thread's namespace."""
    lines = Path("/proc/thread-self/net/dev").read_text().splitlines()[2:]
    return {line.partition(":")[0].strip() for line in lines}


def identity(namespace: Namespace) -> int:
    """What the kernel tells the namespace by."""
    return os.stat(namespace.path).st_ino


def inhabitants(number: int) -> list[str]:
    """The processes in a namespace."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "ns/net").stat().st_ino == number:
                found.append(process.name)
        except OSError:
            continue
    return found
