"""What can happen to a line: what its users ask for, and what comes without being asked for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ring:
    """A user starts a call. ``reachable`` are the other members who are logged in and may be disturbed.

    ``disturbable`` are those for whom the line may ring, logged in or not. ``callee`` is whose extension ``number`` is.
    """

    user_id: str
    call_id: str
    region: str = ""
    number: str | None = None
    reachable: frozenset[str] = frozenset()
    disturbable: frozenset[str] = frozenset()
    callee: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A user answers."""

    user_id: str


@dataclass(frozen=True, slots=True)
class Release:
    """A user hangs up, or declines."""

    user_id: str


@dataclass(frozen=True, slots=True)
class Talk:
    """A user begins or ends to talk."""

    user_id: str
    on: bool


@dataclass(frozen=True, slots=True)
class Join:
    """A user begins to listen. ``call_id`` is for the call that the first one begins."""

    user_id: str
    call_id: str
    region: str = ""


@dataclass(frozen=True, slots=True)
class Leave:
    """A user no longer listens."""

    user_id: str


@dataclass(frozen=True, slots=True)
class Gone:
    """A user's client has vanished, and did not come back in time."""

    user_id: str


@dataclass(frozen=True, slots=True)
class Silenced:
    """A user may only listen now. If they talk, they lose the floor."""

    user_id: str


@dataclass(frozen=True, slots=True)
class Deadline:
    """The line's deadline has come, or may have."""


@dataclass(frozen=True, slots=True)
class Removed:
    """The line no longer exists. Whatever its state, a call on it ends."""


Input = Ring | Answer | Release | Talk | Join | Leave | Gone | Silenced | Deadline | Removed
# What each is called on the wire.
EVENTS: dict[type[Input], str] = {
    Ring: "line.ring",
    Answer: "line.answer",
    Release: "line.release",
    Talk: "line.talk",
    Join: "line.join",
    Leave: "line.leave",
}
