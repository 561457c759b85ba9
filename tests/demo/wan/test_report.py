"""The story's table, note, JSON and files: every figure under its name, and nothing claimed that was simulated."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from relay.demo.wan.report import EXPLANATION, json_of, make_folder, note_of, table_of, write_files
from relay.demo.wan.story import Story, Told
from relay.demo.wan.way import RELAY, TLS, UDP
from relay.errors import OperatorError
from relay.quality.playout import play


def told(way: str, *delays_ms: float | None, wrong: int = 0) -> Told:
    return Told(way, play(delays_ms), play([40.0]), wrong, 9, f"sound of {way}".encode())


CALLS = (told(UDP, 40, None, 41), told(TLS, 40, 101.6, 41), told(RELAY, None, None))


def shown(story: Story) -> list[str]:
    console = Console(file=io.StringIO(), width=80, record=True)
    console.print(table_of(story))
    return [line.rstrip() for line in console.export_text().splitlines() if line.strip()]


def test_table() -> None:
    title, head, _, *rows = shown(Story(CALLS, None))
    assert title == "One sentence over a path: 40 ms each way, 3 % loss"
    assert head.split() == ["way", "sent", "lost", "late", "p50", "ms", "p99", "ms", "MOS"]
    cells = [row.split("  ") for row in rows]
    figures = [[cell.strip() for cell in row if cell.strip()] for row in cells]
    assert figures[0][:6] == [UDP, "3", "1", "0", "40", "41"]
    assert figures[1][:6] == [TLS, "3", "0", "1", "41", "102"]
    assert figures[2] == [RELAY, "2", "2", "0", "-", "-", "1.00"]


def test_the_table_of_a_simulated_path_says_so_and_fits() -> None:
    title, *rest = shown(Story(CALLS, "nobody may make one"))
    assert title == "One sentence over a simulated path: 40 ms each way, 3 % loss"
    assert "…" not in "".join(rest)


def test_note_of_a_simulation_has_the_reason_and_what_was_real() -> None:
    assert note_of(Story(CALLS, None)) == ""
    note = note_of(Story(CALLS, "nobody may make one"))
    assert note.startswith("The path was simulated, because nobody may make one.\n")
    assert "the relay were real" in note
    assert "model" in note
    assert all(len(line) <= 100 for text in (note, EXPLANATION) for line in text.splitlines())


def test_json_has_both_ways_of_each_call() -> None:
    story = Story((*CALLS[:2], told(RELAY, 40, wrong=1)), None)
    report = json.loads(json.dumps(json_of(story, [Path(name) for name in "abc"])))
    assert (report["simulated"], report["delay_ms"], report["loss_percent"]) == (None, 40, 3)
    assert report["authentic"] is False
    assert [(way["way"], way["file"], way["wrong"]) for way in report["ways"]] == [
        (UDP, "a", 0),
        (TLS, "b", 0),
        (RELAY, "c", 1),
    ]
    first = report["ways"][0]
    assert first["path_lost"] == 9
    trader = {name: first["trader"][name] for name in ("sent", "received", "lost", "late")}
    assert trader == {"sent": 3, "received": 2, "lost": 1, "late": 0}
    assert first["trader"]["codec"] == "G.711 with concealment"
    assert first["other"]["received"] == 1
    assert json_of(Story(CALLS, "why"), [Path()] * 3)["simulated"] == "why"


def test_files_replace_those_of_an_earlier_run(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "down"
    make_folder(folder)
    make_folder(folder)
    (folder / "1-udp.wav").write_bytes(b"old")
    files = write_files(folder, CALLS)
    assert [file.name for file in files] == ["1-udp.wav", "2-tls.wav", "3-relay.wav"]
    assert [file.read_bytes() for file in files] == [call.wav for call in CALLS]


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "file", tmp_path / "file" / "in it"):
        with pytest.raises(OperatorError, match=str(folder)):
            make_folder(folder)
