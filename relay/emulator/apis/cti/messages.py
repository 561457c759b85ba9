"""What goes over the CTI WebSocket. The envelope, the names of messages and the codes are observed; the rest is ours.

Each message is ``{"headers": {...}, "messageType": "...", "messageBody": "<JSON>"}``, and is signed by itself.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Any, ClassVar

from pydantic import Field, StrictBool

from relay.emulator.apis.models import WHOLE, ApiModel, ApiRequest, LineNumber, Name, Time
from relay.emulator.marks import Mark

# A body has some hundred bytes; a request for a snapshot of 1,000 users has 20 KB.
MAX_MESSAGE_BYTES = 64 * 1024
MAX_USERS = 1000
FAR_END = "a connection's number, a number to dial, or a user's id: 1 to 64 printable ASCII characters, without spaces"


class FarEndType(IntEnum):
    """What a number at the far end is."""

    mark: ClassVar[Mark]

    CONNECTION = 0
    DIAL_TONE = 1
    USER = 2
    DIAL_PLAN = 3


class CallStatusCode(IntEnum):
    """What a user's call is. 0, 1, 16, 17 and 18 are observed; the two for ringing are invented."""

    mark: ClassVar[Mark]

    OFFLINE = 0
    IDLE = 1
    RINGING_OUTBOUND = 2
    RINGING_INBOUND = 3
    CONNECTED_OUTBOUND = 16
    CONNECTED_INBOUND = 17
    CONNECTED_TWO_WAY = 18


FarEndType.mark = CallStatusCode.mark = Mark.OBSERVED


class RejectionCode(IntEnum):
    """Why a message was rejected: the numbers mean what they mean in HTTP. Which numbers the vendor has is unknown."""

    BAD_MESSAGE = 400
    WRONG_SIGNATURE = 401
    NOT_ALLOWED = 403
    UNKNOWN = 404
    WRONG_STATE = 409
    TOO_MANY = 429
    UNAVAILABLE = 503


class Envelope(ApiRequest):
    """What carries every message, in both directions. ``headers`` has Authorization and Date."""

    mark: ClassVar[Mark] = Mark.OBSERVED
    headers: Annotated[dict[str, str], Field(max_length=16)]
    message_type: Annotated[str, Field(min_length=1, max_length=64)]
    message_body: str


# From the client


class InitiateCall(ApiRequest):
    """Place a call for a user who is logged in.

    ``farEndNumber`` is a connection, a number to dial, or a user, as ``farEndType`` says. ``nearEndNumber`` is the
    user's own line to do it on; without it the emulator chooses one.
    """

    mark: ClassVar[Mark] = Mark.OBSERVED
    user_id: Name
    privacy_on: StrictBool = False
    far_end_number: Annotated[str, Field(pattern="^[!-~]{1,64}$", description=FAR_END)]
    far_end_type: Annotated[int, Field(ge=0, le=3), WHOLE]
    near_end_number: LineNumber | None = None


class ReleaseCall(ApiRequest):
    """End a user's call. Which of them may be left open if there is only one. Observed is the name alone."""

    user_id: Name
    call_id: Name | None = None
    near_end_number: LineNumber | None = None


class SnapshotRequest(ApiRequest):
    """All users of the firm, or these."""

    user_ids: Annotated[list[Name], Field(max_length=MAX_USERS)] | None = None


# From the server


class CallStatus(ApiModel):
    """A user's call on a line has changed. ``callId`` is null if there is none."""

    user_id: str
    call_id: str | None
    call_status_code: CallStatusCode
    near_end_number: str
    far_end_number: str
    far_end_type: FarEndType
    privacy_on: bool
    reason: str | None = Field(default=None, description="why the last call ended")
    timestamp: Time | None = Field(description="since when it is so; null before the line's first call")


class CallStatusSnapshot(ApiModel):
    """The calls of users, one entry for each line that a user has."""

    call_statuses: list[CallStatus]


class UserStatusUpdate(ApiModel):
    """A user's presence has changed."""

    user_id: str
    user_name: str
    logged_in: bool
    status: str


class UserStatusSnapshot(ApiModel):
    """The presence of users."""

    user_statuses: list[UserStatusUpdate]


class Rejection(ApiModel):
    """A message was not done. The first two fields are observed; the others say more."""

    mark: ClassVar[Mark] = Mark.OBSERVED
    rejection_code: int
    rejection_reason: str
    message_type: str | None = Field(default=None, description="of the message that is rejected")
    nonce: str | None = Field(default=None, description="of the message that is rejected")
    where: str = ""
    expected: str = ""


# By their names on the wire.
FROM_CLIENT: dict[str, type[ApiRequest]] = {
    "initiateCall": InitiateCall,
    "releaseCall": ReleaseCall,
    "callStatusSnapshot": SnapshotRequest,
    "userStatusSnapshot": SnapshotRequest,
}
FROM_SERVER: dict[str, type[ApiModel]] = {
    "callStatus": CallStatus,
    "callStatusSnapshot": CallStatusSnapshot,
    "userStatusUpdate": UserStatusUpdate,
    "userStatusSnapshot": UserStatusSnapshot,
    "rejection": Rejection,
}
_NAMES: dict[type[ApiModel], str] = {model: name for name, model in FROM_SERVER.items()}


def name_of(message: ApiModel) -> str:
    """The ``messageType`` of a message of ours."""
    return _NAMES[type(message)]


class Rejected(Exception):
    """A message that is not done."""

    def __init__(self, code: RejectionCode | int, reason: str, *, where: str = "", expected: str = "") -> None:
        super().__init__(reason)
        self.code, self.reason, self.where, self.expected = code, reason, where, expected

    def message(self, message_type: str | None = None, nonce: str | None = None, **_: Any) -> Rejection:
        """What the client is told."""
        return Rejection(
            rejection_code=int(self.code),
            rejection_reason=self.reason,
            message_type=message_type,
            nonce=nonce,
            where=self.where,
            expected=self.expected,
        )
