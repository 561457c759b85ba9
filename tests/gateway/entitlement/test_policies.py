"""Lists of users: which entry fits whom, what a file may say, and that a bad one costs nothing but a line of log."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from relay.config import parse_users
from relay.errors import OperatorError
from relay.gateway.entitlement import policies
from relay.gateway.entitlement.policies import NOBODY, PolicyUnavailable, Question, Rule, UserFile, UserList, load_users
from tests.support.waiting import eventually


def listed(*users: dict[str, Any]) -> UserList:
    return UserList(parse_users({"users": list(users)}, source="test"))


def rule(users: UserList | UserFile, user: str) -> Rule:
    return users.rule_now(Question(user, "use1", "192.0.2.1"))


@pytest.mark.parametrize(
    ("pattern", "fits", "others"),
    [
        ("ann", ["ann"], ["Ann", "ann ", "", "anna", "an"]),
        ("*@desk.example", ["ann@desk.example", "@desk.example"], ["ann@desk.example.org", "ann@Desk.example", "ann"]),
        ("svc-*", ["svc-", "svc-7"], ["svc", "my-svc-7"]),
        ("a*a", ["aa", "aba"], ["a", "ab"]),
        ("*", ["", "ann", "x" * 508], []),
        ("jo\u0308rg", ["j\u00f6rg"], ["jorg"]),  # decomposed in the list
        ("ann.*[x]", ["ann.a[x]"], ["ann.ax", "annxx"]),  # no other letter is special
    ],
)
def test_patterns(pattern: str, fits: list[str], others: list[str]) -> None:
    users = listed({"user": pattern})
    assert [user for user in [*fits, *others] if rule(users, user) == Rule()] == fits
    assert all(rule(users, user) is NOBODY for user in others)


def test_the_closest_entry_counts() -> None:
    users = listed(
        {"user": "*", "allowed": False},
        {"user": "*@desk.example", "calls": 1},
        {"user": "ann@*", "calls": 2},
        {"user": "ann@desk.example", "calls": 3, "regions": ["use1", "euc1"]},
    )
    assert rule(users, "ann@desk.example") == Rule(True, 3, frozenset({"use1", "euc1"}))
    assert rule(users, "bob@desk.example").calls == 1
    assert rule(users, "ann@floor.example").calls == 2
    assert not rule(users, "bob@floor.example").allowed
    assert len(users) == 4


def test_who_is_not_on_the_list_may_not() -> None:
    assert rule(listed(), "ann") is NOBODY


# Files


def test_toml_and_json_say_the_same(tmp_path: Path) -> None:
    users = [{"user": "ann", "calls": 2, "regions": ["use1"]}, {"user": "*@desk.example", "allowed": False}]
    (tmp_path / "users.json").write_text(json.dumps({"users": users}))
    (tmp_path / "users.toml").write_text(
        '[[users]]\nuser = "ann"\ncalls = 2\nregions = ["use1"]\n[[users]]\nuser = "*@desk.example"\nallowed = false\n'
    )
    for name in ("users.json", "users.toml"):
        loaded = load_users(tmp_path / name)
        assert rule(loaded, "ann") == Rule(True, 2, frozenset({"use1"}))
        assert rule(loaded, "x@desk.example") == NOBODY


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("users.toml", b"users = 1", "users: 1: expected a list"),
        ("users.toml", b"users = [1]", "users.0: 1: expected a table of keys and values"),
        ("users.toml", b"[[users]]\n", "users.0.user: required, but missing"),
        (
            "users.toml",
            b"[[users]]\nuser = 'a*b*'",
            "users.0.user: 'a*b*': expected a user name, or a pattern with one",
        ),
        ("users.toml", b"[[users]]\nuser = ''", "users.0.user: '': expected a user name, or a pattern with one"),
        ("users.toml", b"[[users]]\nuser = 'a'\ncalls = 0", "users.0.calls: 0: expected greater than or equal to 1"),
        ("users.toml", b"[[users]]\nuser = 'a'\ncalls = '2'", "users.0.calls: '2': expected a valid integer"),
        ("users.toml", b"[[users]]\nuser = 'a'\nallowed = 1", "users.0.allowed: 1: expected a valid boolean"),
        ("users.toml", b"[[users]]\nuser = 'a'\nregions = []", "users.0.regions: expected at least one"),
        ("users.toml", b"[[users]]\nuser = 'a'\nregion = 'x'", "users.0.region: unknown key"),
        ("users.toml", b"[[users]]\nuser = 'a'\n[[users]]\nuser = 'a'", "users: the user 'a' is given twice"),
        ("users.toml", b"user = 'a'", "user: unknown key"),
        ("users.toml", b"\xff", "not valid TOML"),
        ("users.json", b"{", "not valid JSON"),
        ("users.json", b"[" * 100_000, "not valid JSON"),
        ("users.json", b'"users"', "expected a table of keys and values"),
        ("users.json", b"", "not valid JSON"),
    ],
)
def test_mistakes_in_a_file(tmp_path: Path, name: str, content: bytes, complaint: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(OperatorError, match="users") as told:
        load_users(path)
    assert str(told.value).startswith(str(path))
    assert complaint in str(told.value)


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (tmp_path / "absent.toml", tmp_path):
        with pytest.raises(OperatorError, match=r"entitlement\.file"):
            load_users(path)
    monkeypatch.setattr(policies, "MAX_FILE_BYTES", 10)
    (tmp_path / "long.toml").write_text("# 3456789\n#")
    with pytest.raises(OperatorError, match="at most 10 bytes"):
        load_users(tmp_path / "long.toml")


async def test_a_changed_file_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "WATCH_INTERVAL_S", 0.01)
    path = tmp_path / "users.toml"
    path.write_text("[[users]]\nuser = 'ann'")
    users = UserFile(path)
    users.load()
    users.watch()
    try:
        assert rule(users, "ann").allowed
        replacement = tmp_path / "new"
        replacement.write_text("[[users]]\nuser = 'bob'")
        os.replace(replacement, path)
        await eventually(lambda: rule(users, "bob").allowed)
        assert not rule(users, "ann").allowed
        # A time that is set back is a change, too.
        path.write_text("[[users]]\nuser = 'cid'")
        os.utime(path, (1, 1))
        await eventually(lambda: rule(users, "cid").allowed)
    finally:
        await users.close()


async def test_a_bad_file_keeps_the_list_and_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "WATCH_INTERVAL_S", 0.01)
    path = tmp_path / "users.toml"
    path.write_text("[[users]]\nuser = 'ann'")
    users = UserFile(path)
    with capture_logs() as lines:
        users.load()
        users.watch()
        path.write_text("[[users]]\nname = 'bob'")
        await eventually(lambda: "name: unknown key" in users.trouble)
        assert rule(users, "ann").allowed
        # Touched, and still bad: nothing new to say.
        seen = users._seen
        os.utime(path, (2, 2))
        await eventually(lambda: users._seen != seen)
        path.unlink()
        await eventually(lambda: "no such file" in users.trouble)
        assert rule(users, "ann").allowed
        path.write_text("[[users]]\nuser = 'bob'")
        await eventually(lambda: not users.trouble)
        assert rule(users, "bob").allowed
        await users.close()
    errors = [line["cause"] for line in lines if line["log_level"] == "error"]
    assert len([cause for cause in errors if "unknown key" in cause]) == 1
    assert len([cause for cause in errors if "no such file" in cause]) == 1


async def test_without_any_list_nobody_knows(tmp_path: Path) -> None:
    users = UserFile(tmp_path / "absent.toml")
    users.load()
    with pytest.raises(PolicyUnavailable, match="no such file"):
        rule(users, "ann")
    with pytest.raises(PolicyUnavailable):
        await users.rule(Question("ann", "use1", "192.0.2.1"))


async def test_watching_ends(tmp_path: Path) -> None:
    users = UserFile(tmp_path / "absent.toml")
    users.watch()
    await asyncio.sleep(0)
    await users.close()
