"""schemathesis in a process of its own: asks an API for all that its description allows, and much that it forbids."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path

PROJECT = Path(__file__).parents[3]
CONFIG = Path(__file__).with_name("schemathesis.toml")
# 1,000 requests take 20 s, and its start another 5.
LIMIT_S = 100


async def ask_everything(
    url: str, folder: Path, *, key: str, secret: str, token: str, examples: int = 25, seed: int = 1
) -> str:
    """Run all of its phases against the description at this URL. Returns its report; raises AssertionError with it.

    What it writes goes into the folder.
    """
    command = ["schemathesis", f"--config-file={CONFIG}", "run", url, f"-n{examples}", f"--seed={seed}"]
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name(command[0]),
        *command[1:],
        "--continue-on-failure",
        "--no-color",
        "--no-shrink",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=folder,
        env=_environment({"KEY": key, "SECRET": secret, "TOKEN": token}),
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
