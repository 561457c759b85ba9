"""Fixtures: the default set, and one clear line for each kind of mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from relay.emulator import fixtures
from relay.emulator.lines import LineKind, MemberRole
from relay.errors import OperatorError

SMALL = """
[[firms]]
id = "atlas"
name = "Atlas"
[[users]]
id = "anna"
firm = "atlas"
name = "Anna"
email = "anna@atlas.example"
password = "secret-of-anna"
[[users]]
id = "ben"
firm = "atlas"
name = "Ben"
email = "ben@atlas.example"
password = "trader"
"""
LINE = '[[lines]]\nnumber = "sPK-10000001-100001"\nkind = "ringdown"\nlabel = "l"\nmembers = ["anna", "ben"]\n'


def test_the_default_set_has_two_firms_twelve_users_and_every_kind_of_line() -> None:
    found = fixtures.bundled()
    assert len(found.firms) == 2
    assert len(found.users) == 12
    assert {line.kind for line in found.lines} == set(LineKind)
    assert {user.firm for user in found.users} == {firm.id for firm in found.firms}


def test_the_first_two_users_call_each_other_in_any_browser_and_two_others_through_the_relay() -> None:
    found = fixtures.bundled()
    through_relay = {user.id: user.voice_via_web_proxy for user in found.users}
    assert list(through_relay.items())[:2] == [("anna", False), ("ben", False)]
    assert (through_relay["dora"], through_relay["emil"]) == (True, True)
    both_ways = [line for line in found.lines if line.kind in {LineKind.RINGDOWN, LineKind.INTERCOM}]
    for pair in ({"anna", "ben"}, {"dora", "emil"}):
        assert any(pair <= set(line.members) for line in both_ways)


def test_a_member_who_is_not_a_talker_listens(tmp_path: Path) -> None:
    file = tmp_path / "f.toml"
    file.write_text(SMALL + LINE + 'talkers = ["anna"]\n')
    line = fixtures.load(file).lines[0]
    assert (line.role_of("anna"), line.role_of("ben")) == (MemberRole.TALKER, MemberRole.LISTENER)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "firms: required, but missing"),
        (SMALL + "[[firms]]\nid = 'atlas'\nname = 'Again'\n", "firms: the id 'atlas' is given twice"),
        (SMALL + "colour = 1\n", "users.1.colour: unknown key"),
        (SMALL.replace('firm = "atlas"', 'firm = "atals"', 1), "users.0.firm: 'atals' is not in this file"),
        (SMALL.replace('"trader"', '"x"'), "users.1: password: expected 4 to 128 characters"),
        (SMALL.replace('password = "trader"', ""), "users.1: expected either password or password_hash"),
        (SMALL.replace('password = "trader"', 'password_hash = "md5"'), "users.1: password_hash: expected an Argon2id"),
        (SMALL.replace("ben@", "anna@"), "users: the email 'anna@atlas.example' is given twice"),
        (SMALL + LINE + LINE, "lines: the number 'sPK-10000001-100001' is given twice"),
        (SMALL + LINE.replace("ringdown", "party"), "lines.0.kind: 'party': expected 'ringdown', 'shoutdown'"),
        (SMALL + LINE.replace('"ben"', '"bob"'), "lines.0.members: 'bob' is not in this file"),
        (SMALL + LINE.replace(', "ben"', ""), "lines.0: members: 1 given; a ringdown line has 2 to 32"),
        (SMALL + LINE + 'talkers = ["fay"]\n', "lines.0: talkers: 'fay' is not a member"),
        (SMALL + LINE + "talkers = []\n", "lines.0: members: a ringdown line needs at least one talker"),
        (SMALL + LINE.replace("ringdown", "broadcast"), "a broadcast line has exactly one talker: name it in talkers"),
        (SMALL + LINE + 'region = "mars"\n', "lines.0.region: 'mars': expected one of use1, euc1, apse1, apse2"),
        (
            SMALL + '[[buttons]]\nuser = "anna"\nposition = 0\nlabel = "b"\nline = "sPK-10000001-100001"\n',
            "buttons.0.position: 0: expected greater than or equal to 1",
        ),
        (
            SMALL + '[[buttons]]\nuser = "anna"\nposition = 1\nlabel = "b"\nline = "sPK-10000001-100001"\n',
            "buttons.0.line: 'sPK-10000001-100001' is not in this file",
        ),
        (SMALL + '[[api_keys]]\nkey = "k"\nsecret = "short"\nfirm = "atlas"\nname = "n"\n', "api_keys.0.secret: "),
        ("firms = [", "not valid TOML"),
    ],
)
def test_each_mistake_is_one_clear_line(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "f.toml"
    file.write_text(text)
    with pytest.raises(OperatorError) as error:
        fixtures.load(file)
    assert told in str(error.value)
    assert all(line.startswith(str(file)) for line in str(error.value).splitlines())
    assert "secret-of-anna" not in str(error.value)


def test_a_list_is_too_short_only_if_it_is(tmp_path: Path) -> None:
    file = tmp_path / "f.toml"
    file.write_text("users = []\n[[firms]]\nid = 'a'\nname = 'A'\n")
    with pytest.raises(OperatorError) as error:
        fixtures.load(file)
    assert str(error.value) == f"{file}: users: expected at least 1 of them"
    # One user, with one mistake.
    file.write_text(SMALL.partition('id = "ben"')[0].removesuffix("[[users]]\n") + "colour = 1\n")
    with pytest.raises(OperatorError) as error:
        fixtures.load(file)
    assert str(error.value) == f"{file}: users.0.colour: unknown key"


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(OperatorError, match="No such file"):
        fixtures.load(Path("/nowhere/f.toml"))
