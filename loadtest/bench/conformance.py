"""What TURN servers make of each clause of a checklist: the emulator's, over UDP and through a relay, and coturn.

Prints a page in Markdown, which is ``docs/turn-conformance.md``. Exit status: 0 if ours held each clause, 1 if not, and
2 if a server could not start.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from relay import logs
from relay.errors import RelayError
from tests.support.benches.turn_servers import COTURNS, OURS, TurnServers, expected, open_turn_servers
from tests.support.peers.turn_asker import Outcome
from tests.support.turn_clauses import SECTIONS, Clause, Section, Where

NAMES = (*OURS, *COTURNS)
HEAD = """\
# Conformance of TURN servers

This page is for those who want to know how TURN is served, clause by clause. `python -m loadtest.bench.conformance` has
made it. It asks the emulator's TURN server, over UDP (compiled, and its twin in Python) and through a relay (TLS, with
each plane), and Debian's coturn. A code is the error that was answered.

Ours must hold each clause: what it does not hold would be in bold. Where coturn differs over UDP, the last column says
why. What it does over TLS is shown only. Clauses about time (a permission of five minutes, a channel of ten) are not
asked here: `tests/turn/test_server.py` tries them with a clock of its own.
"""


async def ask_all(servers: TurnServers, section: Section) -> dict[Clause, dict[str, Outcome | Where]]:
    """Each clause on each server: the servers side by side, the clauses one after the other."""
    found: dict[Clause, dict[str, Outcome | Where]] = {}
    for clause in section.clauses:
        outcomes = await asyncio.gather(*(servers.outcome(name, clause) for name in NAMES))
        found[clause] = dict(zip(NAMES, outcomes, strict=True))
    return found


def held(clause: Clause, outcomes: dict[str, Outcome | Where]) -> bool:
    """Whether ours did what they must."""
    return all(outcomes[name] == expected(name, clause) for name in OURS)


def matrix(section: Section, found: dict[Clause, dict[str, Outcome | Where]]) -> str:
    """A table with a row for each clause."""
    lines = [f"\n## {section.name}\n", f"| clause | {' | '.join(NAMES)} | why coturn differs |", "|---" * 8 + "|"]
    for clause, outcomes in found.items():
        cells = [
            words(outcome) if name in COTURNS or outcome == expected(name, clause) else f"**{words(outcome)}**"
            for name, outcome in outcomes.items()
        ]
        lines.append(f"| {' | '.join([clause.what, *cells, clause.why])} |")
    return "\n".join(lines)


def words(outcome: Outcome | Where) -> str:
    """An outcome for people."""
    if outcome == 0:
        return "success"
    if outcome is None:
        return "silence"
    return outcome.value if isinstance(outcome, Where) else str(outcome)


async def run(folder: Path) -> bool:
    """Ask and print. Returns True if ours held each clause."""
    good = True
    sys.stdout.write(HEAD)
    async with open_turn_servers(folder) as servers:
        for section in SECTIONS:
            found = await ask_all(servers, section)
            good &= all(held(clause, outcomes) for clause, outcomes in found.items())
            sys.stdout.write(matrix(section, found) + "\n")
    return good


def main() -> int:
    """The program."""
    logs.configure("error", "text")
    try:
        with tempfile.TemporaryDirectory(prefix="conformance-") as folder:
            return int(not asyncio.run(run(Path(folder))))
    except (RelayError, OSError) as error:
        sys.stderr.write(f"conformance: {error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
