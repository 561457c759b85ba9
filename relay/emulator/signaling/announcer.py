"""What clients are told, and who is told: the states of lines, presence, the floor, and all of it to one who comes.

A ``Delivery`` carries it. Other parts of the emulator may observe the same, in this process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from relay.emulator.lines import MAX_TALKERS, LineKind
from relay.emulator.signaling.directory import Account, Directory
from relay.emulator.signaling.messages import (
    MAX_LISTED_PARTICIPANTS,
    FloorState,
    LineState,
    PresenceState,
    PresenceStatus,
)
from relay.emulator.signaling.shared import Shared
from relay.emulator.signaling.state import Decision, Line, LineSpec, build_line_state

# Listeners that come and go on a crowded line are told of this often at most: 800 joins would be 640,000 messages.
CROWD_INTERVAL_S = 0.25

Observer = Callable[[LineSpec, Line], None]
PresenceObserver = Callable[[str, PresenceStatus], None]


class Delivery(Protocol):
    """Carries messages to clients, on whichever process they are. A room is a name that connections have entered."""

    async def emit(self, event: str, payload: Any, rooms: list[str]) -> None:
        """Send to all connections in any of the rooms; never waits for a slow one."""

    async def enter(self, connection: str, rooms: Iterable[str]) -> None:
        """Put a connection of this process into exactly these rooms, unless it is gone."""

    async def drop(self, connection: str) -> None:
        """End a connection, on whichever process it is."""

    async def tell_others(self, what: str) -> None:
        """Say a word to the hubs of other processes."""


def line_room(number: str) -> str:
    """The room of those who have a line."""
    return f"line:{number}"


def user_room(user_id: str) -> str:
    """The room of one user."""
    return f"user:{user_id}"


class Announcer:
    """Tells clients, on whichever process they are. It sets ``sooner`` when ``tell_crowds`` has something to tell."""

    def __init__(self, directory: Directory, shared: Shared, delivery: Delivery, sooner: asyncio.Event) -> None:
        self._directory = directory
        self._shared = shared
        self._delivery = delivery
        self._sooner = sooner
        self._observers: list[Observer] = []
        self._presence_observers: list[PresenceObserver] = []
        # Crowded lines whose listeners changed, and were not yet told of.
        self._crowds: dict[str, tuple[LineSpec, Line]] = {}

    def observe(self, observer: Observer) -> None:
        """Have every transition of every line told, also those that other processes have made."""
        self._observers.append(observer)

    def observe_presence(self, observer: PresenceObserver) -> None:
        """Have every change of presence told, also those that other processes have noticed."""
        self._presence_observers.append(observer)

    def heard_presence(self, user_id: str, state: PresenceStatus) -> None:
        """Another process has told clients of a presence; observers here want to know too."""
        for observer in self._presence_observers:
            observer(user_id, state)

    async def publish(self, spec: LineSpec, decision: Decision) -> None:
        """Tell of what has happened on a line; of listeners who come and go, at most every CROWD_INTERVAL_S."""
        line = decision.line
        for observer in self._observers:
            observer(spec, line)
        if decision.only_listeners_changed:
            if not self._crowds:
                asyncio.get_running_loop().call_later(CROWD_INTERVAL_S, self._sooner.set)
            self._crowds[spec.number] = (spec, line)
            return
        self._crowds.pop(spec.number, None)
        guests = {*decision.before.parties, *line.parties} - spec.firm_of.keys()
        rooms = [line_room(spec.number), *(user_room(guest) for guest in guests)]
        await self._delivery.emit(LineState.event, build_line_state(spec, line), rooms)
        if spec.kind is LineKind.HOOT and decision.floor_changed:
            floor = {"line": spec.number, "talkers": line.talkers, "max_talkers": MAX_TALKERS}
            await self._delivery.emit(FloorState.event, floor, rooms)

    async def tell_crowds(self) -> None:
        """Tell of listeners who came and went."""
        crowds, self._crowds = self._crowds, {}
        for spec, line in crowds.values():
            await self._delivery.emit(LineState.event, build_line_state(spec, line), [line_room(spec.number)])

    async def heard(self, number: str) -> None:
        """Another process has told clients of a line; observers here want to know too."""
        if self._observers and (spec := await self._directory.line(number)) is not None:
            line = (await self._shared.read_lines([number]))[number]
            for observer in self._observers:
                observer(spec, line)

    async def tell_presence(self, user_id: str, specs: Iterable[LineSpec], state: PresenceStatus) -> None:
        """Tell a user's presence to those who share a line with them that is not a crowd, and to themselves."""
        self.heard_presence(user_id, state)
        rooms = [user_room(other) for other in neighbours(user_id, specs)]
        await self._delivery.emit(PresenceState.event, {"user_id": user_id, "state": state}, rooms)

    async def welcome(self, account: Account, own: Mapping[str, LineSpec]) -> dict[str, Any]:
        """All that someone sees who has logged in, and has lines of ``own``: the fields of ``messages.Welcome``."""
        user_id, specs = account.user_id, dict(own)
        for number in await self._shared.guest_lines(user_id):
            if (spec := await self._directory.line(number)) is not None:
                specs[number] = spec
        lines = await self._shared.read_lines(specs)
        watched = neighbours(user_id, own.values())
        sessions = await self._shared.sessions(watched)
        offline = dict.fromkeys(watched, PresenceStatus.OFFLINE)
        people = {member.user_id: member for spec in specs.values() for member in spec.members}
        return {
            "user_id": user_id,
            "firm_id": account.firm_id,
            "region": account.region,
            "lines": [build_line_state(spec, lines[number]) for number, spec in specs.items()],
            "joined": [number for number, line in lines.items() if user_id in line.parties],
            "presence": {**offline, **{other: session.presence for other, session in sessions.items()}},
            "users": [{"user_id": one.user_id, "name": one.name, "firm": one.firm} for one in people.values()],
        }


def neighbours(user_id: str, specs: Iterable[LineSpec]) -> list[str]:
    """Who sees a user's presence. Crowds do not: 800 subscribers who log in would be 640,000 messages."""
    near = {other for spec in specs if len(spec.members) <= MAX_LISTED_PARTICIPANTS for other in spec.firm_of}
    return sorted(near | {user_id})
