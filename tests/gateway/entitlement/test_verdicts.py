"""Decisions: user, region, calls at once, what happens when nobody can say, and what is counted and logged."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from relay import config
from relay.errors import OperatorError
from relay.gateway.entitlement.verdicts import Entitlement, Verdict, VerdictOutcome, check_entitlement, user_of
from tests.support.peers.user_service import user_service
from tests.support.waiting import eventually

CLIENT = "192.0.2.1"
STATIC = {
    "policy": "static",
    "users": [
        {"user": "ann", "calls": 1},
        {"user": "*@desk.example", "regions": ["use1"]},
        {"user": "bob", "allowed": False},
    ],
}


@contextlib.asynccontextmanager
async def entitled(**keys: Any) -> AsyncIterator[Entitlement]:
    entitlement = Entitlement(config.EntitlementSettings(**keys), lambda _: True)
    entitlement.start()
    try:
        yield entitlement
    finally:
        await entitlement.stop()


def outcome(entitlement: Entitlement, username: str, region: str = "use1") -> VerdictOutcome:
    verdict = entitlement.decide_now(username, region, CLIENT)
    assert verdict is not None
    return verdict.outcome


@pytest.mark.parametrize(
    ("username", "user"),
    [
        ("1795358992:ann", "ann"),
        ("0:ann:b", "ann:b"),
        ("12:", ""),
        ("ann", "ann"),
        ("ann:12", "ann:12"),
        (":ann", ":ann"),
        ("-1:ann", "-1:ann"),
        ("\u0661:ann", "\u0661:ann"),
        ("1 :ann", "1 :ann"),
        ("9" * 500 + ":ann", "ann"),
        ("", ""),
    ],
)
def test_the_user_of_a_time_limited_name(username: str, user: str) -> None:
    assert user_of(username) == user


async def test_without_a_policy_nobody_is_asked() -> None:
    async with entitled() as entitlement:
        assert (entitlement.asks_for_users, entitlement.policy, entitlement.trouble) == (False, "none", "")
        # A flow may ask still, that began under another policy.
        assert outcome(entitlement, "anybody") is VerdictOutcome.ADMITTED
        assert (await entitlement.decide("anybody", "", CLIENT)).admitted


async def test_user_region_and_calls() -> None:
    async with entitled(**STATIC) as entitlement:
        assert entitlement.asks_for_users
        assert outcome(entitlement, "ann") is VerdictOutcome.ADMITTED
        assert outcome(entitlement, "Ann") is VerdictOutcome.NOT_ENTITLED
        assert outcome(entitlement, "bob") is VerdictOutcome.NOT_ENTITLED
        assert outcome(entitlement, "cid@desk.example") is VerdictOutcome.ADMITTED
        assert outcome(entitlement, "cid@desk.example", "euc1") is VerdictOutcome.REGION
        assert outcome(entitlement, "bob", "euc1") is VerdictOutcome.NOT_ENTITLED
        assert entitlement.counts[VerdictOutcome.NOT_ENTITLED] == 3
        assert entitlement.counts[VerdictOutcome.ADMITTED] == 0  # nobody was granted anything


async def test_calls_at_once_over_all_names_of_a_user() -> None:
    async with entitled(**STATIC) as entitlement:
        first = await entitlement.decide("1:ann", "use1", CLIENT)
        assert entitlement.grant(1, first).admitted
        second = await entitlement.decide("2:ann", "use1", CLIENT)
        refused = entitlement.grant("session", second)
        assert (refused.outcome, refused.error) == (
            VerdictOutcome.TOO_MANY_CALLS,
            (486, "Allocation Quota Reached: too many calls at once"),
        )
        assert entitlement.calls == 1
        for _ in range(2):
            entitlement.release(1)
        assert entitlement.grant("session", second).admitted
        assert (entitlement.counts[VerdictOutcome.ADMITTED], entitlement.counts[VerdictOutcome.TOO_MANY_CALLS]) == (
            2,
            1,
        )


async def test_names_may_be_taken_as_they_are() -> None:
    async with entitled(**STATIC, rest_usernames=False) as entitlement:
        assert outcome(entitlement, "ann") is VerdictOutcome.ADMITTED
        assert outcome(entitlement, "1:ann") is VerdictOutcome.NOT_ENTITLED


async def test_composed_and_decomposed_letters_are_the_same() -> None:
    async with entitled(policy="static", users=[{"user": "j\u00f6rg"}]) as entitlement:
        assert outcome(entitlement, "jo\u0308rg") is VerdictOutcome.ADMITTED


CODES = {
    VerdictOutcome.NOT_ENTITLED: 403,
    VerdictOutcome.REGION: 403,
    VerdictOutcome.TOO_MANY_CALLS: 486,
    VerdictOutcome.UNAVAILABLE: 403,
    VerdictOutcome.BAD_REQUEST: 400,
}


@pytest.mark.parametrize(("outcome", "code"), CODES.items())
def test_each_refusal_has_an_error(outcome: VerdictOutcome, code: int) -> None:
    verdict = Verdict(outcome, "ann", "use1", CLIENT)
    assert not verdict.admitted
    assert verdict.error is not None
    assert verdict.error.code == code
    # RFC 8489 section 14.8: fewer than 128 characters.
    assert 0 < len(verdict.error.reason) < 128


def test_every_outcome_admits_or_refuses() -> None:
    for one in VerdictOutcome:
        verdict = Verdict(one, "", "", "")
        assert verdict.admitted is (verdict.error is None)


# Failures


@pytest.mark.parametrize(
    ("fail", "expected"), [("closed", VerdictOutcome.UNAVAILABLE), ("open", VerdictOutcome.ADMITTED_UNASKED)]
)
async def test_a_file_that_was_never_good(tmp_path: Path, fail: str, expected: VerdictOutcome) -> None:
    async with entitled(policy="file", file=tmp_path / "absent.toml", fail=fail) as entitlement:
        assert outcome(entitlement, "ann") is expected
        assert (await entitlement.decide("ann", "use1", CLIENT)).outcome is expected
        assert "no such file" in entitlement.trouble


@pytest.mark.parametrize(
    ("fail", "expected"), [("closed", VerdictOutcome.UNAVAILABLE), ("open", VerdictOutcome.ADMITTED_UNASKED)]
)
async def test_a_service_that_fails(fail: str, expected: VerdictOutcome) -> None:
    async with user_service() as service, entitled(policy="http", url=service.url, fail=fail) as entitlement:
        service.says({}, 500)
        assert entitlement.decide_now("ann", "use1", CLIENT) is None
        verdict = await entitlement.decide("ann", "use1", CLIENT)
        assert (verdict.outcome, entitlement.trouble) == (expected, "expected status 200, but it is 500")
        assert outcome(entitlement, "ann") is expected  # remembered for a moment
        assert service.users == ["ann"]
        if verdict.admitted:
            entitlement.grant(1, verdict)
        assert entitlement.counts[expected] == (1 if verdict.admitted else 2)


async def test_the_service_is_asked_for_the_user_without_expiry() -> None:
    async with user_service() as service, entitled(policy="http", url=service.url) as entitlement:
        service.says({"allowed": True, "calls": 1})
        for number in range(3):
            assert (await entitlement.decide(f"{number}:ann", "use1", CLIENT)).admitted
        assert service.users == ["ann"]


# Logs


async def test_refusals_are_logged_with_who_and_where_and_not_without_end() -> None:
    async with entitled(**STATIC) as entitlement:
        with capture_logs() as lines:
            for _ in range(500):
                await entitlement.decide("7:" + "b" * 200, "use1", CLIENT)
            entitlement.grant(1, await entitlement.decide("ann", "use1", CLIENT))
            entitlement.grant(2, await entitlement.decide("ann", "use1", CLIENT))
        assert entitlement.counts[VerdictOutcome.NOT_ENTITLED] == 500
        assert lines[0] == {
            "event": "not entitled",
            "log_level": "info",
            "verdict": "not_entitled",
            "username": "7:" + "b" * 126,
            "region": "use1",
            "client": CLIENT,
        }
        assert len(lines) < 100
        assert (lines[-1]["verdict"], lines[-1]["username"]) == ("too_many_calls", "ann")


# New settings


async def test_other_settings_count_from_now_on(tmp_path: Path) -> None:
    users = tmp_path / "users.toml"
    users.write_text("[[users]]\nuser = 'cid'")
    async with entitled(**STATIC) as entitlement:
        assert entitlement.grant(1, await entitlement.decide("ann", "use1", CLIENT)).admitted
        entitlement.configure(config.EntitlementSettings(policy="file", file=users))
        assert outcome(entitlement, "cid") is VerdictOutcome.ADMITTED
        assert outcome(entitlement, "ann") is VerdictOutcome.NOT_ENTITLED
        assert entitlement.calls == 1  # who has been admitted stays so
        # The same file, and it is bad now: the list stays.
        users.write_text("[[users]]\nname = 'dan'")
        settings = config.EntitlementSettings(policy="file", file=users)
        entitlement.check(settings)
        entitlement.configure(settings)
        assert outcome(entitlement, "cid") is VerdictOutcome.ADMITTED
        # Another one that is bad is a mistake in the configuration.
        with pytest.raises(OperatorError, match=r"other\.toml"):
            entitlement.check(config.EntitlementSettings(policy="file", file=tmp_path / "other.toml"))
        users.write_text("[[users]]\nuser = 'dan'")
        entitlement.configure(settings)
        assert outcome(entitlement, "dan") is VerdictOutcome.ADMITTED
        entitlement.configure(config.EntitlementSettings())
        assert not entitlement.asks_for_users


async def test_answers_are_asked_anew_after_a_reload_and_none_is_lost() -> None:
    async with user_service() as service, entitled(policy="http", url=service.url) as entitlement:
        settings = config.EntitlementSettings(policy="http", url=service.url)
        assert (await entitlement.decide("ann", "use1", CLIENT)).admitted
        service.hang()
        waiting = asyncio.ensure_future(entitlement.decide("bob", "use1", CLIENT))
        await eventually(lambda: "bob" in service.users)
        entitlement.configure(settings)
        assert entitlement.decide_now("ann", "use1", CLIENT) is None
        service.release()
        assert (await waiting).admitted


@pytest.mark.parametrize(
    "tree", [{"policy": "file", "file": "absent"}, {"policy": "http", "url": "https://a.test/", "ca": "absent"}]
)
def test_check_names_the_file(tmp_path: Path, tree: dict[str, Any]) -> None:
    settings = config.EntitlementSettings.model_validate(tree, context={"folder": tmp_path})
    with pytest.raises(OperatorError, match=f"{tmp_path}/absent"):
        check_entitlement(settings)


def test_nothing_to_check() -> None:
    check_entitlement(config.EntitlementSettings())
