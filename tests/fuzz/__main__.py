"""``python -m tests.fuzz SECONDS [GROUP | TARGET]``: atheris searches one target, or several with a line for each.

The targets of a group (``twins``, ``parsers``) are searched side by side, and without a name all groups, one after the
other. The search is guided by which lines of Python a scenario reaches, and starts from the stored corpus. What it
keeps is in ``build/fuzz``; so is an input that fails, as ``TARGET-crash-…``.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable

import atheris  # type: ignore[import-untyped]

from tests.fuzz import CORPUS, FOUND, GROUPS, ROOT
from tests.fuzz.build import build_leaves

# Those whose lines guide the search: of the twins the obvious ones.
GUIDES = [
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
GUIDES_OF_PARSERS = [
    "relay.wire.channeldata",
    "relay.wire.client_hello",
    "relay.wire.http1",
    "relay.wire.media_v1",
    "relay.wire.proxy_header",
    "relay.wire.rtp",
    "relay.wire.stun",
    "relay.wire.upgrade",
    "relay.turn.server",
    "relay.turn.client",
    "relay.turn.allocate",
    "relay.turn.allocation",
    "relay.turn.authentication",
    "relay.gateway.certificates.ocsp",
    "relay.gateway.signaling.engineio",
    "relay.gateway.signaling.http_rules",
    "relay.gateway.web_proxy.basic_auth",
    "relay.gateway.web_proxy.destinations",
]
# Beyond, a scenario is longer but not different. An input takes a tenth of a second. It counts as hanging after two
# minutes of the clock, because the search has the lowest priority: beside a busy suite it may stand still for a while.
OPTIONS = ["-max_len=1200", "-timeout=120", "-use_value_profile=1", "-print_final_stats=0"]


def search(seconds: str, name: str) -> None:
    """Search until the time is up or the target fails; does not return."""
    guides = GUIDES if name in GROUPS["twins"] else GUIDES_OF_PARSERS
    with atheris.instrument_imports(include=guides):
        target = _target(name)
    found = FOUND / name
    found.mkdir(parents=True, exist_ok=True)
    bounds = [f"-max_total_time={seconds}", f"-artifact_prefix={found}-"]
    atheris.Setup([sys.argv[0], *OPTIONS, *bounds, str(found), str(CORPUS / name)], target)
    atheris.Fuzz()


def _target(name: str) -> Callable[[bytes], None]:
    """Imported here, so that the search sees the lines of what it imports."""
    if name in GROUPS["twins"]:
        from tests.fuzz.targets import TARGETS

        return TARGETS[name]
    from tests.fuzz.parsers import PARSERS
    from tests.fuzz.turn import MACHINES

    return (PARSERS | MACHINES)[name]


def search_all(seconds: str, names: tuple[str, ...]) -> int:
    """One process for each target; how many have failed."""
    command = [sys.executable, "-m", "tests.fuzz", seconds]
    running = {
        name: subprocess.Popen([*command, name], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for name in names
    }
    failures = total = 0
    for name, process in running.items():
        said, _ = process.communicate()
        done = re.search(r"Done (\d+) runs in (\d+) second", said)
        if process.returncode == 0 and done is not None:
            total += int(done[1])
            sys.stdout.write(f"fuzz {name}: {int(done[1]):,} scenarios in {done[2]} s, nothing found\n")
        else:
            failures += 1
            sys.stdout.write(f"fuzz {name}: FAILED\n{said[-4000:]}\n")
    sys.stdout.write(f"fuzz: {total:,} scenarios of {len(names)} targets\n")
    return failures


def main(seconds: str, wanted: str = "") -> int:
    """Search what is wanted. Returns the exit status."""
    build_leaves()
    if wanted and wanted not in GROUPS:
        search(seconds, wanted)
    groups = [GROUPS[wanted]] if wanted else list(GROUPS.values())
    failures = [search_all(seconds, names) for names in groups]
    return int(any(failures))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
