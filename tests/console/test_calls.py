"""``relay calls`` and ``relay explain``: from a real admin listener to rows and sentences on a terminal."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from relay.console import calls as module
from relay.console.calls import Wanted, find, show_calls, show_explanation, wanted_of
from relay.console.listener import AdminListener
from relay.errors import OperatorError
from relay.gateway.calls.store import CallStore, Kept
from relay.plane.api import CloseReason
from tests.support.benches.made_up import MadeUpRelay
from tests.support.waiting import eventually

HOSTILE = "[bold]\x1b[31m\x07\r\n\u202e[/bold]<b>"


def console(width: int = 200) -> Console:
    return Console(file=io.StringIO(), width=width, height=30)


def text_of(screen: Console) -> str:
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


@contextlib.asynccontextmanager
async def relay_with(folder: Path, *users: str) -> AsyncIterator[tuple[MadeUpRelay, AdminListener]]:
    """A relay whose calls have ended, test-1 first, and its address."""
    store = CallStore(Kept(folder / "calls.sqlite3"))
    store.start()
    relay = MadeUpRelay(store)
    try:
        for number, user in enumerate(users, 1):
            made = relay.call(number, username=user)
            made.talk(lost=60)
            relay.end(made, CloseReason.CLIENT_LOST)
        await eventually(lambda: store.written == len(users))
        async with relay.served() as address:
            yield relay, AdminListener(f"http://{address}/")
    finally:
        await store.stop()


def wanted(**options: Any) -> Wanted:
    given = {"user": "", "address": "", "limit": 20, "at": "", "since": "", "until": "", **options}
    return wanted_of(given.pop("user"), given.pop("address"), given.pop("limit"), **given)


# What is asked for


def test_a_moment_is_a_minute() -> None:
    found = wanted(at="2026-11-23T10:30+00:00", user="keller")
    assert (found.since, found.until, found.user) == (1_795_429_800, 1_795_429_859.999, "keller")


def test_a_time_is_from_its_first_moment_to_its_last() -> None:
    found = wanted(since="2026-11-23T10:30+00:00", until="2026-11-23T10:31+00:00")
    assert (found.since, found.until) == (1_795_429_800, 1_795_429_919.999)
    assert wanted(since="2026-11-23T10:30+00:00").until is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"at": "10:32", "since": "10:30"}, "--at: not together with --from and --to"),
        ({"at": "soon"}, "--at soon: expected a time such as 10:32"),
        ({"since": "soon"}, "--from soon: expected a time"),
        ({"until": "soon"}, "--to soon: expected a time"),
        ({"since": "2026-11-24", "until": "2026-11-23"}, "--from 2026-11-24: expected a time that is not after --to"),
    ],
)
def test_what_the_operator_must_mend(options: dict[str, str], said: str) -> None:
    with pytest.raises(OperatorError, match=said):
        wanted(**options)


# Calls


async def test_a_row_for_each_call(tmp_path: Path) -> None:
    async with relay_with(tmp_path, "a.keller", "mei") as (relay, listener):
        screen = console()
        await show_calls(listener, wanted(), screen, as_json=False)
        ended = relay.calls.ended[1]
        began = datetime.fromtimestamp(ended.call.started_at).astimezone()
    head, first, second = text_of(screen).splitlines()
    assert head.split()[:4] == ["id", "user", "client", "upstream"]
    assert first.split()[:4] == ["test-2", "mei", "10.1.2.3:50000", "use1-stun1"]
    assert f"{began:%Y-%m-%d %H:%M:%S}" in first
    assert first.split()[6:] == ["0:05", f"{ended.mos_min:.2f}", "0.0", "24.0", "client_lost"]
    assert second.split()[0] == "test-1"


async def test_a_narrow_terminal_has_the_id_whole(tmp_path: Path) -> None:
    async with relay_with(tmp_path, "a.keller@desk.firm.example") as (_, listener):
        screen = console(80)
        await show_calls(listener, wanted(), screen, as_json=False)
    head, row = text_of(screen).splitlines()
    assert head.split() == ["id", "user", "began", "lasted", "MOS", "min", "ended"]
    assert row.split()[0] == "test-1"
    assert row.split()[-1] == "client_lost"
    assert max(map(len, text_of(screen).splitlines())) <= 80


async def test_as_json_and_by_user_and_time(tmp_path: Path) -> None:
    async with relay_with(tmp_path, "a.keller", HOSTILE) as (_, listener):
        screen = console(20)
        await show_calls(listener, wanted(), screen, as_json=True)
        told = [json.loads(line) for line in text_of(screen).splitlines()]
        assert [(call["id"], call["username"]) for call in told] == [("test-2", HOSTILE), ("test-1", "a.keller")]
        assert text_of(screen).isascii()
        for options, count in (({"user": "KELLER"}, 1), ({"address": "10.1.2.4"}, 0), ({"until": "2020-01-01"}, 0)):
            assert len((await find(listener, wanted(**options)))[0]) == count
        screen = console()
        await show_calls(listener, wanted(until="2020-01-01"), screen, as_json=False)
        assert text_of(screen) == "No call matches.\n"


async def test_more_than_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE", 2)
    async with relay_with(tmp_path, *"abcdefg") as (_, listener):
        for limit, more in ((1, True), (5, True), (7, False), (100, False)):
            found, has_more = await find(listener, wanted(limit=limit))
            assert [call["username"] for call in found] == list("gfedcba")[:limit]
            assert has_more is more
        screen = console()
        await show_calls(listener, wanted(limit=3), screen, as_json=False)
    assert text_of(screen).splitlines()[-1].startswith("The last 3 calls that match. There are more")


async def test_what_peers_choose_cannot_steer_the_terminal(tmp_path: Path) -> None:
    async with relay_with(tmp_path, HOSTILE) as (_, listener):
        screen = console(300)
        await show_calls(listener, wanted(), screen, as_json=False)
        await show_explanation(listener, "test-1", screen, as_json=False)
    assert HOSTILE.encode("unicode_escape").decode() in text_of(screen)
    assert all(character.isprintable() for line in text_of(screen).splitlines() for character in line)


async def test_a_relay_that_keeps_none() -> None:
    async with MadeUpRelay().served() as address:
        with pytest.raises(OperatorError, match=r"answers 503: calls are not kept: see quality\.calls"):
            await find(AdminListener(f"http://{address}"), wanted())


# One call


async def test_sentences(tmp_path: Path) -> None:
    async with relay_with(tmp_path, "a.keller") as (relay, listener):
        screen = console(500)
        await show_explanation(listener, "TEST-1", screen, as_json=False)
        began = datetime.fromtimestamp(relay.calls.ended[0].call.started_at).astimezone()
        offset = f"{began:%z}"
        first, *said = text_of(screen).splitlines()
        assert first.startswith("Call test-1, times in UTC")
        assert offset == "+0000" or f"{offset[:3]}:{offset[3:]}" in first
        assert said[0].startswith("a.keller called from 10.1.2.3:50000")
        assert f"It began at {began:%H:%M:%S}" in said[1]
        assert said[-1] == "The client was lost: its connection was reset, or it no longer answered."
        screen = console(20)
        await show_explanation(listener, "test-1", screen, as_json=True)
        assert json.loads(text_of(screen))["sentences"][0]["rule"] == "who"


@pytest.mark.parametrize("wrong", ["test-9", "", "../../metrics", "a b", "%"])
async def test_no_such_call(tmp_path: Path, wrong: str) -> None:
    async with relay_with(tmp_path, "a.keller") as (_, listener):
        with pytest.raises(OperatorError):
            await show_explanation(listener, wrong, console(), as_json=False)
