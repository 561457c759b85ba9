"""Folders of results: two runs never write into one, and what an earlier one has left stays."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from loadtest.plan.target import Target
from loadtest.running.folders import claimed, make_folder, new_folder, require_free
from relay.errors import OperatorError
from tests.loadtest.running.driver import RELAY, run_small, small

NOBODY = Target.model_validate({"server": "127.0.0.1:9"})


def test_runs_that_begin_in_one_second_have_folders_of_their_own(tmp_path: Path) -> None:
    folders = [new_folder(tmp_path / "results", "mine/desk.toml") for _ in range(20)]
    assert len(set(folders)) == 20
    assert all(re.fullmatch(r"desk-\d{8}-\d{6}(-\d+)?", one.name) for one in folders)
    assert all(one.is_dir() for one in folders)


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for make in (new_folder, lambda base, _: make_folder(base)):
        with pytest.raises(OperatorError, match=f"{tmp_path}/file.*expected a folder for the report"):
            make(tmp_path / "file", "desk")


@pytest.mark.parametrize("left", ["result.json", "capacity.json", "001-demo-tls-50"])
def test_what_an_earlier_run_has_left_is_not_touched(tmp_path: Path, left: str) -> None:
    (tmp_path / left).mkdir() if left.startswith("001") else (tmp_path / left).write_text("earlier")
    for name in ("record.jsonl", "report.html", "locust.log"):
        (tmp_path / name).write_text("earlier")
    before = {one.name: one.stat().st_mtime_ns for one in tmp_path.iterdir()}
    with pytest.raises(OperatorError, match=f"{left}: an earlier run has left it; expected a folder without a result"):
        run_small(tmp_path, NOBODY)
    with pytest.raises(OperatorError, match="an earlier run has left it"):
        require_free(tmp_path)
    assert {one.name: one.stat().st_mtime_ns for one in tmp_path.iterdir()} == before


def test_the_command_refuses_it_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("earlier")
    for command in (["run", "desk"], ["capacity", "--to", "2"]):
        ran = subprocess.run(
            [*RELAY, "loadtest", *command, "-o", str(tmp_path)], capture_output=True, text=True, check=False, timeout=60
        )
        assert ran.returncode == 2
        assert ran.stderr == (
            f"relay: {tmp_path / 'result.json'}: an earlier run has left it; expected a folder without a result\n"
        )
    assert [one.name for one in tmp_path.iterdir()] == ["result.json"]


def test_a_folder_that_another_run_writes_into(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    profile = small(shape={"ramp_s": 0, "hold_s": 3600})
    refused: list[str] = []

    def second_run() -> bool:
        """Once the first run writes; then the first may end."""
        if (folder / "record.jsonl").stat().st_size and not refused:
            with pytest.raises(OperatorError) as raised:
                run_small(folder, NOBODY)
            refused.append(str(raised.value))
        return bool(refused)

    make_folder(folder)
    result = run_small(folder, NOBODY, profile, interrupted=second_run)
    assert refused == [f"{folder}: another run writes into it; expected a folder of its own"]
    assert result.interrupted
    assert (folder / "record.jsonl").read_text().count('"kind": "interval"') == len(result.intervals) > 0


def test_it_belongs_to_a_run_until_the_last_process_of_it_has_ended(tmp_path: Path) -> None:
    with claimed(tmp_path) as claim:
        heir = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=(claim,))
    try:
        with pytest.raises(OperatorError, match="another run writes into it"):
            require_free(tmp_path)
    finally:
        heir.communicate()
    require_free(tmp_path)
