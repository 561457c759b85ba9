"""What clients of the login send and get. All is invented, except that there is a ``voiceViaWebProxy`` per user."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

MAX_PASSWORD = 128
USER = "a user's name or e-mail address: 1 to 255 characters, without control characters"
VERSION = "at most 64 printable ASCII characters"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LoginRequest(_Model):
    """A login. ``user`` is the user's name or e-mail address."""

    # No control characters: PostgreSQL has no NUL.
    user: Annotated[
        str, Field(min_length=1, max_length=255, strict=True, pattern=r"^[^\x00-\x1f\x7f]*$", description=USER)
    ]
    password: Annotated[str, Field(min_length=1, max_length=MAX_PASSWORD, strict=True, repr=False)]
    client_version: Annotated[
        str, Field(max_length=64, strict=True, pattern=r"^[\x20-\x7e]*$", description=VERSION)
    ] = ""


class UserView(_Model):
    """Who has logged in."""

    user_id: str
    name: str
    email: str
    firm_id: str
    firm_name: str
    role: Literal["user", "admin"]
    extension: str | None


class IceServer(_Model):
    """As RTCIceServer of WebRTC has it."""

    urls: list[str]
    username: str
    credential: str = Field(repr=False)


class TurnCredentials(_Model):
    """Time-limited credentials for every TURN host. ``expires_at`` is a Unix time in seconds."""

    username: str
    password: str = Field(repr=False)
    expires_at: float


class MediaHostView(_Model):
    """A TURN host: ``name`` is the vendor's, ``address`` where the emulator runs it."""

    name: str
    region: str
    address: str
    udp_port: int
    tcp_port: int
    tls_port: int


class RelayView(_Model):
    """The firm's relay: where clients with Voice via Web Proxy find it, as far as the emulator was told."""

    tls: str = Field(description="host:port of HTTPS, WebSocket and TURN/TLS")
    web_proxy: str = Field(description="host:port of its own web proxy")


class MediaSettings(_Model):
    """How this user's voice is to go. ``ice_servers`` are those of ``transport``; ``alternatives`` has both ways."""

    transport: Literal["udp", "web_proxy"]
    reason: str = Field(description="Why this transport, for people.")
    hosts: list[MediaHostView]
    credentials: TurnCredentials
    ice_servers: list[IceServer]
    alternatives: dict[Literal["udp", "web_proxy"], list[IceServer]]
    relay: RelayView


class SignalingHost(_Model):
    """A signaling host of a region; None is every region."""

    name: str
    region: str | None


class SignalingSettings(_Model):
    """Where signaling is: the hosts of the user's region come first."""

    path: str = "/socket.io/"
    hosts: list[SignalingHost]


class ButtonView(_Model):
    """A key of the user's board."""

    position: int
    label: str
    line: str
    dial: str | None


class LineView(_Model):
    """A line that the user has. ``may_talk`` is False for listeners."""

    line: str
    kind: str
    label: str
    region: str
    may_talk: bool


class Settings(_Model):
    """All settings of a user, as they were at the login: a change counts from the next login (documented)."""

    voice_via_web_proxy: bool = Field(
        serialization_alias="voiceViaWebProxy", validation_alias=AliasChoices("voiceViaWebProxy", "voice_via_web_proxy")
    )
    region: str
    signaling: SignalingSettings
    media: MediaSettings
    buttons: list[ButtonView]
    lines: list[LineView]


class LoginAnswer(_Model):
    """A successful login. The token goes into ``Authorization: Bearer`` and socket.io's ``auth``."""

    token: str = Field(repr=False)
    expires_at: float = Field(description="Unix time in seconds")
    user: UserView
    settings: Settings


class LogReceipt(_Model):
    """A log was kept."""

    log_id: str
    size_bytes: int


class Done(_Model):
    """It was done."""

    done: Literal[True] = True
