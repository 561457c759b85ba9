"""Profiles: those that come with the load tester are what they claim, and mistakes are told in a line each."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest

from loadtest.plan import profile as profiles
from loadtest.plan.profile import Media, Profile, parse
from loadtest.plan.shapes import Shape
from loadtest.plan.work import Work, read_work
from relay.errors import OperatorError

# Users, and packets a second in and out, as they are asked for.
WANTED = {
    "desk": (10, 2_200),
    "branch": (50, 11_000),
    "floor-quiet": (300, 48_000),
    "floor-busy": (300, 165_000),
    "idle-keepalive": (1000, 0),
    "bad-proxy": (50, 11_000),
    "soak": (100, 22_000),
    "churn": (300, 30_000),
}
SMALL = {"description": "small", "users": 2}


@pytest.mark.parametrize("name", profiles.names())
def test_each_profile_can_be_loaded(name: str) -> None:
    loaded = profiles.load(name)
    users, packets = WANTED.get(name, (loaded.users, round(2 * loaded.packets_per_s)))
    assert (loaded.users, round(2 * loaded.packets_per_s)) == (users, packets)


def test_a_hoot_is_received_by_all() -> None:
    hoot = profiles.load("hoot")
    assert [stage.down * 50 * hoot.users for stage in hoot.stages] == [120_000, 480_000]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"users": 0}, "t: users: 0: expected greater than or equal to 1"),
        ({"users": 10_001}, "t: users: 10001: "),
        ({"colour": "red"}, "t: colour: unknown key"),
        ({"shape": {"kind": "wave"}}, "t: shape.kind: 'wave': expected 'steady', 'ramp', 'spike', 'soak'"),
        ({"media": {"up": -1}}, "t: media.up: -1: "),
        (
            {"media": {"talk_s": 0, "pause_s": 5}},
            "t: media.up: 1 streams on lines with talk_s 0 and pause_s 5; expected",
        ),
        ({"media": {"up": 10, "talk_s": 1, "pause_s": 99}}, "expected at most 200 lines of a user"),
        ({"users": 10_000, "media": {"down": 50, "interval_ms": 1}}, "expected at most 5,000,000"),
        ({"stages": [{"at_s": 99, "down": 1}]}, "t: stages.at_s 99: expected less than the test's 35 s"),
        ({"news": {"at_s": 35}}, "t: news.at_s 35: expected less than the test's 35 s"),
        ({"targets": {"lab": {"server": "10.1.1.1"}}}, "t: targets.lab.server: '10.1.1.1': "),
        ({"targets": {"lab": {"server": "c9rest.xhoot.com:443"}}}, "belongs to the vendor"),
        ({"faults": [{"hop": "../x", "kind": "stall"}]}, "t: faults.0.hop: '../x': expected 'web_proxy'"),
        ({"faults": [{"hop": "cloud", "kind": "quake"}]}, "t: faults.0.kind: 'quake': expected 'udp_blocked'"),
        (
            {"faults": [{"hop": "cloud", "kind": "stall"}]},
            "t: faults.0: stall does not happen at cloud. Expected: desk_udp or web_proxy.",
        ),
        (
            {"faults": [{"hop": "web_proxy", "kind": "stall", "settings": {"percent": 5}}]},
            "t: faults.0: stall at web_proxy has no percent. Expected: seconds.",
        ),
        (
            {"faults": [{"hop": "web_proxy", "kind": "stall", "settings": {"seconds": -1}}]},
            "t: faults.0: settings.seconds: -1: expected greater than 0",
        ),
        (
            {"faults": [{"hop": "cloud", "kind": "region_down", "settings": {"target": "mars"}}]},
            "t: faults.0: The catalog does not have 'mars'. Expected: ",
        ),
        (
            {"faults": [{"hop": "web_proxy", "kind": "stall", "at_s": 35}]},
            "t: faults.at_s 35: expected less than the test's 35 s",
        ),
        ({"shape": {"hold_s": math.nan}}, "t: shape.hold_s: nan: expected a finite number"),
        ({"warm_up_s": math.inf}, "t: warm_up_s: inf: "),
        (
            {"shape": {"ramp_s": 604_800, "hold_s": 1}},
            "t: shape: ramp_s 604800 and hold_s 1: 604801 s in all; expected at most 604800 (a week)",
        ),
        ({"thresholds": {"mos": 5}}, "t: thresholds.mos: 5: "),
        ({"description": ""}, "t: description: '': expected at least 1 character"),
        (
            {"targets": {"lab": {"server": "10.1.1.1:1", "cloud_password": 12345}}},
            "t: targets.lab.cloud_password: expected",
        ),
    ],
)
def test_a_mistake_is_told(change: dict[str, Any], words: str) -> None:
    with pytest.raises(OperatorError) as raised:
        parse({**SMALL, **change}, "t")
    assert words in str(raised.value)


def test_each_mistake_has_its_line() -> None:
    with pytest.raises(OperatorError) as raised:
        parse({"description": "", "users": "many"}, "t")
    assert [line.split(":")[1] for line in str(raised.value).splitlines()] == [" description", " users"]


def test_a_profile_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('description = "mine"\nusers = 3\n[targets.lab]\nserver = "10.0.0.5:443"\ncarrier = "websocket"\n')
    assert profiles.load(str(path)).targets["lab"].server.host == "10.0.0.5"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"users = ", "expected TOML"),
        (b"\xff", "expected TOML"),
        (b"#" * 70_000, "expected at most 65536 bytes"),
        (b"x = " + b"[" * 60_000, "nested too deeply; expected the TOML of a profile"),
    ],
)
def test_a_file_that_is_no_profile(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(OperatorError, match=words):
        profiles.load(str(path))


def test_a_name_that_is_not_known() -> None:
    with pytest.raises(
        OperatorError, match=r"profile deks: No such file.*expected a file, or one of bad-proxy, branch"
    ):
        profiles.load("deks")


def test_other_numbers_are_checked_again() -> None:
    small = profiles.load("desk").changed(users=3, seconds=8)
    assert (small.users, small.shape.seconds) == (3, 8)
    with pytest.raises(OperatorError, match=r"the command line: users: 10001"):
        small.changed(users=10_001, seconds=None)
    for seconds in (0, -1, math.nan, math.inf, 604_801):
        with pytest.raises(
            OperatorError, match=f"--seconds: {seconds}; expected more than 0, and at most 604800 .a week."
        ):
            small.changed(users=None, seconds=seconds)
    assert small.changed(users=None, seconds=604_800).shape.seconds == 604_800


def test_what_happens_within_a_test_happens_earlier_in_a_shorter_one() -> None:
    hoot, proxy = (profiles.load(name).changed(users=None, seconds=24) for name in ("hoot", "bad-proxy"))
    assert [stage.at_s for stage in hoot.stages] == [12, 18]
    assert [fault.at_s for fault in proxy.faults] == [0, 8, 12, 16]
    news = profiles.load("floor-busy").changed(users=None, seconds=30).news
    assert news is not None
    assert news.at_s == 12


@pytest.mark.parametrize(("mean", "users"), [(0.2, 10), (2, 7), (1.5, 300), (0.1, 300), (0, 5)])
def test_all_users_together_have_the_streams_of_the_profile(mean: float, users: int) -> None:
    media = Media()
    lines = [media.lines_of(user, mean) for user in range(users)]
    assert sum(lines) == round(mean * users)
    assert max(lines) - min(lines) <= 1


def test_lines_with_pauses_are_more() -> None:
    """With one second of talk in ten it takes ten lines for a stream."""
    assert Media(talk_s=1, pause_s=9).lines_of(0, 2) == 20


def test_of_a_short_test_half_of_what_follows_the_ramp_is_judged() -> None:
    short = Profile(description="x", users=1, warm_up_s=60, shape=Shape(ramp_s=8, hold_s=4))
    assert short.judged_from_s == 10


def test_work_goes_to_another_process_with_its_secrets() -> None:
    """In a file that has no name: nobody finds it, and nothing is left of it."""
    loaded = profiles.load("bad-proxy")
    target = {"server": "127.0.0.1:4443", "carrier": "connect-udp", "secret": "north", "far": "127.0.1.1:3478"}
    work = Work(profile_name="p", target_name="t", profile=loaded, target=target)  # type: ignore[arg-type]
    with work.handed() as descriptor:
        assert [read_work(descriptor) for _ in range(2)] == [work, work]
        assert os.fstat(descriptor).st_nlink == 0
        assert not os.get_inheritable(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    assert "north" not in repr(work)
