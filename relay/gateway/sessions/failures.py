"""What it means for a session that the upstream has refused a request."""

from __future__ import annotations

from enum import Enum

from relay.turn.events import RequestFailed

# The upstream has forgotten the allocation, or never knew it (RFC 8656 section 7.4: 437).
ALLOCATION_MISMATCH = 437
# RFC 8656 sections 7.2 and 12.2: no address of this family, and a peer of a family that the allocation does not have.
FAMILY_NOT_SUPPORTED = 440
PEER_FAMILY_MISMATCH = 443
# The upstream names another address to go to (RFC 8489 section 10).
TRY_ALTERNATE = 300

# What is said of codes that came without a reason.
_WORDS = {401: "wrong username or password", 440: "Address Family not Supported", 486: "too many allocations"}


class AllocateFailure(Enum):
    """Why there is no allocation, by what the session does next."""

    STALE_PORT = "stale_port"  # the upstream has one of an earlier client there: try another port
    SENT_ON = "sent_on"  # go to the address that it names
    NO_FAMILY = "no_family"  # another upstream may have the family
    REFUSED = "refused"  # the client is told
    NO_ANSWER = "no_answer"  # or one that says that the upstream cannot serve: go to another one


def allocate_failure(failed: RequestFailed) -> AllocateFailure:
    """Why an Allocate has failed."""
    if failed.code == ALLOCATION_MISMATCH:
        return AllocateFailure.STALE_PORT
    if failed.code == TRY_ALTERNATE and failed.alternate is not None:
        return AllocateFailure.SENT_ON
    if failed.code == FAMILY_NOT_SUPPORTED:
        return AllocateFailure.NO_FAMILY
    return AllocateFailure.REFUSED if 400 <= failed.code < 500 else AllocateFailure.NO_ANSWER


def refusal_of(failed: RequestFailed) -> str:
    """What the client is told, in the upstream's words if it has any."""
    if failed.code == PEER_FAMILY_MISMATCH:
        family = failed.reason or "Peer Address Family Mismatch"
        return f"the upstream refuses: {family}; open with family ipv6 or both for IPv6 peers"
    words = failed.reason or _WORDS.get(failed.code, "it does not say why")
    return f"the upstream refuses: {words}"
