"""The board: what may be put on it, whom a fault concerns, and when it ends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from relay import catalog
from relay.emulator.faults import board as board_module
from relay.emulator.faults.board import FaultBoard
from relay.emulator.faults.kinds import KINDS, BadSetting, FaultSetting, Hop, Kind
from relay.emulator.marks import Mark

LOSS = (Hop.DESK_UDP, Kind.LOSS)
HOST = "use1-stun1.xhoot.com"


async def new_board() -> FaultBoard:
    return FaultBoard(catalog.load())


def test_every_kind_is_described_and_can_be_put() -> None:
    assert set(KINDS) == set(Kind)
    assert KINDS[Kind.UDP_BLOCKED].mark is Mark.DOCUMENTED
    for spec in KINDS.values():
        assert spec.description.endswith(".")
        assert spec.symptom.endswith(".")
        assert FaultSetting(**spec.defaults)
    assert {hop for spec in KINDS.values() for hop in spec.hops} == set(Hop)


async def test_defaults_complete_what_is_put() -> None:
    board = await new_board()
    assert board.put(*LOSS, FaultSetting()).setting.percent == 5.0
    assert board.put(*LOSS, FaultSetting(percent=50)).setting.percent == 50
    assert [fault.setting.percent for fault in board.active] == [50]
    assert board.put(Hop.WEB_PROXY, Kind.STALL, FaultSetting()).until is not None
    board.close()
    assert board.active == []


async def test_a_target_limits_whom_it_concerns() -> None:
    board = await new_board()
    board.put(*LOSS, FaultSetting(target="use1"))
    board.put(*LOSS, FaultSetting(target="EUC1-stun1.xhoot.com.", percent=9))
    assert board.find(*LOSS, HOST, "use1") is not None
    assert board.find(*LOSS, "euc1-stun2.xhoot.com", "euc1") is None
    found = board.find(*LOSS, "euc1-stun1.xhoot.com", "euc1")
    assert found is not None
    assert found.setting.percent == 9
    board.put(*LOSS, FaultSetting(percent=1))
    assert board.find(*LOSS, "euc1-stun2.xhoot.com", "euc1") is not None
    assert board.find(Hop.DESK_UDP, Kind.DELAY, HOST, "use1") is None
    assert board.remove(*LOSS) == 3
    assert board.remove(*LOSS) == 0
    board.close()


@pytest.mark.parametrize(
    ("hop", "kind", "setting", "where"),
    [
        (Hop.CLOUD, Kind.LOSS, {}, "path.hop"),
        (Hop.WEB_PROXY, Kind.LOSS, {}, "path.hop"),
        (Hop.DESK_UDP, Kind.LOSS, {"delay_ms": 5}, "body.delay_ms"),
        (Hop.DESK_UDP, Kind.LOSS, {"target": "nowhere"}, "body.target"),
        (Hop.DESK_UDP, Kind.LOSS, {"target": "x.example.com"}, "body.target"),
        (Hop.WEB_PROXY, Kind.DELAY, {"target": "use1"}, "body.target"),
        (Hop.WEB_PROXY, Kind.UPGRADE_STRIPPED, {"target": "use1"}, "body.target"),
        (Hop.CLOUD, Kind.REGION_DOWN, {}, "body.target"),
        (Hop.CLOUD, Kind.REGION_DOWN, {"target": HOST}, "body.target"),
        (Hop.CLOUD, Kind.NAME_NOT_FOUND, {}, "body.target"),
        (Hop.CLOUD, Kind.NAME_NOT_FOUND, {"target": "use1"}, "body.target"),
        (Hop.CLOUD, Kind.SLOW_RECORDER, {"idle_s": 1}, "body.idle_s"),
        (Hop.CLOUD, Kind.EXPIRED_CREDENTIALS, {"percent": 1}, "body.percent"),
    ],
)
async def test_what_does_not_fit_is_refused(hop: Hop, kind: Kind, setting: dict[str, Any], where: str) -> None:
    board = await new_board()
    with pytest.raises(BadSetting) as refused:
        board.put(hop, kind, FaultSetting(**setting))
    assert refused.value.where == where
    assert refused.value.expected
    assert board.active == []
    board.close()


async def test_the_board_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_module, "MAX_FAULTS", 2)
    board = await new_board()
    for target in ("use1", "euc1"):
        board.put(*LOSS, FaultSetting(target=target))
    with pytest.raises(BadSetting, match="2 faults are on"):
        board.put(*LOSS, FaultSetting())
    board.put(*LOSS, FaultSetting(target="use1", percent=7))
    assert len(board.active) == 2
    board.close()


async def test_a_fault_ends_by_itself_and_everyone_hears_of_it() -> None:
    board = await new_board()
    heard: list[int] = []
    board.on_change(lambda: heard.append(len(board.active)))
    board.put(Hop.WEB_PROXY, Kind.STALL, FaultSetting(seconds=0.05))
    board.put(*LOSS, FaultSetting())
    await board.until_off(Hop.WEB_PROXY, Kind.STALL)
    assert heard == [1, 2, 1]
    assert [fault.kind for fault in board.active] == [Kind.LOSS]
    assert board.remaining_s(board.active[0]) is None
    board.close()


async def test_waiting_ends_when_it_is_taken_off() -> None:
    board = await new_board()
    board.put(Hop.WEB_PROXY, Kind.STALL, FaultSetting(seconds=3600))
    remaining = board.remaining_s(board.active[0])
    assert remaining is not None
    # The clock's numbers are large, so a sum is a little off.
    assert 3599 < remaining < 3601
    waiting = asyncio.ensure_future(board.until_off(Hop.WEB_PROXY, Kind.STALL))
    await asyncio.sleep(0)
    board.put(*LOSS, FaultSetting())
    await asyncio.sleep(0)
    assert not waiting.done()
    assert board.clear() == 2
    await waiting
    board.close()


def test_a_password_is_not_shown() -> None:
    assert "secret" not in repr(FaultSetting(username="desk", password="secret"))
