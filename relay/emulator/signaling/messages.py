"""Every message of signaling, as pydantic models, each with its mark. socket.io 4 or 5, namespace ``/``.

A client connects with ``auth={"token": ...}``, the token of its login. Each message of a client is acknowledged:
``{"ok": true, ...}``, or ``{"ok": false, "error": {"code", "message", "expected"}}``. No message is documented anywhere
in public, so all are invented, though what they speak of is not: the kinds of lines are documented.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StringConstraints

from relay.emulator.lines import MAX_TALKERS, LineKind
from relay.emulator.marks import Mark

# A browser's offer for audio has 2 to 6 KB. 64 KiB leave room for every candidate and codec that anybody adds.
MAX_SDP_BYTES = 64 * 1024
# An ICE candidate has 80 to 200 bytes. RFC 8839 sets no bound.
MAX_CANDIDATE_BYTES = 1024
# The longest opaque token in use is a JWT of a few hundred bytes; ours are shorter.
MAX_TOKEN_CHARACTERS = 1024
# Above 50 users the vendor takes a hoot to its cloud (documented). A message that lists everyone would then be sent to
# everyone: 800 times 50 KB for each that joins. So a line with more participants than this lists its talkers only.
MAX_LISTED_PARTICIPANTS = 50
# The media servers' own name as a sender and receiver of media descriptions. No user has it.
MEDIA_SERVER = "@sfu"


def _at_most(limit: int) -> AfterValidator:
    def check(text: str) -> str:
        if len(text.encode("utf-8", "surrogatepass")) > limit:
            raise ValueError(f"longer than {limit} bytes")
        return text

    return AfterValidator(check)


LineNumber = Annotated[
    str,
    Field(pattern=r"^s[A-Z]{2}-[0-9]{1,12}-[0-9]{1,12}$", description="a line's number, such as sPK-10000001-100001"),
]
UserId = Annotated[str, Field(pattern=r"^[A-Za-z0-9._@-]{1,64}$", description="a user's id")]
CallId = Annotated[
    str,
    Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", description="the call_id of a line.state"),
]
DialNumber = Annotated[
    str, Field(pattern=r"^\+?[0-9*#]{1,32}$", description="1 to 32 digits, * or #, perhaps after a +")
]
Sdp = Annotated[str, StringConstraints(min_length=1, max_length=MAX_SDP_BYTES), _at_most(MAX_SDP_BYTES)]
# Empty: no more candidates follow (RFC 8838, section 8.2).
Candidate = Annotated[str, StringConstraints(max_length=MAX_CANDIDATE_BYTES), _at_most(MAX_CANDIDATE_BYTES)]


class LineStatus(StrEnum):
    """What goes on on a line. ``talking`` is one-way: some talk and the others listen."""

    IDLE = "idle"
    RINGING = "ringing"
    CONNECTED = "connected"
    TALKING = "talking"


class PartyRole(StrEnum):
    """What someone is in a call."""

    CALLER = "caller"
    CALLEE = "callee"
    TALKER = "talker"
    LISTENER = "listener"


class PresenceStatus(StrEnum):
    """``offline`` follows from not being logged in; a user sets the others."""

    AVAILABLE = "available"
    BUSY = "busy"
    AWAY = "away"
    DO_NOT_DISTURB = "do_not_disturb"
    OFFLINE = "offline"


class EndReason(StrEnum):
    """Why a call ended."""

    RELEASED = "released"  # someone in it released the line
    DECLINED = "declined"  # the last one that it rang for released the line
    TIMEOUT = "timeout"  # nobody answered
    LEFT = "left"  # the last subscriber left the hoot
    GONE = "gone"  # a client vanished, and did not come back within the grace
    REMOVED = "removed"  # the line no longer exists
    BUSY = "busy"  # the dialled number is busy
    UNREACHABLE = "unreachable"  # the dialled number does not exist


class SessionEnd(StrEnum):
    """Why a session ended whose client is still there."""

    DISABLED = "disabled"  # an administrator has disabled the user
    EXPIRED = "expired"  # the login's time is up
    ENDED = "ended"  # the login was ended: by a logout, or by a new password


class ErrorCode(StrEnum):
    """Why a message, or a connection, was refused."""

    BAD_MESSAGE = "bad_message"  # not of the form that this event has
    UNKNOWN_EVENT = "unknown_event"
    NOT_LOGGED_IN = "not_logged_in"  # no token, an unknown one, or one that has ended
    TOO_MANY_CONNECTIONS = "too_many_connections"
    RATE_LIMITED = "rate_limited"
    UNKNOWN_LINE = "unknown_line"  # there is no such line, or it is not yours
    WRONG_STATE = "wrong_state"  # not possible on this kind of line, in its present state, or in your role
    NOBODY_THERE = "nobody_there"  # nobody else on this line can be reached
    LINE_FULL = "line_full"
    FLOOR_FULL = "floor_full"
    NOT_IN_CALL = "not_in_call"  # you, or the one you send to, is not in this call
    UNAVAILABLE = "unavailable"  # the emulator could not do it: its store or its Redis failed, or it has no SFU


class Message(BaseModel):
    """What all messages have in common: bounded, frozen, and nothing that is not in the model."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
    mark: ClassVar[Mark] = Mark.INVENTED


class Event(Message):
    """A message with a name of its own: the name of the socket.io event."""

    event: ClassVar[str]


# Parts of messages


class Participant(Message):
    """Someone in a call. In a ringing call the callees are those that it rings for."""

    user_id: UserId
    role: PartyRole
    talking: bool


class User(Message):
    """Someone who shares a line with you."""

    user_id: UserId
    name: str = Field(max_length=200)
    firm: str = Field(max_length=200)


class ErrorInfo(Message):
    """What is wrong with a message, and what was expected."""

    code: ErrorCode
    message: str
    expected: str = ""


# From the server


class LineState(Event):
    """The whole state of a line, sent to its members at each transition. One with a lower ``seq`` is older: ignore it.

    ``seq`` grows by one with each transition. A client may miss some, and loses nothing: each state is complete.
    ``participants`` lists everyone in the call, or only the talkers if there are more than 50; ``subscribers`` counts
    all. ``since`` is the time of the last change of ``state``, null before the first. ``reason`` is why the last call
    ended.
    """

    event: ClassVar[str] = "line.state"
    line: LineNumber
    kind: LineKind
    label: str = Field(max_length=200)
    state: LineStatus
    seq: int = Field(ge=0)
    call_id: CallId | None
    participants: tuple[Participant, ...] = Field(max_length=MAX_LISTED_PARTICIPANTS)
    subscribers: int = Field(ge=0)
    number: DialNumber | None = None
    reason: EndReason | None = None
    since: datetime | None


class Welcome(Event):
    """Everything that the user may see: the first message of a connection, and sent again when lines were changed.

    It replaces what the client knew, ``seq`` included. ``joined`` are the lines on which the user is in a call.
    """

    event: ClassVar[str] = "welcome"
    user_id: UserId
    firm_id: str = Field(max_length=64)
    region: str = Field(max_length=64)
    lines: tuple[LineState, ...]
    joined: tuple[LineNumber, ...]
    presence: dict[UserId, PresenceStatus]
    users: tuple[User, ...]


class PresenceState(Event):
    """The presence of someone who shares a line with you has changed."""

    event: ClassVar[str] = "presence.state"
    user_id: UserId
    state: PresenceStatus


class FloorState(Event):
    """Who talks on a hoot, sent to its members whenever that changes."""

    event: ClassVar[str] = "floor.state"
    line: LineNumber
    talkers: tuple[UserId, ...] = Field(max_length=MAX_TALKERS)
    max_talkers: int


class MediaDescription(Event):
    """An offer or an answer from someone in your call. The server does not read SDP."""

    event: ClassVar[str] = "media.description"
    call_id: CallId
    from_user: UserId = Field(alias="from")
    type: Literal["offer", "answer"]
    sdp: Sdp


class MediaCandidate(Event):
    """An ICE candidate of someone in your call; empty: no more will follow."""

    event: ClassVar[str] = "media.candidate"
    call_id: CallId
    from_user: UserId = Field(alias="from")
    candidate: Candidate


class SessionReplaced(Event):
    """The user has logged in elsewhere. This connection is closed, and must not connect again by itself."""

    event: ClassVar[str] = "session.replaced"


class SessionEnded(Event):
    """The login has ended. The user has left all calls; this connection is closed, and its token is of no use."""

    event: ClassVar[str] = "session.ended"
    reason: SessionEnd


class Fault(Event):
    """Something failed that no message of yours has caused."""

    event: ClassVar[str] = "fault"
    code: ErrorCode
    message: str


# From the client


class ConnectAuth(Message):
    """The ``auth`` of socket.io's CONNECT packet."""

    token: str = Field(min_length=1, max_length=MAX_TOKEN_CHARACTERS)


class PresenceSet(Event):
    """Set your presence. Lines do not ring for someone who is ``do_not_disturb``."""

    event: ClassVar[str] = "presence.set"
    state: Literal[PresenceStatus.AVAILABLE, PresenceStatus.BUSY, PresenceStatus.AWAY, PresenceStatus.DO_NOT_DISTURB]


class LineEvent(Event):
    """What all messages of a client about one line have."""

    line: LineNumber


class LineRing(LineEvent):
    """Start a call: a ringdown line rings, dial tone dials ``number``, the others connect at once."""

    event: ClassVar[str] = "line.ring"
    number: DialNumber | None = None


class LineAnswer(LineEvent):
    """Answer a ringing line."""

    event: ClassVar[str] = "line.answer"


class LineRelease(LineEvent):
    """Hang up, or decline. The record of a call that this ends is on disk before the acknowledgement."""

    event: ClassVar[str] = "line.release"


class LineTalk(LineEvent):
    """Begin or end to talk: on a shoutdown in your direction, on a hoot as one of at most 12."""

    event: ClassVar[str] = "line.talk"
    on: StrictBool


class LineJoin(LineEvent):
    """Begin to listen on a hoot, or on a broadcast that goes on."""

    event: ClassVar[str] = "line.join"


class LineLeave(LineEvent):
    """End to listen on a hoot or a broadcast."""

    event: ClassVar[str] = "line.leave"


class SendDescription(Event):
    """Send an offer or an answer to someone in your call."""

    event: ClassVar[str] = "media.description"
    call_id: CallId
    to: UserId
    type: Literal["offer", "answer"]
    sdp: Sdp


class SendCandidate(Event):
    """Send an ICE candidate to someone in your call; empty: no more will follow."""

    event: ClassVar[str] = "media.candidate"
    call_id: CallId
    to: UserId
    candidate: Candidate


class StateGet(Event):
    """Ask for everything again, as in ``welcome``."""

    event: ClassVar[str] = "state.get"


# Acknowledgements


class Accepted(Message):
    """The acknowledgement of ``presence.set`` and of media."""

    ok: Literal[True] = True


class LineAccepted(Accepted):
    """The acknowledgement of each ``line.`` message: the line as it is now."""

    line_state: LineState


class StateAccepted(Welcome, Accepted):
    """The acknowledgement of ``state.get``."""


class Refused(Message):
    """The acknowledgement of a message that changed nothing."""

    ok: Literal[False] = False
    error: ErrorInfo


FROM_SERVER: tuple[type[Event], ...] = (
    Welcome,
    LineState,
    PresenceState,
    FloorState,
    MediaDescription,
    MediaCandidate,
    SessionReplaced,
    SessionEnded,
    Fault,
)
# With what acknowledges each.
FROM_CLIENT: dict[type[Event], type[Accepted]] = {
    PresenceSet: Accepted,
    LineRing: LineAccepted,
    LineAnswer: LineAccepted,
    LineRelease: LineAccepted,
    LineTalk: LineAccepted,
    LineJoin: LineAccepted,
    LineLeave: LineAccepted,
    SendDescription: Accepted,
    SendCandidate: Accepted,
    StateGet: StateAccepted,
}
