"""The whole face of a relay, fuzzed through its sockets: ``python -m tests.fuzz.face SECONDS [PLANE] [SEED]``.

A relay runs in a process. Clients hold real conversations with it, some at a time, and what they say is spoiled now and
then (``talks``, ``spoiling``). After each round a call must go through, the process must live, its log must have no
error, and no sanitizer may have reported. Otherwise what was said in the round is saved in ``build/fuzz``, and the run
ends. ``make nightly-face`` runs it on a build with AddressSanitizer.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from relay.addresses import Address
from relay.emulator.turn.slow import TurnHost
from tests.fuzz import FOUND, ROOT
from tests.fuzz.spoiling import Spoiler
from tests.fuzz.talks import TALKS, Doors, Wire, hold
from tests.support.benches.gateway import CREDENTIALS, LIMITS
from tests.support.benches.serving import UNWATCHED, Served, kill, serving
from tests.support.network.ports import reserved_address
from tests.support.peers.behind_turn import Inbox, open_echo
from tests.support.peers.raw_http import recording_upstream

# So many conversations at a time. One message in this many is spoiled.
TALKS_A_ROUND = 24
SHARE = 1 / 8
# A call that has not come through by then does not come. Under sanitizers, beside other work, it takes seconds.
CALL_S = 60.0
STOPS_WITHIN_S = 120.0


class Fault(Exception):
    """What is wrong with the relay, and where the input is."""


@dataclass
class Counts:
    """What was done."""

    rounds: int = 0
    talks: int = 0
    messages: int = 0
    spoiled: int = 0

    def __str__(self) -> str:
        return f"{self.talks:,} conversations of {self.messages:,} messages, of which {self.spoiled:,} were spoiled"


@dataclass
class Face:
    """A relay in a process, and what it has said that it should not."""

    served: Served
    doors: Doors
    complaints: list[str] = field(default_factory=list)

    async def listen(self) -> None:
        """Read the log to its end."""
        assert self.served.process.stderr is not None
        async for line in self.served.process.stderr:
            if not _is_calm(line):
                self.complaints.append(line.decode(errors="replace").rstrip())

    async def place_call(self) -> None:
        """Raises OSError, TimeoutError or UpstreamError if it does not go through."""
        inbox = Inbox()
        async with asyncio.timeout(CALL_S), await self.served.open_turn(inbox.put) as turn:
            await turn.bind_channel(self.doors.peer)
            turn.send(self.doors.peer, b"healthy")
            assert await inbox.get() == (self.doors.peer, b"healthy")

    async def trouble(self) -> str:
        """What is wrong; empty if nothing is."""
        with contextlib.suppress(Exception):
            await self.place_call()
            if not self.complaints and not _reports():
                return ""
        if self.served.has_ended:
            return f"it has ended with {self.served.process.returncode}; {self._words()}"
        return self._words() or "no call goes through"

    def _words(self) -> str:
        return "\n".join([*self.complaints, *(path.read_text(errors="replace") for path in _reports())])


def _is_calm(line: bytes) -> bool:
    try:
        return json.loads(line)["level"] in {"debug", "info", "warning"}
    except (ValueError, KeyError, TypeError):
        return False


def _reports() -> list[Path]:
    """Those of sanitizers; see ``test-asan`` in the Makefile."""
    return sorted(ROOT.glob("report.*"))


@contextlib.asynccontextmanager
async def open_face(folder: Path, plane: str) -> AsyncIterator[Face]:
    """A relay with all its doors."""
    async with contextlib.AsyncExitStack() as stack:
        upstream = TurnHost(Address("127.0.0.1", 0), CREDENTIALS, allow_loopback_peers=True)
        host = await stack.enter_async_context(upstream)
        signaling = await stack.enter_async_context(recording_upstream())
        second = stack.enter_context(reserved_address())
        listen = {
            "tls": ["127.0.0.1:0", str(second)],
            "proxy_protocol": [str(second)],
            "web_proxy": ["127.0.0.1:0"],
            "plane": plane,
        }
        relay = serving(
            folder,
            host.address,
            listen=listen,
            balancers={"networks": ["127.0.0.0/8"]},
            signaling={"upstreams": [signaling.url]},
            limits=LIMITS | UNWATCHED | {"drain_timeout_s": 5},
        )
        served = await stack.enter_async_context(relay)
        peer = await stack.enter_async_context(open_echo())
        doors = Doors(served.tls, second, served.web_proxies[0], host.address, peer, served.trust)
        face = Face(served, doors)
        listening = asyncio.ensure_future(face.listen())
        try:
            yield face
        finally:
            await kill(served.process)
            await listening


async def search(face: Face, seed: str, until: float, *, rounds: int | None = None) -> Counts:
    """Hold conversations until the time is up, or for some rounds. Raises Fault."""
    counts = Counts()
    for number in itertools.count():
        if number == rounds or (rounds is None and time.monotonic() >= until):
            return counts
        wires = {f"{seed}/{number}/{talk}": _wire(face, f"{seed}/{number}/{talk}") for talk in range(TALKS_A_ROUND)}
        kinds = dict(zip(wires, itertools.cycle(TALKS), strict=False))
        held = await asyncio.gather(*(hold(TALKS[kinds[name]], wire) for name, wire in wires.items()))
        counts.rounds += 1
        counts.talks += len(wires)
        counts.messages += sum(wire.spoiler.messages for wire in wires.values())
        counts.spoiled += sum(wire.spoiler.spoiled for wire in wires.values())
        hanging = Counter(kinds[name] for name, whole in zip(wires, held, strict=True) if not whole)
        trouble = f"conversations hang: {dict(hanging)}" if hanging else await face.trouble()
        if trouble:
            said = {name: [kinds[name], *(piece.hex() for piece in wire.said)] for name, wire in wires.items()}
            raise Fault(f"{_save(seed, number, said)}: {trouble}")
    return counts


def _wire(face: Face, name: str) -> Wire:
    source = random.Random(name)
    return Wire(face.doors, Spoiler(source, SHARE), source)


def _save(seed: str, number: int, said: dict[str, list[str]]) -> Path:
    FOUND.mkdir(parents=True, exist_ok=True)
    path = FOUND / f"face-crash-{seed}-{number}.json"
    path.write_text(json.dumps(said, indent=1))
    return path


async def stop(face: Face) -> None:
    """End it in order. Raises Fault if it does not, or complains."""
    face.served.send_signal(signal.SIGTERM)
    async with asyncio.timeout(STOPS_WITHIN_S):
        status = await face.served.process.wait()
    if status or face.complaints or _reports():
        raise Fault(f"it has ended with {status}: {face._words()}")


async def run(plane: str, seed: str, seconds: float, *, rounds: int | None = None) -> Counts:
    """All of it. Raises Fault."""
    with tempfile.TemporaryDirectory(prefix="face-") as folder:
        async with open_face(Path(folder), plane) as face:
            counts = await search(face, seed, time.monotonic() + seconds, rounds=rounds)
            await stop(face)
    return counts


def main(seconds: str, plane: str = "compiled", seed: str = "") -> int:
    """Returns the exit status."""
    seed = seed or str(random.randrange(10**6))
    begun = time.monotonic()
    try:
        counts = asyncio.run(run(plane, seed, float(seconds)))
    except Fault as fault:
        sys.stdout.write(f"face ({plane}, seed {seed}): FAILED\n{fault}\n")
        return 1
    sys.stdout.write(f"face ({plane}, seed {seed}): {counts} in {time.monotonic() - begun:.0f} s, nothing found\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
