"""What can go wrong for a softphone, sorted by who must act. Each message says what happened, and who changes it."""

from __future__ import annotations

from relay.emulator.signaling.messages import EndReason, ErrorCode, SessionEnd
from relay.errors import RelayError


class SoftphoneError(RelayError):
    """The root of them."""


class LoginRefused(SoftphoneError):
    """The user must act: name, password, or a user that is disabled. ``retry_after_s`` is set if they were too many."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unreachable(SoftphoneError):
    """The operator must act: a host does not answer, does not answer in time, or answers something else."""


class SignalingRefused(SoftphoneError):
    """The caller must act: the server has refused a message, and says what it expected."""

    def __init__(self, code: ErrorCode, message: str, expected: str = "") -> None:
        super().__init__(f"{message} Expected: {expected}." if expected else message)
        self.code = code
        self.expected = expected


class SessionReplaced(SoftphoneError):
    """The user has logged in elsewhere. This softphone must not come back by itself."""

    def __init__(self) -> None:
        super().__init__("The user has logged in elsewhere; this softphone has ended.")


_SESSION_ENDS = {
    SessionEnd.DISABLED: "An administrator has disabled this user",
    SessionEnd.EXPIRED: "The time of this login is up; log in again",
    SessionEnd.ENDED: "This login was ended, by a logout or by a new password; log in again",
}


class SessionEnded(SoftphoneError):
    """The login has ended, for the server's ``reason``. This softphone cannot come back."""

    def __init__(self, reason: SessionEnd) -> None:
        super().__init__(f"{_SESSION_ENDS[reason]}.")
        self.reason = reason


class CallEnded(SoftphoneError):
    """The call ended before what was awaited. ``reason`` is the server's, None if the softphone was closed."""

    def __init__(self, reason: EndReason | None) -> None:
        super().__init__(f"The call has ended: {reason or 'the softphone was closed'}.")
        self.reason = reason


class MediaFailed(SoftphoneError):
    """Signaling works, but there is no voice: the way to the TURN hosts, or what the other side has described."""


class NotEntitled(MediaFailed):
    """A firm administrator must act: the setting that the message names."""


class UploadFailed(SoftphoneError):
    """The recorder did not take a recording."""
