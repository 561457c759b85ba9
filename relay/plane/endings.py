"""How both planes say why a connection ends, or waits to be accepted: the reason for an error, and words for the log.

All reasons are in ``api.CloseReason``.
"""

from __future__ import annotations

import errno
import os

from relay.plane.api import AcceptPaused, CloseReason, PauseCause

# Other errors of a socket are the upstream's, or the network's.
_NO_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})
# With these accept(2) takes nobody, and the next call would do no better.
CANNOT_ACCEPT = _NO_DESCRIPTORS | {errno.ENOBUFS, errno.ENOMEM}


def is_exhausted(error: OSError) -> bool:
    """True if the process, or the machine, has no descriptor left."""
    return error.errno in _NO_DESCRIPTORS


def reason_without_socket(error: OSError) -> CloseReason:
    """Why a connection ends whose flow gets no UDP socket."""
    return CloseReason.NO_DESCRIPTORS if is_exhausted(error) else CloseReason.UPSTREAM_UNREACHABLE


def pause_of(code: int) -> AcceptPaused:
    """Why newcomers wait, by an errno of accept(2). Without one (0), handshakes have begun too fast."""
    if not code:
        return AcceptPaused(PauseCause.HANDSHAKES)
    cause = PauseCause.DESCRIPTORS if code in _NO_DESCRIPTORS else PauseCause.MEMORY
    return AcceptPaused(cause, os.strerror(code).lower())


def silence_detail(silence_s: float, refused_for: int) -> str:
    """An upstream has not answered. An errno says why our own machine did not even ask; 0 if it did."""
    detail = f"no answer for {silence_s:g} s"
    return f"{detail}; our own machine did not send: {os.strerror(refused_for)}" if refused_for else detail


def unread_detail(waiting_bytes: int) -> str:
    """A client does not read what must not be dropped."""
    return f"{waiting_bytes} bytes unread"


def first_bytes_detail(first_bytes: bytes) -> str:
    """A client began with something that is neither TURN nor HTTP."""
    return f"first bytes {first_bytes[:8].hex(' ')}"
