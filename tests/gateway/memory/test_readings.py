"""What the kernel says of memory: from files of a made-up machine, whole, missing and broken, and from this one's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from relay.gateway.memory.readings import MemoryFiles, Usage

MIB = 1024 * 1024
STALLS = "some avg10={some} avg60=0.00 avg300=0.00 total=0\nfull avg10={full} avg60=0.00 avg300=0.00 total=0\n"


class Machine:
    """A folder with the files of a machine. ``group`` is the path of our control group."""

    def __init__(self, folder: Path, group: str = "/system.slice/relay.service") -> None:
        self.cgroups, self.proc = folder / "cgroup", folder / "proc"
        self.group = self.cgroups / group.lstrip("/")
        self.group.mkdir(parents=True)
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "pressure").mkdir()
        # As on a machine that has cgroup v1 beside it.
        (self.proc / "self" / "cgroup").write_text(f"4:memory:/elsewhere\n0::{group}\n")
        self.files = MemoryFiles(self.cgroups, self.proc)

    def limit(self, *, of: Path | None = None, current: int, high: str = "max", maximum: str = "max") -> None:
        group = of or self.group
        (group / "memory.current").write_text(f"{current}\n")
        (group / "memory.high").write_text(f"{high}\n")
        (group / "memory.max").write_text(f"{maximum}\n")

    def stall(self, full: str, *, own: bool = False) -> None:
        path = self.group / "memory.pressure" if own else self.proc / "pressure" / "memory"
        path.write_text(STALLS.format(some="99.00", full=full))


def test_the_lower_limit_counts(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.limit(current=90 * MIB, high=str(100 * MIB), maximum=str(200 * MIB))
    [usage] = machine.files.cgroup_usages()
    assert usage == Usage("cgroup", 90 * MIB, 100 * MIB)
    assert usage.share == 0.9
    machine.limit(current=90 * MIB, maximum=str(200 * MIB))
    assert machine.files.cgroup_usages() == [Usage("cgroup", 90 * MIB, 200 * MIB)]
    machine.limit(current=90 * MIB)
    assert machine.files.cgroup_usages() == []


def test_files_that_the_kernel_can_drop_do_not_count(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.limit(current=90 * MIB, high=str(100 * MIB))
    (machine.group / "memory.stat").write_text(f"anon 1\ninactive_file {60 * MIB}\nactive_file 5\n")
    assert machine.files.cgroup_usages() == [Usage("cgroup", 30 * MIB, 100 * MIB)]


def test_groups_around_ours_count(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.limit(current=10 * MIB, high=str(100 * MIB))
    machine.limit(of=machine.cgroups / "system.slice", current=95 * MIB, maximum=str(100 * MIB))
    # The root has a size, and no limit.
    (machine.cgroups / "memory.current").write_text("5\n")
    assert [usage.share for usage in machine.files.cgroup_usages()] == [0.1, 0.95]


def test_in_a_container_our_group_is_the_root(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "/")
    machine.limit(current=50, maximum="100")
    assert machine.files.cgroup_usages() == [Usage("cgroup", 50, 100)]


def test_stalls_of_our_group_come_first(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.stall("12.34")
    assert machine.files.stalled_percent() == 12.34
    machine.stall("1.50", own=True)
    assert machine.files.stalled_percent() == 1.5


def test_failures_to_find_memory(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    (machine.group / "memory.events").write_text("low 0\nhigh 70\nmax 9\noom 2\noom_kill 1\n")
    assert machine.files.out_of_memory_events() == 2


BROKEN = [
    b"",
    b"\xff\xfe",
    b"max max\n",
    b"-5\n",
    b"1e9\n",
    b"9" * 100,
    b"full\n",
    b"full avg10=\n",
    b"full avg10=x.y z\n",
    b"\0" * 100,
]


@pytest.mark.parametrize("content", [None, *BROKEN], ids=str)
def test_what_cannot_be_read_is_not_known(tmp_path: Path, content: bytes | None) -> None:
    machine = Machine(tmp_path)
    machine.limit(current=90, high="100")
    machine.stall("1.00")
    machine.stall("1.00", own=True)
    (machine.group / "memory.events").write_text("oom 2\n")
    (machine.proc / "self" / "statm").write_text("100 10 5 1 0 20 0\n")
    assert machine.files.resident_bytes() == 10 * os.sysconf("SC_PAGE_SIZE")
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "cgroup"]
    assert len(files) > 6
    for path in files:
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
    assert machine.files.cgroup_usages() == []
    assert machine.files.stalled_percent() is None
    assert machine.files.out_of_memory_events() is None
    assert machine.files.resident_bytes() is None


@pytest.mark.parametrize(
    "content", [None, b"", b"\xff", b"4:memory:/a\n", b"0::\n", b"0::/../other\n", b"0::/gone/away\n"], ids=str
)
def test_without_a_control_group_the_machine_counts(tmp_path: Path, content: bytes | None) -> None:
    machine = Machine(tmp_path)
    machine.limit(current=90, high="100")
    machine.stall("3.00")
    path = machine.proc / "self" / "cgroup"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    assert machine.files.cgroup_usages() == []
    assert machine.files.stalled_percent() == 3.0
    assert machine.files.out_of_memory_events() is None


def test_this_machine() -> None:
    """Whatever it has, reading it raises nothing, and its numbers make sense."""
    files = MemoryFiles()
    resident = files.resident_bytes()
    assert resident is not None
    assert MIB < resident < 2**40
    for usage in files.cgroup_usages():
        assert usage.limit_bytes > 0
    stalled = files.stalled_percent()
    assert stalled is None or 0 <= stalled <= 100
