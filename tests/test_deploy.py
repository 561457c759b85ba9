"""The units of systemd in ``deploy``: systemd understands them, and the commands in them exist."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.benches.commands import run_here

DEPLOY = Path(__file__).parents[1] / "deploy"
# Where the units expect the command.
INSTALLED = "/opt/cloud9-relay/bin/relay"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not here")
def test_systemd_understands_the_units(tmp_path: Path) -> None:
    units = [unit for unit in DEPLOY.iterdir() if unit.suffix in {".service", ".socket", ".timer"}]
    names = {"relay.service", "relay.socket", "relay-ca.service", "relay-ca.timer"}
    assert {unit.name for unit in units} == names
    for unit in units:
        # The command need not be installed here.
        (tmp_path / unit.name).write_text(unit.read_text().replace(INSTALLED, "/bin/true"))
    command = ["systemd-analyze", "verify", *(str(tmp_path / unit.name) for unit in units)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    told = [line for line in done.stderr.splitlines() if any(unit.name in line for unit in units)]
    assert (done.returncode, told) == (0, [])


def members(group: str) -> set[str]:
    """The system calls of a group such as @process, as this machine's systemd has them."""
    command = ["systemd-analyze", "syscall-filter", group]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    words = {line.strip() for line in done.stdout.splitlines() if line.startswith(" ") and "#" not in line}
    return {call for word in words for call in (members(word) if word.startswith("@") else {word})}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not here")
def test_the_unit_lets_the_relay_make_its_system_calls() -> None:
    allowed = set[str]()
    for line in re.findall(r"^SystemCallFilter=(.*)$", (DEPLOY / "relay.service").read_text(), re.MULTILINE):
        calls = {call for word in line.lstrip("~").split() for call in (members(word) if "@" in word else {word})}
        allowed = allowed - calls if line.startswith("~") else allowed | calls
    # Priority of the control plane, limits of core dumps, no_new_privs, certificates in memory, and the packets.
    wanted = {"setpriority", "prlimit64", "prctl", "memfd_create", "sendmmsg", "recvmmsg", "epoll_pwait", "eventfd2"}
    assert wanted - allowed == set()


def test_the_timer_renews_what_its_service_names(tmp_path: Path) -> None:
    [command] = re.findall(r"^ExecStart=(.*)$", (DEPLOY / "relay-ca.service").read_text(), re.MULTILINE)
    program, *arguments = command.split()
    assert program == INSTALLED
    folder = "/var/lib/cloud9-ca/ca"
    assert run_here("ca", "create", tmp_path / "ca")[0] == 0
    here = [str(tmp_path / "ca") if argument == folder else argument for argument in arguments]
    assert here != arguments
    for outcome in ("issued", "kept"):
        status, stdout, stderr = run_here(*here)
        assert (status, stderr) == (0, "")
        assert len(stdout.splitlines()) == stdout.count(f": {outcome}, until ") > 60
