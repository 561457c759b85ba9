"""schemathesis in a process of its own: asks an API for all that its description allows, and much that it forbids."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path

PROJECT = Path(__file__).parents[3]
CONFIG = Path(__file__).with_name("schemathesis.toml")
# 1,200 requests take 20 s on a quiet machine.
LIMIT_S = 110


async def ask_everything(url: str, folder: Path, secrets: Mapping[str, str], *, without: str, examples: int = 8) -> str:
    """Run all of its phases against the description at this URL. Returns its report; raises AssertionError with it.

    ``secrets`` are those that ``schemathesis_auth`` names. It does not ask the path ``without``. What it writes goes
    into the folder.
    """
    # Several threads that parse Python at the same time meet a fault of Python before 3.11.5 (cpython issue 106905).
    options = [f"-n{examples}", "--seed=1", "--continue-on-failure", "--no-color", "--no-shrink", "--workers=1"]
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("schemathesis"),
        f"--config-file={CONFIG}",
        "run",
        url,
        *options,
        f"--exclude-path={without}",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=folder,
        env=_environment(secrets),
    )
    try:
        async with asyncio.timeout(LIMIT_S):
            report = (await process.communicate())[0].decode(errors="replace")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, report
    return report


def _environment(secrets: Mapping[str, str]) -> dict[str, str]:
    return {
        **os.environ,
        **{f"EMULATOR_{name}": value for name, value in secrets.items()},
        "SCHEMATHESIS_HOOKS": "tests.support.peers.schemathesis_auth",
        "PYTHONPATH": str(PROJECT),
    }
