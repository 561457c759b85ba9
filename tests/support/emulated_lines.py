"""Lines and users for the tests of signaling, without a store."""

from __future__ import annotations

from dataclasses import replace

from relay.emulator.lines import LineKind
from relay.emulator.signaling.state import LineSpec, Member

NUMBERS = {kind: f"sPK-10000000-{number:06}" for number, kind in enumerate(LineKind, 1)}


def member(user_id: str) -> Member:
    """A user of the firm that the first letter names: ``a1`` is of firm ``a``."""
    return Member(user_id=user_id, name=user_id.title(), firm_id=user_id[0], firm=f"Firm {user_id[0].upper()}")


def line(kind: LineKind, *user_ids: str, number: str = "", listeners: tuple[str, ...] = ()) -> LineSpec:
    """A line of these users, of whom some may only listen."""
    members = tuple(replace(member(user_id), may_talk=user_id not in listeners) for user_id in user_ids)
    return LineSpec(number=number or NUMBERS[kind], kind=kind, label=f"Line {kind}", members=members)
