"""``relay demo --wan`` on the terminal: progress, the table, and where the files are."""

from __future__ import annotations

import json
from pathlib import Path

import typer
from rich.console import Console

from relay.demo.progress import progress
from relay.demo.wan.real import why_not
from relay.demo.wan.report import CONDITIONS, EXPLANATION, json_of, make_folder, note_of, table_of, write_files
from relay.demo.wan.story import PACKETS_PER_SECOND, packets_for, tell

WAYS = 3
FOLDER = Path("relay-demo-wan")


async def show(seconds: float | None, folder: Path | None, *, as_json: bool) -> bool:
    """Tell the story. Returns True if all that came was what had been said. Raises RelayError."""
    folder = folder or FOLDER
    make_folder(folder)
    simulated, packets = why_not(), packets_for(seconds)
    told = Console(stderr=True, quiet=as_json)
    kind = "a path" if simulated is None else "a simulated path"
    what = f"Saying a sentence over {kind} of {CONDITIONS}, three ways, for {packets / PACKETS_PER_SECOND:g} s."
    with progress(told, WAYS * packets, what) as on_tick:
        story = await tell(packets, simulated, on_tick)
    files = write_files(folder, story.calls)
    if as_json:
        typer.echo(json.dumps(json_of(story, files), indent=2))
        return story.authentic
    Console().print(table_of(story))
    typer.echo("\n\n".join(filter(None, (note_of(story), EXPLANATION, _listen(files)))))
    if not story.authentic:
        wrong = sum(call.wrong for call in story.calls)
        typer.echo(f"{wrong} packets did not authenticate, or were not what had been said.", err=True)
    return story.authentic


def _listen(files: list[Path]) -> str:
    return "\n".join(["Listen to what came through:", *(f"  {path}" for path in files)])
