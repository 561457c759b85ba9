"""A kernel that does not send: within a network namespace, what leaves for one UDP port is refused in several ways."""

from __future__ import annotations

import asyncio
import functools
import shutil
import subprocess
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from relay.demo.wan import netns
from relay.demo.wan.netns import Namespace

# How, and the errno that ``send`` gives. A packet filter that rejects sends an ICMP message of our own besides.
WAYS = ("drop", "reject", "prohibited", "no route", "route prohibited")
LOOPBACK_MTU_BYTES = 1500


def run(*command: str) -> None:
    """Run a command in the namespace that this thread is in; what it says is shown where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


def refuse(way: str, port: int) -> None:
    """From now on refuse UDP to this port."""
    if way in {"no route", "route prohibited"}:
        action = "unreachable" if way == "no route" else "prohibit"
        for family in ("-4", "-6"):
            run("ip", family, "rule", "add", "pref", "1", "ipproto", "udp", "dport", str(port), action)
        return
    verdict = {"drop": "drop", "reject": "reject", "prohibited": "reject with icmpx type admin-prohibited"}[way]
    run("nft", "add table inet refusing")
    run("nft", "add chain inet refusing out { type filter hook output priority 0; }")
    run("nft", f"add rule inet refusing out udp dport {port} {verdict}")


def allow(way: str) -> None:
    """End what ``refuse`` began."""
    if way in {"no route", "route prohibited"}:
        for family in ("-4", "-6"):
            run("ip", family, "rule", "del", "pref", "1")
        return
    run("nft", "delete table inet refusing")


def _prepare() -> None:
    run("ip", "link", "set", "lo", "mtu", str(LOOPBACK_MTU_BYTES))
    # The rule that finds local addresses comes first, and could not be preceded.
    for family in ("-4", "-6"):
        run("ip", family, "rule", "add", "pref", "100", "lookup", "local")
        run("ip", family, "rule", "del", "pref", "0")


@functools.cache
def refusal() -> str | None:
    """Why this cannot be done here, or None if it can."""
    if (reason := netns.refusal()) is not None:
        return reason
    if missing := [name for name in ("ip", "nft") if shutil.which(name) is None]:
        return f"not installed: {', '.join(missing)}"
    try:
        with Namespace() as namespace, namespace.entered():
            _prepare()
            for way in WAYS:
                refuse(way, 9)
                allow(way)
    except AssertionError as error:
        return f"this kernel refuses to refuse: {error}"
    return None


async def in_namespace(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test in a network namespace whose loopback carries 1500 bytes; skip it where that is not permitted."""
    reason = await asyncio.to_thread(refusal)
    if reason is not None:
        pytest.skip(reason)
    with Namespace() as namespace:
        with namespace.entered():
            _prepare()
        await namespace.run(main)
