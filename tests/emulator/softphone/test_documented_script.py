"""The script in docs/emulator.md runs as it is printed there."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

from relay.demo.cloud import running_floor
from relay.emulator import fixtures

PAGE = Path(__file__).parents[3] / "docs" / "emulator.md"


def script() -> str:
    section = PAGE.read_text(encoding="utf-8").partition("## Python softphone\n")[2].partition("\n## ")[0]
    [found] = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return str(found)


def test_it_is_short() -> None:
    lines = [line for line in script().splitlines() if line.strip()]
    assert len(lines) <= 42


async def test_it_runs_as_printed(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(script(), encoding="utf-8")
    async with running_floor(tmp_path / "cloud", fixtures.bundled()) as floor:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-X", "dev", "-W", "error", str(path)),
            env={**os.environ, "C9_HTTP": floor.url},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            stdout, stderr = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert process.returncode == 0, stderr.decode()
    said = stdout.decode()
    assert "Ben hears <Call" in said
    assert "ringing ['anna', 'ben']" in said
    assert "connected ['anna', 'ben']" in said
    assert "recording is whole: True" in said
    assert "'reason': 'released'" in said
    assert "'connectionNumber': 'sPK-10000001-100001'" in said
