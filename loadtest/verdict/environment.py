"""The machine and the versions, for the report: a figure without them cannot be compared."""

from __future__ import annotations

import os
import platform
import ssl
import subprocess
from importlib import metadata
from pathlib import Path

from relay import __version__

# Asking git takes milliseconds, unless the disk is ill.
GIT_TIMEOUT_S = 5.0


def environment() -> dict[str, str]:
    """What is known of this machine."""
    found = {
        "cpu": _cpu(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": _memory(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION,
        "cloud9-relay": __version__,
        "commit": _commit(),
        "locust": _version("locust"),
        "gevent": _version("gevent"),
        "load average before": " ".join(f"{one:.2f}" for one in os.getloadavg()),
    }
    return {name: value for name, value in found.items() if value}


def _cpu() -> str:
    for line in _lines("/proc/cpuinfo"):
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _memory() -> str:
    for line in _lines("/proc/meminfo"):
        name, _, value = line.partition(":")
        if name == "MemTotal":
            return f"{int(value.split()[0]) / 1024 / 1024:.1f} GiB"
    return ""


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _commit() -> str:
    """Of the tree that this file is in, if it is a clone."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        asked = subprocess.run(  # noqa: S603 - of our own
            ["git", "-C", str(root), "describe", "--always", "--dirty"],  # noqa: S607 - whichever git there is
            capture_output=True,
            text=True,
            timeout=GIT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return asked.stdout.strip()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
