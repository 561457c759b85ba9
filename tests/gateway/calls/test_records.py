"""Records of calls: what they say, and that a bad disk costs records and nothing else."""

from __future__ import annotations

import json
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from relay.errors import OperatorError
from relay.gateway.calls import writing
from relay.gateway.calls.records import Records, check_path, make_file, record_of
from relay.plane.api import CloseReason
from tests.support.benches.made_up import MadeUpRelay
from tests.support.waiting import eventually

DEADLINE_S = 60


def record(**given: Any) -> dict[str, Any]:
    return {"id": "test-1", **given}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]


async def test_a_record_says_who_how_and_why() -> None:
    relay = MadeUpRelay()
    made = relay.call(7, username="a.keller")
    made.talk(lost=5, drops=2)
    await relay.calls.look()
    made.talk()
    relay.end(made, CloseReason.SLOW_CLIENT)
    [ended] = relay.calls.ended
    told = record_of(ended)
    assert (told["id"], told["username"], told["region"]) == ("test-7", "a.keller", "use1")
    assert (told["reason"], told["duration_s"], told["drops"]) == ("slow_client", 10.0, {"downlink_old": 2})
    assert (told["downlink"]["packets"], told["downlink"]["expected"], told["downlink"]["lost_percent"]) == (
        495,
        500,
        1.0,
    )
    assert told["downlink"]["mos_min"] < told["downlink"]["mos_mean"] < told["uplink"]["mos_min"]
    assert told["started_at"] < told["ended_at"]
    json.dumps(told, allow_nan=False)


async def test_lines_are_appended_for_their_owner(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    path.write_text('{"id":"0"}\n')
    records = Records(path)
    records.write(record(username="\n\u2028<script>"))
    records.write(record(number=2))
    await records.stop()
    assert lines(path) == [{"id": "0"}, record(username="\n\u2028<script>"), record(number=2)]
    assert (records.written, records.lost) == (2, 0)


async def test_a_new_file_is_not_for_everybody(tmp_path: Path) -> None:
    records = Records(tmp_path / "calls.jsonl")
    records.write(record())
    await records.stop()
    assert stat.S_IMODE((tmp_path / "calls.jsonl").stat().st_mode) & 0o027 == 0


async def test_a_rotated_file_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    records = Records(path)
    records.write(record(number=1))
    await eventually(lambda: records.written == 1)
    path.rename(tmp_path / "calls.jsonl.1")
    records.write(record(number=2))
    await records.stop()
    assert (lines(path), lines(tmp_path / "calls.jsonl.1")) == ([record(number=2)], [record(number=1)])


async def test_a_full_disk_is_counted() -> None:
    records = Records(Path("/dev/full"))
    for number in range(3):
        records.write(record(number=number))
    await records.stop()
    assert (records.written, records.lost) == (0, 3)


async def test_after_a_torn_line_comes_a_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "calls.jsonl"
    full, write = True, os.write

    def torn(descriptor: int, data: bytes) -> int:
        nonlocal full
        if full and len(data) < 10:
            raise OSError(28, "No space left on device")
        return write(descriptor, data[:-5] if full else data)

    monkeypatch.setattr("relay.gateway.calls.records.os.write", torn)
    records = Records(path)
    records.write(record(number=1))
    await eventually(lambda: records.lost == 1)
    full = False
    records.write(record(number=2))
    await records.stop()
    first, second = path.read_text().splitlines()
    assert first == '{"id":"test-1","number":1}'[:-4]
    assert json.loads(second) == record(number=2)
    assert (records.written, records.lost) == (1, 1)


async def test_a_disk_that_hangs_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "FLUSH_TIMEOUT_S", 0.01)
    works, opened = threading.Event(), os.open

    def hangs(*arguments: Any) -> int:
        assert works.wait(DEADLINE_S)
        return opened(*arguments)

    monkeypatch.setattr("relay.gateway.calls.records.os.open", hangs)
    path = tmp_path / "calls.jsonl"
    records = Records(path)
    count = writing.WAITING + 50
    for number in range(count):
        records.write(record(number=number))
    # The thread may hold some hundreds that it has taken already.
    waiting = records.lost
    await records.stop()
    records.write(record())
    assert records.lost == waiting + 1
    works.set()
    await eventually(lambda: records.written + records.lost == count + 1)
    assert len(lines(path)) == records.written


async def test_a_mistake_costs_what_it_is_in(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    records = Records(path)
    with capture_logs() as told:
        records.write(record(number=object()))
        await eventually(lambda: records.lost == 1)
        records.write(record(number=2))
        await records.stop()
    assert (lines(path), records.written, records.lost) == ([record(number=2)], 1, 1)
    assert [line["event"] for line in told] == ["not written"]


async def test_a_file_that_is_taken_away_costs_what_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    works, opened = threading.Event(), os.open

    def hangs(*arguments: Any) -> int:
        assert works.wait(DEADLINE_S)
        return opened(*arguments)

    monkeypatch.setattr("relay.gateway.calls.records.os.open", hangs)
    records = Records(tmp_path / "calls.jsonl")
    records.write(record(number=1))
    await eventually(lambda: records.idle)
    records.write(record(number=2))
    records.path = None
    works.set()
    await records.stop()
    assert (records.written, records.lost) == (1, 1)


async def test_a_pipe_without_a_reader_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OperatorError, match=r"cannot write .*/pipe"):
        check_path(tmp_path / "pipe")


async def test_without_a_file_nothing_is_written() -> None:
    records = Records(None)
    records.write(record())
    await records.stop()
    assert (records.written, records.lost) == (0, 0)


def test_the_check_of_a_file_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    check_path(path)
    assert list(tmp_path.iterdir()) == []
    path.write_text("{}\n")
    check_path(path)
    assert path.read_text() == "{}\n"


def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    link = tmp_path / "calls.jsonl"
    link.symlink_to(tmp_path / "none" / "calls.jsonl")
    for look in (check_path, make_file):
        with pytest.raises(OperatorError, match="no such file or directory"):
            look(link)
    (tmp_path / "none").mkdir()
    check_path(link)
    assert not link.exists()
    make_file(link)
    assert link.exists()


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OperatorError) as refused:
        check_path(tmp_path / "none" / "calls.jsonl")
    assert (
        str(refused.value) == f"cannot write {tmp_path}/none/calls.jsonl (quality.records): no such file or directory"
    )
    with pytest.raises(OperatorError, match="is a directory"):
        check_path(tmp_path)
