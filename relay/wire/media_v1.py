"""The messages of a session (sub-protocol ``media.v1``, docs/media.v1.md), for both ends.

Control messages are JSON objects in text messages. A binary message is two bytes of channel number and the packet,
which this module does not read.
"""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass, field
from typing import Any, TypeVar

from relay.addresses import Address, AddressFamily, canonical_host, parse_address
from relay.errors import PeerError
from relay.wire.channeldata import FIRST_CHANNEL, LAST_CHANNEL

CHANNEL_BYTES = 2
# A name and a password take some hundred bytes. Nothing else is longer.
MAX_MESSAGE_CHARACTERS = 8 * 1024
# RFC 8489 section 14.3: USERNAME has fewer than 509 bytes.
MAX_USERNAME_BYTES = 508
MAX_PASSWORD_CHARACTERS = 1024
MAX_REGION_CHARACTERS = 63
MAX_TOKEN_CHARACTERS = 64
MAX_ID_CHARACTERS = 64

RequestId = int | str | None


class MediaV1Error(PeerError):
    """A text that is not a control message, or not an acceptable one. ``id`` is the message's, if it has one."""

    def __init__(self, reason: str, identity: RequestId = None) -> None:
        super().__init__(reason)
        self.id = identity


# What a client says


@dataclass(frozen=True, slots=True)
class Open:
    """Asks for an allocation, with the credentials that the vendor gave the client."""

    username: str = ""
    password: str = field(default="", repr=False)
    region: str | None = None
    id: RequestId = None
    family: AddressFamily | None = None


@dataclass(frozen=True, slots=True)
class Resume:
    """Asks for the allocation of a connection that was cut."""

    token: str = field(repr=False)
    id: RequestId = None


@dataclass(frozen=True, slots=True)
class Bind:
    """Asks for a channel to a peer. Unless a number is given, the relay chooses one."""

    peer: Address
    channel: int | None = None
    id: RequestId = None


@dataclass(frozen=True, slots=True)
class Close:
    """The call is over."""

    id: RequestId = None


# What the relay says


@dataclass(frozen=True, slots=True)
class Opened:
    """There is an allocation. ``token`` is good for one return, within ``resume_within_s`` after a cut.

    If both families were asked for and granted, ``relayed`` is the IPv4 address and ``additional`` the IPv6 address.
    """

    relayed: Address
    mapped: Address | None
    upstream: str
    token: str = field(repr=False)
    resume_within_s: float
    id: RequestId = None
    additional: Address | None = None


@dataclass(frozen=True, slots=True)
class Resumed:
    """The client has its allocation again, with the same channels and a new token."""

    relayed: Address
    upstream: str
    token: str = field(repr=False)
    resume_within_s: float
    id: RequestId = None
    additional: Address | None = None


@dataclass(frozen=True, slots=True)
class Bound:
    """A peer's channel carries media."""

    peer: Address
    channel: int
    id: RequestId = None


@dataclass(frozen=True, slots=True)
class Moved:
    """The upstream was lost. The session has another one, with the same channels bound to the same peers."""

    relayed: Address
    upstream: str
    additional: Address | None = None


@dataclass(frozen=True, slots=True)
class Closed:
    """What the client asked to end has ended."""

    id: RequestId = None


@dataclass(frozen=True, slots=True)
class Failed:
    """Something was refused, or went wrong: the message ``error``. Codes are as in HTTP and STUN."""

    code: int
    reason: str
    peer: Address | None = None
    id: RequestId = None


ClientMessage = Open | Resume | Bind | Close
RelayMessage = Opened | Resumed | Bound | Moved | Closed | Failed
_Value = TypeVar("_Value", str, int, float)

_NAMES: dict[type[Any], str] = {
    Open: "open",
    Resume: "resume",
    Bind: "bind",
    Close: "close",
    Opened: "opened",
    Resumed: "resumed",
    Bound: "bound",
    Moved: "moved",
    Closed: "closed",
    Failed: "error",
}


class _Fields:
    """The fields of one object. Unknown fields are ignored: later versions may have more."""

    def __init__(self, text: str) -> None:
        self.id: RequestId = None
        if len(text) > MAX_MESSAGE_CHARACTERS:
            raise MediaV1Error(f"a message of {len(text)} characters: expected at most {MAX_MESSAGE_CHARACTERS}")
        try:
            values = json.loads(text)
        # Such as a number of ten thousand digits, or a thousand brackets.
        except (ValueError, RecursionError):
            raise MediaV1Error("no JSON") from None
        if not isinstance(values, dict):
            raise MediaV1Error("expected a JSON object")
        self._values: dict[str, Any] = values
        identity = values.get("id")
        if identity is not None and not _is_id(identity):
            raise MediaV1Error(f"id: expected a number, or at most {MAX_ID_CHARACTERS} characters")
        self.id = identity
        self.type = self.text("type", MAX_ID_CHARACTERS)

    def fail(self, reason: str) -> MediaV1Error:
        return MediaV1Error(reason, self.id)

    def has(self, key: str) -> bool:
        return self._values.get(key) is not None

    def text(self, key: str, maximum: int, default: str | None = None) -> str:
        value = self._values.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or not 0 < len(value) <= maximum:
            raise self.fail(f"{key}: expected a string of 1 to {maximum} characters")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self.fail(f"{key}: half a surrogate pair") from None
        return value

    def number(self, key: str, minimum: int, maximum: int) -> int:
        value = self._values.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= maximum:
            raise self.fail(f"{key}: expected a number from {minimum} to {maximum}")
        return value

    def seconds(self, key: str) -> float:
        value = self._values.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 3600:
            raise self.fail(f"{key}: expected seconds")
        return float(value)

    def address(self, key: str) -> Address:
        """A literal address with a port, in the one form in which addresses are compared."""
        text = self.text(key, 64)
        try:
            address = parse_address(text)
            host = ipaddress.ip_address(address.host)
        except ValueError:
            raise self.fail(f"{key}: expected an address such as 192.0.2.7:16384 or [2001:db8::7]:16384") from None
        if not address.port or getattr(host, "scope_id", None):
            raise self.fail(f"{key}: expected a port from 1 to 65535, and no scope")
        return Address(canonical_host(host), address.port)

    def address_or_none(self, key: str) -> Address | None:
        return self.address(key) if self.has(key) else None


def _is_id(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_ID_CHARACTERS
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 53


def parse_client_message(text: str) -> ClientMessage:
    """Read what a client says. Raises MediaV1Error."""
    fields = _Fields(text)
    match fields.type:
        case "open":
            return _parse_open(fields)
        case "resume":
            return Resume(fields.text("token", MAX_TOKEN_CHARACTERS), fields.id)
        case "bind":
            channel = fields.number("channel", FIRST_CHANNEL, LAST_CHANNEL) if fields.has("channel") else None
            return Bind(fields.address("peer"), channel, fields.id)
        case "close":
            return Close(fields.id)
    raise fields.fail("type: expected open, resume, bind or close")


def _parse_open(fields: _Fields) -> Open:
    region, family = _region(fields), _family(fields)
    if not fields.has("username") and not fields.has("password"):
        return Open("", "", region, fields.id, family)
    username = fields.text("username", MAX_USERNAME_BYTES)
    if len(username.encode()) > MAX_USERNAME_BYTES:
        raise fields.fail(f"username: expected at most {MAX_USERNAME_BYTES} bytes")
    return Open(username, fields.text("password", MAX_PASSWORD_CHARACTERS), region, fields.id, family)


def _region(fields: _Fields) -> str | None:
    return fields.text("region", MAX_REGION_CHARACTERS) if fields.has("region") else None


def _family(fields: _Fields) -> AddressFamily | None:
    if not fields.has("family"):
        return None
    try:
        return AddressFamily(fields.text("family", MAX_REGION_CHARACTERS))
    except ValueError:
        raise fields.fail("family: expected ipv4, ipv6 or both") from None


def parse_relay_message(text: str) -> RelayMessage:
    """Read what the relay says. Raises MediaV1Error."""
    fields = _Fields(text)
    match fields.type:
        case "opened":
            return Opened(
                fields.address("relayed"),
                fields.address_or_none("mapped"),
                fields.text("upstream", MAX_REGION_CHARACTERS),
                fields.text("token", MAX_TOKEN_CHARACTERS),
                fields.seconds("resume_within_s"),
                fields.id,
                fields.address_or_none("additional"),
            )
        case "resumed":
            return Resumed(
                fields.address("relayed"),
                fields.text("upstream", MAX_REGION_CHARACTERS),
                fields.text("token", MAX_TOKEN_CHARACTERS),
                fields.seconds("resume_within_s"),
                fields.id,
                fields.address_or_none("additional"),
            )
        case "bound":
            return Bound(fields.address("peer"), fields.number("channel", FIRST_CHANNEL, LAST_CHANNEL), fields.id)
        case "moved":
            upstream = fields.text("upstream", MAX_REGION_CHARACTERS)
            return Moved(fields.address("relayed"), upstream, fields.address_or_none("additional"))
        case "closed":
            return Closed(fields.id)
        case "error":
            code, reason = fields.number("code", 0, 999), fields.text("reason", MAX_MESSAGE_CHARACTERS)
            return Failed(code, reason, fields.address_or_none("peer"), fields.id)
    raise fields.fail("type: expected opened, resumed, bound, moved, closed or error")


def build_control(message: ClientMessage | RelayMessage) -> str:
    """The text of a control message. Fields without a value are left out."""
    values: dict[str, Any] = {"type": _NAMES[type(message)]}
    for key in message.__dataclass_fields__:
        value = getattr(message, key)
        # An id comes back as it was said, even an empty one.
        if value is not None and (value != "" or key == "id"):
            values[key] = str(value) if isinstance(value, Address) else value
    return json.dumps(values, separators=(",", ":"))


def build_media(channel: int, data: bytes) -> bytes:
    """The payload of a binary message."""
    return channel.to_bytes(CHANNEL_BYTES) + data


def parse_media(payload: bytes) -> tuple[int, bytes]:
    """Channel number and data of a binary message. Raises MediaV1Error."""
    if len(payload) < CHANNEL_BYTES or payload[0] & 0xC0 != 0x40:
        raise MediaV1Error(f"no media in {len(payload)} bytes: expected a channel number from 0x4000 to 0x7fff first")
    return int.from_bytes(payload[:CHANNEL_BYTES]), payload[CHANNEL_BYTES:]
