"""What a process that serves has given up. It is looked at in a process of its own, because it cannot be taken back."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import json, resource, threading
from pathlib import Path
from relay.gateway.hardening import harden
resource.setrlimit(resource.RLIMIT_CORE, {before})
troubles = harden()
status = []
def look():
    status.append(Path("/proc/thread-self/status").read_text())
thread = threading.Thread(target=look)
thread.start()
thread.join()
look()
print(json.dumps([troubles, resource.getrlimit(resource.RLIMIT_CORE), ["NoNewPrivs:\\t1" in one for one in status]]))
"""


def after(before: tuple[int, int]) -> list[object]:
    program = PROGRAM.format(before=before)
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=60)
    found: list[object] = json.loads(done.stdout)
    return found


def test_no_core_dumps_and_no_new_privileges() -> None:
    assert after((4096, 4096)) == [[], [1, 1], [True, True]]


def test_whoever_allows_less_has_less() -> None:
    assert after((0, 0)) == [[], [0, 0], [True, True]]
