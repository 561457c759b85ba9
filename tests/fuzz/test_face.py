"""The face of a relay, fuzzed through its sockets for a few seconds. ``make nightly-face`` goes on."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.fuzz import face as faces
from tests.fuzz.face import Fault, open_face, search, stop
from tests.fuzz.spoiling import Spoiler
from tests.fuzz.talks import TALKS, hold

# Under sanitizers the night does the same, for longer: a relay takes many seconds to start there.
pytestmark = pytest.mark.skipif(os.environ.get("RELAY_SANITIZE") == "1", reason="make nightly-face has it")
PLANES = ["compiled", "reference"]
ROUNDS = 4


@pytest.mark.parametrize("plane", PLANES)
async def test_whatever_clients_say_the_relay_serves(tmp_path: Path, plane: str) -> None:
    async with open_face(tmp_path, plane) as face:
        counts = await search(face, "suite", time.monotonic(), rounds=ROUNDS)
        await stop(face)
    assert (counts.rounds, counts.talks) == (ROUNDS, ROUNDS * faces.TALKS_A_ROUND)
    assert counts.messages > counts.spoiled > counts.messages * faces.SHARE / 2


@pytest.mark.parametrize("talk", TALKS)
async def test_what_is_not_spoiled_is_a_whole_conversation(
    tmp_path: Path, talk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it the search would try the same first words again and again."""
    monkeypatch.setattr(faces, "SHARE", 0.0)
    async with open_face(tmp_path, "compiled") as face:
        wire = faces._wire(face, "whole")
        assert await hold(TALKS[talk], wire)
        said = wire.spoiler.messages
        await stop(face)
    whole = {"turn": 20, "websocket": 23, "connect_udp": 22, "session": 21, "http": 4, "hello": 3}
    assert said >= whole.get(talk, 2)


async def test_a_relay_that_dies_is_seen_and_the_input_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faces, "FOUND", tmp_path)
    async with open_face(tmp_path, "compiled") as face:
        os.kill(face.served.pid, signal.SIGKILL)
        await face.served.process.wait()
        with pytest.raises(Fault, match=f"face-crash-seed-0.json: it has ended with -{signal.SIGKILL:d}"):
            await search(face, "seed", time.monotonic(), rounds=1)
    said = json.loads((tmp_path / "face-crash-seed-0.json").read_text())
    assert {kind for kind, *_ in said.values()} == set(TALKS)


async def test_a_complaint_in_the_log_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faces, "FOUND", tmp_path)
    async with open_face(tmp_path, "compiled") as face:
        face.complaints.append("an exception was never retrieved")
        with pytest.raises(Fault, match="an exception was never retrieved"):
            await search(face, "seed", time.monotonic(), rounds=1)


@pytest.mark.parametrize(
    ("line", "calm"),
    [
        (b'{"event": "x", "level": "warning"}\n', True),
        (b'{"event": "x", "level": "error"}\n', False),
        (b"Traceback (most recent call last):\n", False),
        (b"[]\n", False),
    ],
)
def test_lines_of_the_log(line: bytes, calm: bool) -> None:
    assert faces._is_calm(line) is calm


def test_the_same_seed_spoils_alike() -> None:
    def spoiled(seed: int) -> list[bytes]:
        spoiler = Spoiler(random.Random(seed), 0.5)
        return [piece for number in range(200) for piece in spoiler.spoil(bytes([number]) * 40)]

    assert spoiled(1) == spoiled(1) != spoiled(2)


def test_what_is_not_spoiled_comes_through() -> None:
    spoiler = Spoiler(random.Random(1), 0.0)
    assert b"".join(piece for number in range(200) for piece in spoiler.spoil(bytes([number]))) == bytes(range(200))
