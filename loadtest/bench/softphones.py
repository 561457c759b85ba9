"""Many softphones whose calls come and go over all carriers, through a relay and directly, and what is left of them.

    python -m loadtest.bench.softphones --phones 50 --calls 200 --seconds 120

It starts an emulated cloud and a relay. Each softphone has lines to others: ringdown, shoutdown and intercom. Calls are
answered, declined, or given up. Some also listen on a hoot, where two of them talk. Every packet is checked, every call
is recorded, and every recording is fetched again and compared. At the end the log of events must be free of
contradictions, and nothing may be left: flows, allocations, tasks, sockets. The exit status is 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import random
import secrets
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

import uvloop

from relay import logs
from relay.demo.calls import paths
from relay.demo.cloud import Floor, running_floor, softphone_user, with_more
from relay.emulator.fixtures import LineFixture, bundled
from relay.emulator.lines import LineKind
from relay.emulator.signaling.invariants import check
from relay.emulator.signaling.messages import EndReason, LineStatus
from relay.emulator.softphone import Call, CallEnded, Carrier, Pacer, Softphone, SoftphoneError, Trust, TurnTls
from relay.emulator.softphone.hoot import HootMedia
from relay.emulator.softphone.recorder import Recording
from relay.emulator.softphone.voice import Arrivals
from relay.emulator.store.passwords import hash_password

SERVER_NAME = "use1-stun1.xhoot.com"
# How far the other end of a line is, round the table, and what the line is.
NEIGHBOURS = {1: LineKind.RINGDOWN, 2: LineKind.RINGDOWN, 7: LineKind.SHOUTDOWN, 13: LineKind.INTERCOM}
# The shares of ringing calls that are declined, and that the caller gives up.
DECLINED, GIVEN_UP = 0.08, 0.08
# Calls begin in the first part of the time, and the last ones end in the rest.
BEGIN_WITHIN = 0.85
# Two softphones of each carrier are on a hoot. The first two of them talk, for this part of the time.
HOOT, HOOT_MEMBERS, HOOT_TALKERS, HOOT_TALK = "sPK-30000000-000000", 12, 2, 0.3
# After the last call, what was held has this long to go. The relay notices a client that is gone at once.
GONE_WITHIN_S = 60.0
# Logins at once: each checks a password.
LOGINS_AT_ONCE = 8


@dataclass
class Outcome:
    """What became of it. ``faults`` is empty if all is well."""

    phones: int = 0
    calls: int = 0
    answered: int = 0
    declined: int = 0
    given_up: int = 0
    legs: int = 0
    hoot_voices: int = 0
    packets: int = 0
    lost: int = 0
    late: int = 0
    recordings: int = 0
    recording_bytes: int = 0
    transitions: int = 0
    by_carriers: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


class Crowd:
    """The softphones, and the calls among them."""

    def __init__(self, floor: Floor, phones: int, seed: int) -> None:
        self.outcome = Outcome(phones=phones)
        self._floor = floor
        self._random = random.Random(seed)  # noqa: S311
        self._phones: list[Softphone] = []
        self._carriers = _carriers(floor)
        self._pacer = Pacer()
        self._answering: set[asyncio.Task[None]] = set()
        self._checking: list[Call] = []
        self._taken: set[str] = set()

    async def run(self, calls: int, seconds: float, password: str) -> Outcome:
        """Log in, call, and hang up."""
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._pacer.close)
            logging_in = asyncio.Semaphore(LOGINS_AT_ONCE)
            await asyncio.gather(
                *(self._open(stack, number, password, logging_in) for number in range(self.outcome.phones))
            )
            self._phones.sort(key=lambda phone: phone.user_id)
            begin = asyncio.get_running_loop().time()
            times = sorted(self._random.uniform(0, BEGIN_WITHIN * seconds) for _ in range(calls))
            at_most_s = (1 - BEGIN_WITHIN) * seconds
            await asyncio.gather(
                self._hoot(HOOT_TALK * seconds),
                *(self._call(number, begin + time, at_most_s) for number, time in enumerate(times)),
            )
            await asyncio.gather(*self._answering, return_exceptions=True)
            for call in self._checking:
                await self._check_recording(call)
        return self.outcome

    async def _open(
        self, stack: contextlib.AsyncExitStack, number: int, password: str, logging_in: asyncio.Semaphore
    ) -> None:
        phone = Softphone(
            self._floor.url,
            _name(number),
            password,
            carrier=self._carriers[number % len(self._carriers)],
            pacer=self._pacer,
            records=True,
            on_incoming=self._on_incoming,
        )
        async with logging_in:
            await stack.enter_async_context(phone)
        self._phones.append(phone)

    # Calls

    async def _call(self, number: int, at: float, at_most_s: float) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(at - loop.time())
        phone, line = self._free_line(number)
        try:
            call = await phone.ring(line)
            self.outcome.calls += 1
            name = phone.carrier.name
            self.outcome.by_carriers[name] = self.outcome.by_carriers.get(name, 0) + 1
            self._checking.append(call)
            if call.state.state is LineStatus.RINGING and self._random.random() < GIVEN_UP:
                await call.release()
                self.outcome.given_up += 1
                return
            await self._talk(call, self._random.uniform(0.3, 1.0) * at_most_s)
        except SoftphoneError as error:
            self._fault(f"{phone.user_id} on {line}: {error}")
        finally:
            self._taken.discard(line)

    async def _talk(self, call: Call, seconds: float) -> None:
        try:
            await call.answered()
        except CallEnded as ended:
            if ended.reason is not EndReason.DECLINED:
                raise
            self.outcome.declined += 1
            return
        await call.ready()
        self.outcome.answered += 1
        await asyncio.sleep(seconds)
        await call.release()

    async def _hoot(self, seconds: float) -> None:
        """Some join a hoot, and the first of them talk. One after the other leaves, and the key changes."""
        try:
            calls = [await phone.join(HOOT) for phone in self._phones[:HOOT_MEMBERS]]
            self._checking += calls
            await asyncio.gather(*(call.ready() for call in calls))
            for call in calls[:HOOT_TALKERS]:
                await call.talk(on=True)
            await asyncio.sleep(seconds)
            for call in reversed(calls):
                await call.release()
                self.outcome.hoot_voices += len(call.voices)
        except SoftphoneError as error:
            self._fault(f"hoot: {error}")

    def _free_line(self, number: int) -> tuple[Softphone, str]:
        """A line on which nothing goes on. The carriers of those who call take turns."""
        callers = self._phones[number % len(self._carriers) :: len(self._carriers)]
        idle = [
            (phone, line)
            for phone in callers
            for line, state in sorted(phone.lines.items())
            if state.state is LineStatus.IDLE and line not in self._taken and line != HOOT
        ]
        phone, line = self._random.choice(idle)
        # Otherwise both ends might ring in the same moment, before either has heard of the other.
        self._taken.add(line)
        return phone, line

    def _on_incoming(self, call: Call) -> None:
        self._checking.append(call)
        if call.state.state is LineStatus.RINGING:
            task = asyncio.get_running_loop().create_task(self._answer(call))
            self._answering.add(task)

    async def _answer(self, call: Call) -> None:
        await asyncio.sleep(self._random.uniform(0, 0.2))
        if call.is_open:
            declines = self._random.random() < DECLINED
            # The caller may have given up in this moment.
            with contextlib.suppress(SoftphoneError):
                await (call.release() if declines else call.answer())

    # What became of them

    async def _check_recording(self, call: Call) -> None:
        self._check_media(call)
        try:
            recording = await call.recorded()
            if recording is not None:
                await self._compare(call, recording)
        except SoftphoneError as error:
            self._fault(f"recording of {call}: {error}")

    def _check_media(self, call: Call) -> None:
        for leg in call.legs.values():
            if leg.listener is not None:
                self.outcome.legs += 1
                self._check_listener(call, leg.listener, leg.user_id)
        for ssrc, voice in call.voices.items():
            self._check_listener(call, voice, f"{ssrc:#010x}")
        if isinstance(call.media, HootMedia) and call.media.listeners.wrong:
            self._fault(f"{call}: {call.media.listeners.wrong} packets that match no key")

    def _check_listener(self, call: Call, listener: Arrivals, source: str) -> None:
        playout = listener.playout()
        self.outcome.packets += playout.received
        self.outcome.lost += playout.lost
        self.outcome.late += playout.late
        if listener.wrong:
            self._fault(f"{call}: {listener.wrong} wrong packets from {source}")

    async def _compare(self, call: Call, recording: Recording) -> None:
        phone = next(phone for phone in self._phones if phone.user_id == recording.user_id)
        media = await phone.fetch_recording(recording.recording_id)
        self.outcome.recordings += 1
        self.outcome.recording_bytes += len(media)
        if hashlib.sha256(media).hexdigest() != recording.sha256:
            self._fault(f"{call}: the recording that was fetched differs from the one that was sent")

    def _fault(self, text: str) -> None:
        self.outcome.faults.append(text)


def _name(number: int) -> str:
    return f"phone-{number:03}"


def _carriers(floor: Floor) -> list[Carrier]:
    access = floor.relay_access(SERVER_NAME)
    # The last one is TLS to the TURN hosts themselves, without the relay.
    return [*paths(access), TurnTls(None, Trust(access.trust, "127.0.0.1"), name="TURN/TLS direct")]


async def _lines_of(phones: int, password: str) -> tuple[list[LineFixture], str]:
    on_hoot = tuple(_name(number) for number in range(min(phones, HOOT_MEMBERS)))
    lines = [LineFixture(number=HOOT, kind=LineKind.HOOT, label="hoot", members=on_hoot)]
    for step, kind in NEIGHBOURS.items():
        for number in range(phones):
            other = (number + step) % phones
            if other == number or (phones <= 2 * step and number >= phones - step):
                continue
            text = f"sPK-3{step:07}-{number:06}"
            lines.append(
                LineFixture(number=text, kind=kind, label=f"{number} - {other}", members=(_name(number), _name(other)))
            )
    return lines, await asyncio.to_thread(hash_password, password)


async def run(phones: int, calls: int, seconds: float, seed: int = 1) -> Outcome:
    """All of it: the cloud, the relay, the calls, and a look at what is left."""
    password = secrets.token_urlsafe(16)
    lines, hashed = await _lines_of(phones, password)
    people = with_more(bundled(), [softphone_user(_name(number), hashed) for number in range(phones)], lines)
    with tempfile.TemporaryDirectory(prefix="relay-softphones-") as name:
        async with running_floor(Path(name), people) as floor:
            before = _sockets()
            outcome = await Crowd(floor, phones, seed).run(calls, seconds, password)
            entries = floor.cloud.signaling.hub.event_log.entries
            outcome.transitions = sum(entry["entry"] == "transition" for entry in entries)
            outcome.faults += check(entries, finished=True)
            outcome.faults += await _left(floor, before)
    if others := asyncio.all_tasks() - {asyncio.current_task()}:
        outcome.faults.append(f"{len(others)} tasks are left: {[task.get_name() for task in others][:5]}")
    return outcome


async def _left(floor: Floor, before: int) -> list[str]:
    """What is still held when all softphones are gone for a while."""
    deadline = asyncio.get_running_loop().time() + GONE_WITHIN_S
    while (left := _held(floor, before)) and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    return left


def _held(floor: Floor, before: int) -> list[str]:
    counts = {
        "flows are left in the relay": len(floor.gateway.plane.snapshot().flows),
        "allocations are left in the TURN hosts": floor.cloud.turn_allocations,
        # The relay's questions whether its upstreams are well come and go, so there may be fewer than before.
        "more sockets than before are open": _sockets() - before,
    }
    return [f"{count} {what}" for what, count in counts.items() if count > 0]


def _sockets() -> int:
    """How many sockets this process has open."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        # The one with which the folder is read is closed by now.
        with contextlib.suppress(OSError):
            found += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
    return found


def main() -> None:
    """Run, and print the outcome as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phones", type=int, default=50)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=1)
    wanted = parser.parse_args()
    logs.configure("warning", "text")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        outcome = runner.run(run(wanted.phones, wanted.calls, wanted.seconds, wanted.seed))
    json.dump(asdict(outcome), sys.stdout, indent=2)
    sys.stdout.write("\n")
    sys.exit(1 if outcome.faults else 0)


if __name__ == "__main__":
    main()
