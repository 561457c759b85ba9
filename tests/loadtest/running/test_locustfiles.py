"""A locustfile of one's own is checked before anything starts: the line, and what was expected there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.plan.profile import Profile, parse
from loadtest.plan.target import Target
from loadtest.plan.work import VARIABLE, Work
from loadtest.running import locustfiles
from loadtest.running.locustfiles import check_locustfile
from relay.errors import OperatorError

LOCAL = Target.model_validate({"server": "127.0.0.1:9"})
USERS = """\
from locust import task
from loadtest import MediaUser, SignalingUser, Target

class Trader({base}):
    {body}

    @task
    def talk(self):
        pass
"""


@pytest.fixture
def lab() -> Profile:
    """A profile that lists a target elsewhere."""
    return parse({"description": "x", "users": 1, "targets": {"lab": {"server": "10.0.0.5:443"}}}, "t")


def written(folder: Path, text: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def users(base: str = "MediaUser", body: str = "pass") -> str:
    return USERS.format(base=base, body=body)


# What a file says, and what is said of it
UNUSABLE = [
    ("\n\ndef talk(:\n", "line 3: SyntaxError: invalid syntax; expected a locustfile that can be imported"),
    (
        "\nimport nothing_of_this_name\n",
        "line 2: ModuleNotFoundError: No module named 'nothing_of_this_name'; expected",
    ),
    ("def f():\n    raise KeyError('no such desk')\n\nf()\n", "line 2: KeyError: 'no such desk'; expected"),
    ("import sys\nsys.exit('enough')\n", "line 2: SystemExit: enough; expected"),
    ("x = 1\n", "has no users; expected a class such as `class Trader(MediaUser)`"),
    (users(body="abstract = True"), "has no users; expected a class"),
    (
        users(body='target = Target(server="c9rest\uff0exhoot.com:443")'),
        "line 5: ValidationError: server c9rest.xhoot.com: belongs to the vendor; expected a host of your own",
    ),
    (
        users(body='target = Target(server="10.0.0.9:443")'),
        "line 4: target of Trader: server 10.0.0.9: not on this machine; expected a loopback address",
    ),
    (
        users(body='target = Target(server="127.0.0.1:9", metrics="http://10.0.0.5:9443")'),
        "line 4: target of Trader: metrics 10.0.0.5: not on this machine",
    ),
    (
        users(body='target = Target(server="127.0.0.1:9", carrier="connect-udp")'),
        "line 4: target of Trader: carrier connect-udp: asks for a TURN server",
    ),
    (users(body='target = "127.0.0.1:9"'), "line 4: target of Trader: str; expected a Target"),
    (
        users("SignalingUser", 'target = Target(server="127.0.0.1:9")'),
        "Trader: the target names no cloud; expected the URL of login and signaling",
    ),
]
USABLE = [
    (users(), []),
    (users(body='target = Target(server="10.0.0.5:443")'), []),
    (users("SignalingUser"), ["Trader"]),
    (users("SignalingUser", 'target = Target(server="127.0.0.1:9", cloud="http://127.0.0.1:9")'), []),
]
CHECKS = """\
import json, sys
from loadtest.users.checking import check

print(json.dumps([check(path) for path in sys.argv[1:]]))
"""


def test_what_is_said_of_locustfiles(tmp_path: Path, lab: Profile) -> None:
    """All in one process: Locust takes seconds to be imported."""
    paths = [written(tmp_path, text, f"file_{number}.py") for number, (text, _) in enumerate([*UNUSABLE, *USABLE])]
    with Work(profile_name="p", target_name="t", profile=lab, target=LOCAL).handed() as descriptor:
        done = subprocess.run(
            [sys.executable, "-c", CHECKS, *map(str, paths)],
            env=os.environ | {VARIABLE: str(descriptor)},
            pass_fds=(descriptor,),
            stdout=subprocess.PIPE,
            check=True,
            timeout=100,
        )
    told = json.loads(done.stdout)
    for path, found, (_, words) in zip(paths, told, UNUSABLE, strict=False):
        assert found["error"].startswith(f"{path}: {words}")
        assert "\n" not in found["error"]
    assert told[len(UNUSABLE) :] == [{"needs_cloud": names} for _, names in USABLE]


def test_a_locustfile_that_cannot_be_used(tmp_path: Path, lab: Profile) -> None:
    path = written(tmp_path, "\nraise RuntimeError('no such desk')\n")
    with pytest.raises(OperatorError, match=rf"^--locustfile {path}: line 2: RuntimeError: no such desk; expected a"):
        check_locustfile(path, lab)
    path.write_text("import os\nos._exit(7)\n")
    with pytest.raises(
        OperatorError, match=rf"^--locustfile {path}: ended with status 7 when it was imported: no words$"
    ):
        check_locustfile(path, lab)


def test_what_a_locustfile_prints_is_not_the_answer(tmp_path: Path, lab: Profile) -> None:
    assert check_locustfile(written(tmp_path, "print('{}')\n" + users("SignalingUser")), lab)


def test_a_locustfile_that_never_ends(tmp_path: Path, lab: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locustfiles, "CHECKED_WITHIN_S", 0.1)
    with pytest.raises(OperatorError, match=r"was not imported within 0\.1 s; expected one that does little then"):
        check_locustfile(written(tmp_path, "while True: pass\n"), lab)


# A user can change its target at any time


CHANGED = """\
from loadtest.plan.target import Target
from loadtest.users.targeted import admitted

for server in ("127.0.0.1:9", "localhost:9", "10.0.0.5:443", "10.0.0.9:443"):
    try:
        print(admitted(Target(server=server)).server)
    except ValueError as error:
        print(error)
"""


def admitted_with(descriptor: int | None) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    done = subprocess.run(
        [sys.executable, "-c", CHANGED],
        env=environment | ({} if descriptor is None else {VARIABLE: str(descriptor)}),
        pass_fds=() if descriptor is None else (descriptor,),
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    return done.stdout.splitlines()


def test_a_target_that_a_user_sets_later_follows_the_same_rule(lab: Profile) -> None:
    allowed = ["127.0.0.1:9", "127.0.0.1:9", "10.0.0.5:443"]
    with Work(profile_name="p", target_name="t", profile=lab, target=LOCAL).handed() as descriptor:
        *first, last = admitted_with(descriptor)
    assert first == allowed
    assert last.startswith("server 10.0.0.9: not on this machine; expected a loopback address")
    # Locust alone starts what it is told to.
    assert admitted_with(None) == [*allowed, "10.0.0.9:443"]
