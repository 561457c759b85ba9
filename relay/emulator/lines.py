"""The kinds of lines, and who may be on them. How they behave is in ``signaling/machines``."""

from __future__ import annotations

import enum

# Documented: a hoot of the cloud has up to this many subscribers, of whom at most 12 talk at once.
MAX_SUBSCRIBERS = 800
MAX_TALKERS = 12


class LineKind(enum.StrEnum):
    """Documented by the vendor, by these words."""

    RINGDOWN = "ringdown"
    SHOUTDOWN = "shoutdown"
    HOOT = "hoot"
    INTERCOM = "intercom"
    DIAL_TONE = "dial_tone"
    BROADCAST = "broadcast"


class MemberRole(enum.StrEnum):
    """What a member may do on a line."""

    TALKER = "talker"
    LISTENER = "listener"


# How many members a line has, at least and at most.
_MEMBERS = {
    LineKind.RINGDOWN: (2, 32),
    LineKind.SHOUTDOWN: (2, 32),
    LineKind.HOOT: (2, MAX_SUBSCRIBERS),
    LineKind.INTERCOM: (2, 32),
    LineKind.DIAL_TONE: (1, 1),
    LineKind.BROADCAST: (2, MAX_SUBSCRIBERS),
}


def can_have(kind: LineKind, members: int, talkers: int | None) -> str:
    """Says what is wrong with the number of members or talkers. Empty if nothing is. ``None`` talkers: all talk."""
    least, most = _MEMBERS[kind]
    if not least <= members <= most:
        wanted = f"{least}" if least == most else f"{least} to {most}"
        return f"{members} given; a {kind} line has {wanted}"
    if talkers == 0:
        return f"a {kind} line needs at least one talker"
    if kind is LineKind.BROADCAST and talkers != 1:
        return "a broadcast line has exactly one talker: name it in talkers"
    return ""
