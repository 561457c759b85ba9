"""Small enumerations that several parts of the emulator share."""

from __future__ import annotations

import enum


class UserRole(enum.StrEnum):
    """What a user may do in the portal."""

    USER = "user"
    ADMIN = "admin"


class Api(enum.StrEnum):
    """The signed APIs, each of which a key may be limited to."""

    CTI = "cti"
    MANAGEMENT = "management"
    CALL_DATA = "call_data"
    AUDIT = "audit"


class HostRole(enum.StrEnum):
    """What a host of the vendor's serves. ``EMULATOR`` is what the vendor does not have: the emulator's own pages."""

    CTI = "cti"
    MANAGEMENT = "management"
    CALL_DATA = "call_data"
    AUDIT = "audit"
    LOGIN = "login"
    PORTAL = "portal"
    RECORDING = "recording"
    SIGNALING = "signaling"
    MEDIA = "media"
    EMULATOR = "emulator"
