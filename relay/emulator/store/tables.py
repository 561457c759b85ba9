"""The rows. Times are Unix times in seconds; names of users, firms and lines are those of the fixtures."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, Boolean, Float, ForeignKey, Index, Integer, MetaData, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# Migrations refer to constraints by name, so each has one.
_NAMES = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}
_NAME = String(64)
_LABEL = String(128)


class Row(DeclarativeBase):
    """The base of all tables."""

    metadata = MetaData(naming_convention=_NAMES)


class Firm(Row):
    """A customer of the vendor's."""

    __tablename__ = "firms"
    firm_id: Mapped[str] = mapped_column(_NAME, primary_key=True)
    name: Mapped[str] = mapped_column(_LABEL)
    region: Mapped[str] = mapped_column(_NAME)


class Group(Row):
    """Users of one firm who work together."""

    __tablename__ = "groups"
    group_id: Mapped[str] = mapped_column(_NAME, primary_key=True)
    firm_id: Mapped[str] = mapped_column(ForeignKey("firms.firm_id"))
    name: Mapped[str] = mapped_column(_LABEL)


class User(Row):
    """Someone who logs in. ``role`` is a UserRole. Nobody who is not ``enabled`` can log in."""

    __tablename__ = "users"
    user_id: Mapped[str] = mapped_column(_NAME, primary_key=True)
    firm_id: Mapped[str] = mapped_column(ForeignKey("firms.firm_id"), index=True)
    group_id: Mapped[str | None] = mapped_column(ForeignKey("groups.group_id"))
    name: Mapped[str] = mapped_column(_LABEL)
    email: Mapped[str] = mapped_column(String(255), unique=True)
    extension: Mapped[str | None] = mapped_column(String(20), unique=True)
    password_hash: Mapped[str] = mapped_column(String(255))
    role: Mapped[str] = mapped_column(String(16))
    region: Mapped[str] = mapped_column(_NAME)
    voice_via_web_proxy: Mapped[bool] = mapped_column(Boolean)
    enabled: Mapped[bool] = mapped_column(Boolean, default=True)


class Line(Row):
    """A connection between users, with a number such as sPK-12345678-987654. ``kind`` is a LineKind."""

    __tablename__ = "lines"
    number: Mapped[str] = mapped_column(_NAME, primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    label: Mapped[str] = mapped_column(_LABEL)
    region: Mapped[str] = mapped_column(_NAME)


class LineMember(Row):
    """A user who has a line. ``role`` is a MemberRole."""

    __tablename__ = "line_members"
    number: Mapped[str] = mapped_column(ForeignKey("lines.number", ondelete="CASCADE"), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.user_id", ondelete="CASCADE"), primary_key=True, index=True)
    role: Mapped[str] = mapped_column(String(16))


class Button(Row):
    """One key of a user's board. With ``dial`` it dials this number on a dial-tone line."""

    __tablename__ = "buttons"
    user_id: Mapped[str] = mapped_column(ForeignKey("users.user_id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(Integer, primary_key=True)
    label: Mapped[str] = mapped_column(_LABEL)
    line: Mapped[str] = mapped_column(ForeignKey("lines.number", ondelete="CASCADE"))
    dial: Mapped[str | None] = mapped_column(String(20))


class ApiKey(Row):
    """A key of the signed APIs. The server needs the secret itself to check an HMAC, so it is not hashed."""

    __tablename__ = "api_keys"
    api_key: Mapped[str] = mapped_column(_NAME, primary_key=True)
    secret: Mapped[str] = mapped_column(String(256))
    firm_id: Mapped[str] = mapped_column(ForeignKey("firms.firm_id"), index=True)
    name: Mapped[str] = mapped_column(_LABEL)
    # Lists of texts: networks such as 10.0.0.0/8, and values of Api.
    networks: Mapped[list[str]] = mapped_column(JSON)
    apis: Mapped[list[str]] = mapped_column(JSON)
    enabled: Mapped[bool] = mapped_column(Boolean, default=True)
    created_at: Mapped[float] = mapped_column(Float)


class LoginSession(Row):
    """A login. Only a hash of its token is kept. ``kind`` is ``client`` or ``portal``.

    ``voice_via_web_proxy`` is the user's setting as it was at the login, because a change counts from the next login.
    """

    __tablename__ = "login_sessions"
    token_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.user_id", ondelete="CASCADE"), index=True)
    kind: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[float] = mapped_column(Float)
    expires_at: Mapped[float] = mapped_column(Float, index=True)
    voice_via_web_proxy: Mapped[bool] = mapped_column(Boolean)
    client_version: Mapped[str] = mapped_column(_LABEL)


class Call(Row):
    """A call that has ended. ``answered_at`` is None if nobody answered."""

    __tablename__ = "calls"
    call_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    line: Mapped[str] = mapped_column(_NAME, index=True)
    kind: Mapped[str] = mapped_column(String(16))
    region: Mapped[str] = mapped_column(_NAME)
    started_at: Mapped[float] = mapped_column(Float, index=True)
    answered_at: Mapped[float | None] = mapped_column(Float)
    ended_at: Mapped[float] = mapped_column(Float)
    reason: Mapped[str] = mapped_column(_NAME)


class CallParticipant(Row):
    """Someone who took part in a call. The firm is kept here, so that calls outlive a user who moves or goes."""

    __tablename__ = "call_participants"
    call_id: Mapped[str] = mapped_column(ForeignKey("calls.call_id", ondelete="CASCADE"), primary_key=True)
    user_id: Mapped[str] = mapped_column(_NAME, primary_key=True)
    firm_id: Mapped[str] = mapped_column(_NAME, index=True)
    role: Mapped[str] = mapped_column(String(16))
    joined_at: Mapped[float] = mapped_column(Float)
    left_at: Mapped[float] = mapped_column(Float)


class Recording(Row):
    """A recording of a call, by one user. It is whole when it has both its metadata and its media.

    The call may be unknown yet: a client may upload before the call has ended.
    """

    __tablename__ = "recordings"
    recording_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    call_id: Mapped[str | None] = mapped_column(String(36), index=True)
    user_id: Mapped[str] = mapped_column(_NAME, index=True)
    firm_id: Mapped[str] = mapped_column(_NAME, index=True)
    details: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    media_type: Mapped[str | None] = mapped_column(_NAME)
    # Of the whole media in bytes, as announced; and how many have arrived.
    media_bytes: Mapped[int | None] = mapped_column(Integer)
    received_bytes: Mapped[int] = mapped_column(Integer, default=0)
    sha256: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[float] = mapped_column(Float, index=True)
    completed_at: Mapped[float | None] = mapped_column(Float)


class ClientLog(Row):
    """A log that a client has uploaded. The text is a file of this name in the emulator's folder."""

    __tablename__ = "client_logs"
    log_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    user_id: Mapped[str] = mapped_column(_NAME, index=True)
    received_at: Mapped[float] = mapped_column(Float, index=True)
    size_bytes: Mapped[int] = mapped_column(Integer)


class AuditEntry(Row):
    """Who did what. Entries are only added: the database refuses to change one. ``actor`` may be ``key:`` and a key."""

    __tablename__ = "audit_entries"
    entry_id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    at: Mapped[float] = mapped_column(Float)
    firm_id: Mapped[str] = mapped_column(_NAME)
    actor: Mapped[str] = mapped_column(_LABEL)
    action: Mapped[str] = mapped_column(_NAME)
    object: Mapped[str] = mapped_column(String(255))
    details: Mapped[dict[str, Any]] = mapped_column(JSON)

    __table_args__ = (Index("ix_audit_entries_firm_id_entry_id", "firm_id", "entry_id"),)


class Setting(Row):
    """Something the emulator must remember about itself, such as the secret of its TURN servers."""

    __tablename__ = "settings"
    name: Mapped[str] = mapped_column(_NAME, primary_key=True)
    value: Mapped[str] = mapped_column(Text)
