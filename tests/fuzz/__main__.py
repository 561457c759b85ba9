"""``python -m tests.fuzz SECONDS [TARGET]``: atheris searches one target, or all side by side with a line for each.

The search is guided by which lines of the obvious twin a scenario reaches, and starts from the stored corpus. What it
keeps is in ``build/fuzz``; so is an input that fails, as ``TARGET-crash-…``.
"""

from __future__ import annotations

import re
import subprocess
import sys

import atheris  # type: ignore[import-untyped]

from tests.fuzz import CORPUS, FOUND, ROOT
from tests.fuzz.build import build_leaves

TWINS = [
    "relay.wire.stream",
    "relay.wire.websocket",
    "relay.wire.capsule",
    "relay.plane.reference.first_bytes",
    "relay.plane.reference.hello",
    "relay.plane.reference.question",
    "relay.plane.reference.delays",
    "relay.plane.reference.schedule",
    "relay.plane.reference.traffic",
    "relay.turn.transactions",
    "relay.quality.meter",
]
# Beyond, a scenario is longer but not different. An input takes a tenth of a second. It counts as hanging after two
# minutes of the clock, because the search has the lowest priority: beside a busy suite it may stand still for a while.
OPTIONS = ["-max_len=1200", "-timeout=120", "-use_value_profile=1", "-print_final_stats=0"]


def search(seconds: str, name: str) -> None:
    """Search until the time is up or the twins differ; does not return."""
    with atheris.instrument_imports(include=TWINS):
        from tests.fuzz.targets import TARGETS
    found = FOUND / name
    found.mkdir(parents=True, exist_ok=True)
    bounds = [f"-max_total_time={seconds}", f"-artifact_prefix={found}-"]
    atheris.Setup([sys.argv[0], *OPTIONS, *bounds, str(found), str(CORPUS / name)], TARGETS[name])
    atheris.Fuzz()


def search_all(seconds: str) -> int:
    """One process for each target; how many have failed."""
    command = [sys.executable, "-m", "tests.fuzz", seconds]
    names = sorted(path.name for path in CORPUS.iterdir())
    running = {
        name: subprocess.Popen([*command, name], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for name in names
    }
    failures = 0
    for name, process in running.items():
        said, _ = process.communicate()
        done = re.search(r"Done (\d+) runs in (\d+) second", said)
        if process.returncode == 0 and done is not None:
            sys.stdout.write(f"fuzz {name}: {int(done[1]):,} scenarios in {done[2]} s, the twins agree\n")
        else:
            failures += 1
            sys.stdout.write(f"fuzz {name}: FAILED\n{said[-4000:]}\n")
    return failures


if __name__ == "__main__":
    build_leaves()
    if len(sys.argv) == 3:
        search(*sys.argv[1:])
    sys.exit(search_all(sys.argv[1]))
