"""What the command line needs to start: a package or an extension that is missing is named in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PATIENT_S = 120


def run(program: str, *arguments: str, folder: Path) -> tuple[int, str, str]:
    """Status, stdout and stderr of a Python program."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        check=False,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENT_S,
    )
    return done.returncode, done.stdout, done.stderr


def without(module: str) -> str:
    """The command line where a module is missing."""
    return f"import sys; sys.modules[{module!r}] = None; from relay.cli import main; main()"


@pytest.mark.parametrize("command", ["demo", "emulate"])
@pytest.mark.parametrize("package", ["sqlalchemy", "socketio"])
def test_a_package_of_the_extra_that_is_missing(command: str, package: str, tmp_path: Path) -> None:
    said = f"relay: relay {command} needs {package}: install cloud9-relay[emulator]\n"
    assert run(without(package), command, folder=tmp_path) == (2, "", said)
    # Nothing was begun.
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("extension", ["relay._fastpath", "relay.emulator.turn._native", "relay.emulator.sfu._fanout"])
def test_an_extension_that_is_not_built(extension: str, tmp_path: Path) -> None:
    status, _, said = run(without(extension), "emulate", folder=tmp_path)
    expected = f"relay: the extension {extension} is not built. Run pip install . (or make demo)\n"
    assert (status, said) == (2, expected)


def test_a_command_does_not_load_what_only_others_need(tmp_path: Path) -> None:
    _, loaded, _ = run("import sys, relay.cli; print(*sys.modules)", folder=tmp_path)
    others = {"relay.emulator.apis.verifying", "relay.emulator.settings", "sqlalchemy", "aiohttp", "yarl"}
    assert not others & set(loaded.split())
