"""Our TURN server's answers beside coturn's, clause by clause: over UDP, through a relay's TLS, and on both planes.

Where ours and coturn differ, the clause says why. What coturn does over TLS is shown only.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest.bench.conformance import held, matrix, words
from tests.support.benches.background import Background
from tests.support.benches.turn_servers import COTURNS, OURS, TurnServers, expected, open_turn_servers
from tests.support.turn_clauses import SECTIONS, Clause, Where

PAGE = Path(__file__).parents[2] / "docs" / "turn-conformance.md"
CLAUSES = [clause for section in SECTIONS for clause in section.clauses]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TurnServers]:
    with Background() as background:
        yield background.enter(open_turn_servers(tmp_path_factory.mktemp("servers")))


@pytest.mark.skipif(shutil.which("turnserver") is None, reason="coturn is not installed")
@pytest.mark.parametrize("clause", CLAUSES, ids=lambda clause: clause.what)
async def test_clause(servers: TurnServers, clause: Clause) -> None:
    names = (*OURS, *COTURNS)
    outcomes = dict(zip(names, await asyncio.gather(*(servers.outcome(name, clause) for name in names)), strict=True))
    assert {name: outcomes[name] for name in OURS} == {name: expected(name, clause) for name in OURS}
    assert outcomes["coturn UDP"] == clause.of_coturn
    assert (clause.ours != clause.of_coturn) == bool(clause.why), "a difference has a reason, and only a difference has"


def rows_of(page: str) -> list[list[str]]:
    lines = [line.strip("|") for line in page.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.split("|")] for line in lines]


def test_the_page_has_all_clauses_and_what_ours_must_do() -> None:
    rows = [row for row in rows_of(PAGE.read_text()) if row[0] != "clause"]
    assert [row[:5] for row in rows] == [
        [clause.what, *(words(expected(name, clause)) for name in OURS)] for clause in CLAUSES
    ]
    assert [row[5] for row in rows] == [words(clause.of_coturn) for clause in CLAUSES]


def test_each_clause_has_a_name_of_its_own() -> None:
    assert len({clause.what for clause in CLAUSES}) == len(CLAUSES)


def test_what_ours_does_not_hold_is_marked_and_what_coturn_does_is_not() -> None:
    section = SECTIONS[0]
    clause = section.clauses[0]
    outcomes = {name: expected(name, clause) for name in OURS} | dict.fromkeys(COTURNS, 500)
    assert held(clause, outcomes)
    assert "**" not in matrix(section, {clause: outcomes})
    outcomes[OURS[-1]] = None
    assert not held(clause, outcomes)
    assert re.findall(r"\*\*(.*?)\*\*", matrix(section, {clause: outcomes})) == ["silence"]


def test_words() -> None:
    assert [words(one) for one in (0, None, 437, "600 s", "closed", Where.UDP_ONLY)] == [
        *("success", "silence", "437", "600 s", "closed", "UDP only"),
    ]
