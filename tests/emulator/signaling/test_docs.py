"""The page's section on signaling: its tables have what the code has, and its example runs."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

from relay.emulator.signaling.inputs import EVENTS
from relay.emulator.signaling.machines import TABLES
from relay.emulator.signaling.messages import FROM_CLIENT, FROM_SERVER, EndReason, ErrorCode, Event
from tests.support.benches.cloud import running_cloud

PAGE = (Path(__file__).parents[3] / "docs" / "emulator.md").read_text()
SECTION = PAGE.partition("\n## Signaling\n")[2].partition("\n## ")[0]


def rows(heading: str) -> list[list[str]]:
    """The cells of the tables below a heading of the section, without their heads."""
    text = SECTION.partition(f"\n### {heading}\n")[2].partition("\n### ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    heads = {index for index, line in enumerate(lines) if line.startswith("|---")}
    return [row for index, row in enumerate(cells) if index not in heads and index + 1 not in heads]


def described(message: type[Event]) -> list[str]:
    """A message's name, fields and mark, as the page has them."""
    fields = [
        f"`{field.alias or name}`{'' if field.is_required() else '?'}" for name, field in message.model_fields.items()
    ]
    return [f"`{message.event}`", ", ".join(fields) or "\N{EN DASH}", message.mark]


def test_all_messages_are_described_with_their_fields_and_marks() -> None:
    assert [row[:3] for row in rows("From the server")] == [described(message) for message in FROM_SERVER]
    told = [row[:3] for row in rows("From the client") if len(row) == 4]
    assert told == [described(message) for message in FROM_CLIENT]


def test_all_codes_and_reasons_are_explained() -> None:
    codes = [row[0].strip("`") for row in rows("From the client") if len(row) == 2]
    assert codes == [code.value for code in ErrorCode]
    told = SECTION.partition("why the last call ended:")[2].partition(".\n")[0]
    assert set(re.findall(r"`(\w+)`", told)) == {reason.value for reason in EndReason}


def test_the_states_are_those_of_the_machines() -> None:
    expected = [
        [kind, state, ", ".join(f"`{EVENTS[told]}`" for told in inputs if told in EVENTS)]
        for kind, states in TABLES.items()
        for state, inputs in states.items()
    ]
    assert [row[:3] for row in rows("What is possible on a line")] == expected


async def test_the_example_runs(tmp_path: Path) -> None:
    example = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)[0]
    async with running_cloud(tmp_path) as client:
        assert "http://127.0.0.1:8080" in example
        script = example.replace("http://127.0.0.1:8080", f"http://{client.cloud.http}")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        output, errors = (text.decode() for text in await process.communicate())
        assert (process.returncode, errors) == (0, "")
        assert "Anna - Ben ringing None" in output
        assert "Anna - Ben idle released" in output
        assert output.count("'ok': True") == 2
