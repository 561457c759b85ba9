"""What loadtest/README.md and loadtest/bench/README.md tell people to type is taken from there, and tried.

The ten-line locustfile runs under ``relay loadtest run`` in ``running/test_runs.py``; here Locust runs it alone.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path

import pytest
from typer.main import get_command

import loadtest
from loadtest.commands import app
from loadtest.engine.plans import Carrier
from loadtest.plan import profile as profiles
from relay.addresses import Address
from relay.emulator.turn import native
from relay.turn.credentials import StaticCredentials
from tests.support.benches.gateway import SERVER_NAME, relay_with_hosts
from tests.support.peers.behind_turn import open_echo

PROJECT = Path(__file__).parents[2]
README, BENCH = PROJECT / "loadtest" / "README.md", PROJECT / "loadtest" / "bench" / "README.md"
COMMANDS = get_command(app).commands  # type: ignore[attr-defined]


def blocks(page: Path, language: str) -> list[str]:
    found: list[str] = re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)
    return found


def lines_of(page: Path) -> list[str]:
    """The commands of a page, whole and without comments; what is optional in them is as if it were given."""
    text = "".join([*blocks(page, "sh"), *blocks(page, "console")]).replace("\\\n", " ")
    found = []
    for line in text.splitlines():
        words = shlex.split(line.removeprefix("# ").replace("[", "").replace("]", ""), comments=True)
        found.append(" ".join(words))
    return [line for line in found if line]


def commands_of(page: Path, opening: str) -> list[str]:
    return [line.removeprefix(opening).strip() for line in lines_of(page) if line.startswith(opening)]


LOAD_TESTS = commands_of(README, "relay loadtest ")
PROGRAMS = sorted(
    {
        *commands_of(README, "python -m "),
        *commands_of(BENCH, "python -m "),
        *re.findall(r"`python -m ([^`]+)`", README.read_text() + BENCH.read_text()),
    }
)


def test_commands_are_seen() -> None:
    assert {line.split()[0] for line in LOAD_TESTS} == {"run", "capacity", "compare"}
    assert {"loadtest.bench.bad_path", "loadtest.bench.datachannel", "loadtest.engine.run"} <= {
        line.split()[0] for line in PROGRAMS
    }
    assert any("--ca ca.pem --peer 127.0.0.1:0" in line for line in LOAD_TESTS)


@pytest.mark.parametrize("line", LOAD_TESTS)
def test_a_load_test_is_understood(line: str) -> None:
    """Up to where it would begin: an option that is not there, or a value that it does not take, is an error."""
    name, *words = shlex.split(line)
    parameters = COMMANDS[name].make_context(name, words).params
    if name == "run" and not parameters["profile"].endswith(".toml"):
        assert parameters["profile"] in profiles.names()


@pytest.mark.parametrize("line", PROGRAMS)
def test_a_program_has_the_options(line: str) -> None:
    module, *words = shlex.split(line)
    assert importlib.util.find_spec(module) is not None
    wanted = {word for word in words if word.startswith("--")}
    if wanted:
        assert wanted <= options_listed_by(module)


@functools.cache
def options_listed_by(module: str) -> set[str]:
    """What a program lists as its options."""
    command = [sys.executable, "-m", module, "--help"]
    told = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"--[a-z-]+", told))


@pytest.mark.parametrize(
    "page", [README, BENCH, PROJECT / "CONTRIBUTING.md", PROJECT / "README.md"], ids=lambda one: one.name
)
def test_make_has_the_targets(page: Path) -> None:
    # Some have their names from a variable, so make is asked. The targets of a rule stand before its colon.
    asked = ["make", "--question", "--print-data-base", "help"]
    listed = subprocess.run(asked, cwd=PROJECT, capture_output=True, text=True, check=False).stdout
    targets = {word for line in re.findall(r"^([a-z][^:=#]*):(?!=)", listed, re.MULTILINE) for word in line.split()}
    named = {line.split()[1] for line in lines_of(page) if line.startswith("make ")}
    named |= set(re.findall(r"`make ([a-z][a-z-]*)", page.read_text()))
    assert named
    assert named - targets == set()


def test_the_options_that_are_explained_exist() -> None:
    """Those in the text, and in the tables."""
    known = {option for command in COMMANDS.values() for one in command.params for option in one.opts}
    # Locust's, and the programs', which have a test of their own.
    text = re.sub(r"```.*?```|`python -m [^`]+`", "", README.read_text(), flags=re.DOTALL)
    named = {name for code in re.findall(r"`([^`\n]+)`", text) for name in re.findall(r"--[a-z-]+", code)}
    assert {"--peer", "--far", "--sink", "--web", "--processes"} <= named
    assert named - known == {"--help"}


def test_the_users_that_are_listed_can_be_imported() -> None:
    """As names: their modules need Locust, which must not be loaded into this process."""
    listed = re.findall(r"^\| `(\w+User)` \|", README.read_text(), re.MULTILINE)
    assert set(listed) == {name for name in loadtest._PLACES if name.endswith("User")}


def test_the_profile_is_one() -> None:
    (text,) = blocks(README, "toml")
    parsed = profiles.parse(tomllib.loads(text), "README.md")
    assert parsed.targets["lab"].server == Address("10.0.0.5", 443)
    # Each threshold that there is.
    assert not [name for name, value in parsed.thresholds if value is None]


# Programs


def program_with(words: str) -> str:
    (found,) = [block for block in blocks(README, "python") if words in block]
    return found


async def output_of(folder: Path, *command: str) -> str:
    """What a program prints. Raises AssertionError with it if it fails."""
    process = await asyncio.create_subprocess_exec(*command, cwd=folder, stdout=PIPE, stderr=STDOUT)
    try:
        printed, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, printed.decode()
    return printed.decode()


async def test_locust_alone_runs_the_locustfile(tmp_path: Path) -> None:
    """With the target that the text gives the class; only the port is another one."""
    (target,) = re.findall(r"`(target = Target\(.*?\))`", README.read_text())
    program = program_with("class Trader(MediaUser)").replace("import MediaUser", "import MediaUser, Target")
    head, opening, body = program.partition("class Trader(MediaUser):\n")
    credentials = StaticCredentials({"trader": "secret"})
    async with native.TurnHost(Address("127.0.0.1", 0), credentials, allow_loopback_peers=True) as host:
        assert "127.0.0.1:3478" in target
        own = textwrap.indent(target.replace("127.0.0.1:3478", str(host.address)), "    ")
        (tmp_path / "trader.py").write_text(f"{head}{opening}{own}\n{body}")
        options = ["--headless", "--users", "1", "--run-time", "8s", "--stop-timeout", "10", "--only-summary"]
        # On a busy machine a stream may stall, which Locust counts as a failure.
        options += ["--exit-code-on-error", "0"]
        printed = await output_of(tmp_path, sys.executable, "-m", "locust", "-f", "trader.py", *options)
    for name in ("Allocate", "set-up"):
        assert re.search(rf"{name} +[1-9]\d* +0\(0\.00%\)", printed), printed
    assert re.search(r"stream-second +[1-9]", printed), printed


async def test_the_example_of_the_engine_runs(tmp_path: Path) -> None:
    """Against a relay of this machine; all else is as it stands there."""
    program = program_with("from loadtest.engine.engine import")
    async with relay_with_hosts(tmp_path, count=1) as (relay, _), open_echo() as echo:
        for told, here in (
            ('Address("192.0.2.7", 16384)', f"Address{tuple(echo)!r}"),
            ('Address("192.0.2.1", 443)', f"Address{tuple(relay.tls)!r}"),
            ('"relay.example"', f'"{SERVER_NAME}"'),
        ):
            assert told in program
            program = program.replace(told, here)
        assert Carrier.TLS.name in program
        printed = await output_of(PROJECT, sys.executable, "-c", program)
    received, p99_us, _ = printed.split()
    assert int(received) > 0
    assert int(p99_us) > 0
