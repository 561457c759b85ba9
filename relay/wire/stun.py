"""STUN and TURN messages (RFC 8489 sections 5 and 14, RFC 8656 section 18).

``parse_message`` gives a Message or raises StunError; ``build_message`` is its inverse. Whether a message is
authentic is asked separately, because the key depends on the user name inside it.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import ipaddress
import struct
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

from relay.addresses import Address, canonical_host
from relay.errors import PeerError

MAGIC_COOKIE = 0x2112A442
MAGIC_COOKIE_BYTES = MAGIC_COOKIE.to_bytes(4)
HEADER_BYTES = 20
TRANSACTION_ID_BYTES = 12
FINGERPRINT_XOR = 0x5354554E


class StunError(PeerError):
    """The bytes are not a STUN message, or one of its attributes does not have the form that its type requires."""


class Method(IntEnum):
    """RFC 8489 section 18.2, RFC 8656 section 17."""

    BINDING = 0x001
    ALLOCATE = 0x003
    REFRESH = 0x004
    SEND = 0x006
    DATA = 0x007
    CREATE_PERMISSION = 0x008
    CHANNEL_BIND = 0x009


class MessageClass(IntEnum):
    """RFC 8489 section 5."""

    REQUEST = 0
    INDICATION = 1
    SUCCESS = 2
    ERROR = 3


class Family(IntEnum):
    """RFC 8489 section 14.1, RFC 8656 section 18.6."""

    IPV4 = 1
    IPV6 = 2


def family_of(host: str) -> Family:
    """The family of a literal address."""
    return Family.IPV6 if ":" in host else Family.IPV4


class AttributeType(IntEnum):
    """The attributes that have a name here. Clients and servers say themselves which of them they understand."""

    MAPPED_ADDRESS = 0x0001
    USERNAME = 0x0006
    MESSAGE_INTEGRITY = 0x0008
    ERROR_CODE = 0x0009
    UNKNOWN_ATTRIBUTES = 0x000A
    CHANNEL_NUMBER = 0x000C
    LIFETIME = 0x000D
    XOR_PEER_ADDRESS = 0x0012
    DATA = 0x0013
    REALM = 0x0014
    NONCE = 0x0015
    XOR_RELAYED_ADDRESS = 0x0016
    REQUESTED_ADDRESS_FAMILY = 0x0017
    EVEN_PORT = 0x0018
    REQUESTED_TRANSPORT = 0x0019
    MESSAGE_INTEGRITY_SHA256 = 0x001C
    PASSWORD_ALGORITHM = 0x001D
    USERHASH = 0x001E
    XOR_MAPPED_ADDRESS = 0x0020
    RESERVATION_TOKEN = 0x0022
    PRIORITY = 0x0024
    USE_CANDIDATE = 0x0025
    # From here on an attribute that is not understood is ignored (comprehension-optional).
    ADDITIONAL_ADDRESS_FAMILY = 0x8000
    ADDRESS_ERROR_CODE = 0x8001
    PASSWORD_ALGORITHMS = 0x8002
    SOFTWARE = 0x8022
    # The name in the certificate of ALTERNATE-SERVER (RFC 8489 section 14.16). Over UDP there is no certificate to
    # check.
    ALTERNATE_DOMAIN = 0x8003
    ALTERNATE_SERVER = 0x8023
    FINGERPRINT = 0x8028
    ICE_CONTROLLED = 0x8029
    ICE_CONTROLLING = 0x802A
    # RFC 8016: takes an allocation over to another 5-tuple.
    MOBILITY_TICKET = 0x8030


# The length of a value in bytes, if the specification fixes it: (minimum, maximum).
VALUE_BYTES: dict[int, tuple[int, int]] = {
    AttributeType.MESSAGE_INTEGRITY: (20, 20),
    # Section 14.6 lets usages truncate it; TURN does not.
    AttributeType.MESSAGE_INTEGRITY_SHA256: (32, 32),
    AttributeType.FINGERPRINT: (4, 4),
    AttributeType.ERROR_CODE: (4, 4 + 763),
    AttributeType.CHANNEL_NUMBER: (4, 4),
    AttributeType.LIFETIME: (4, 4),
    AttributeType.REQUESTED_ADDRESS_FAMILY: (4, 4),
    AttributeType.ADDITIONAL_ADDRESS_FAMILY: (4, 4),
    AttributeType.ADDRESS_ERROR_CODE: (4, 4 + 763),
    AttributeType.EVEN_PORT: (1, 1),
    AttributeType.REQUESTED_TRANSPORT: (4, 4),
    AttributeType.RESERVATION_TOKEN: (8, 8),
    AttributeType.USERNAME: (0, 513),
    AttributeType.REALM: (0, 763),
    AttributeType.NONCE: (0, 763),
    AttributeType.PRIORITY: (4, 4),
    AttributeType.USE_CANDIDATE: (0, 0),
}

INTEGRITY_DIGESTS: dict[int, Callable[..., Any]] = {
    AttributeType.MESSAGE_INTEGRITY: hashlib.sha1,
    AttributeType.MESSAGE_INTEGRITY_SHA256: hashlib.sha256,
}

_AFTER_INTEGRITY = frozenset({AttributeType.MESSAGE_INTEGRITY_SHA256, AttributeType.FINGERPRINT})
_HEADER = struct.Struct("!HHI12s")
_ATTRIBUTE = struct.Struct("!HH")
_UINT32 = struct.Struct("!I")


class Attribute(NamedTuple):
    """One attribute: type and value, the value without padding."""

    type: int
    value: bytes


class ErrorCode(NamedTuple):
    """RFC 8489 section 14.8: a code of 300 to 699 and a reason for people."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Message:
    """A parsed message. ``attributes`` leaves out those after the integrity attribute, which do not count."""

    method: int
    message_class: MessageClass
    transaction_id: bytes
    attributes: tuple[Attribute, ...]
    raw: bytes
    # Offset of the integrity attributes in ``raw``, by type.
    integrity_offsets: dict[int, int]
    # Describes the first attribute with a value of the wrong length. Empty if there is none.
    fault: str = ""

    def get(self, attribute_type: int) -> bytes | None:
        """The value of the first attribute of this type, or None (a duplicate is ignored, section 14)."""
        for kind, value in self.attributes:
            if kind == attribute_type:
                return value
        return None

    def get_all(self, attribute_type: int) -> list[bytes]:
        """All values of this type, for XOR-PEER-ADDRESS of CreatePermission."""
        return [value for kind, value in self.attributes if kind == attribute_type]

    def address(self, attribute_type: int) -> Address | None:
        """The XORed address in an attribute, or None. Raises StunError for a malformed one."""
        value = self.get(attribute_type)
        return None if value is None else parse_xor_address(value, self.transaction_id)

    @property
    def alternate_server(self) -> Address | None:
        """The address in ALTERNATE-SERVER, unchanged. None if there is none, or none that one can connect to."""
        value = self.get(AttributeType.ALTERNATE_SERVER)
        if value is None:
            return None
        try:
            found = parse_plain_address(value)
        except StunError:
            return None
        return found if found.port else None

    def uint32(self, attribute_type: int) -> int | None:
        """The first four bytes of an attribute as a number, or None. Raises StunError if there are fewer."""
        value = self.get(attribute_type)
        if value is None:
            return None
        if len(value) < 4:
            raise StunError(f"attribute 0x{attribute_type:04x} has {len(value)} bytes, expected 4")
        return int(_UINT32.unpack_from(value)[0])

    def family(self, attribute_type: int) -> int | None:
        """The family in REQUESTED-ADDRESS-FAMILY and similar ones, or None. Raises StunError if it is too short."""
        value = self.uint32(attribute_type)
        return None if value is None else value >> 24

    def text(self, attribute_type: int) -> str | None:
        """The value as UTF-8, or None. Raises StunError if it is not UTF-8."""
        value = self.get(attribute_type)
        if value is None:
            return None
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise StunError(f"attribute 0x{attribute_type:04x} is not UTF-8") from None

    def addresses(self, attribute_type: int) -> list[Address]:
        """The XORed addresses in all attributes of this type. Raises StunError for a malformed one."""
        return [parse_xor_address(value, self.transaction_id) for value in self.get_all(attribute_type)]

    @property
    def error(self) -> ErrorCode | None:
        """ERROR-CODE, or None. Raises StunError for a malformed one.

        Some servers count the padding as part of the reason. It is left out.
        """
        value = self.get(AttributeType.ERROR_CODE)
        if value is None:
            return None
        number = value[3]
        hundreds = value[2] & 0x07
        if not 3 <= hundreds <= 6 or number > 99:
            raise StunError(f"ERROR-CODE of class {hundreds} and number {number}")
        return ErrorCode(hundreds * 100 + number, value[4:].decode(errors="replace").rstrip("\0 "))

    def unknown_required(self, understood: Set[int]) -> tuple[int, ...]:
        """Types that must be understood (below 0x8000) and are not among these, for UNKNOWN-ATTRIBUTES."""
        return tuple(dict.fromkeys(kind for kind, _ in self.attributes if kind < 0x8000 and kind not in understood))

    def has_integrity(self, key: bytes, kind: int = AttributeType.MESSAGE_INTEGRITY) -> bool:
        """True if the message has the integrity attribute ``kind``, and it is right for ``key``.

        Compared in constant time. RFC 8489 sections 14.5 and 14.6: the HMAC covers everything before the
        attribute, with a header length that ends with the attribute.
        """
        offset = self.integrity_offsets.get(kind)
        if offset is None:
            return False
        length = _ATTRIBUTE.unpack_from(self.raw, offset)[1]
        value = self.raw[offset + 4 : offset + 4 + length]
        expected = _integrity(self.raw[:offset], length, key, kind)
        return hmac.compare_digest(value, expected[:length])


def _integrity(before: bytes, length: int, key: bytes, kind: int) -> bytes:
    covered = bytearray(before)
    struct.pack_into("!H", covered, 2, len(before) - HEADER_BYTES + 4 + length)
    return hmac.new(key, covered, INTEGRITY_DIGESTS[kind]).digest()


def _fingerprint(before: bytes | bytearray) -> int:
    covered = bytearray(before)
    struct.pack_into("!H", covered, 2, len(before) - HEADER_BYTES + 8)
    return binascii.crc32(covered) ^ FINGERPRINT_XOR


def is_stun(data: bytes) -> bool:
    """True if the bytes begin like a STUN message: top bits 00 and the magic cookie."""
    return len(data) >= HEADER_BYTES and data[0] < 0x40 and data[4:8] == MAGIC_COOKIE_BYTES


def message_type(method: int, message_class: MessageClass) -> int:
    """Interleave method and class (RFC 8489 figure 3)."""
    return (
        (method & 0x000F)
        | (method & 0x0070) << 1
        | (method & 0x0F80) << 2
        | (message_class & 1) << 4
        | (message_class & 2) << 7
    )


def split_message_type(kind: int) -> tuple[int, MessageClass]:
    """Method and class of a message type."""
    method = kind & 0x000F | (kind >> 1) & 0x0070 | (kind >> 2) & 0x0F80
    return method, MessageClass((kind >> 4) & 1 | (kind >> 7) & 2)


def parse_message(data: bytes, *, allow_faults: bool = False) -> Message:
    """Read one whole message. Raises StunError.

    Attributes after MESSAGE-INTEGRITY are ignored, except MESSAGE-INTEGRITY-SHA256 and FINGERPRINT (section
    14.5). FINGERPRINT must be last and right. With ``allow_faults`` a value of the wrong length raises nothing:
    ``fault`` describes it, so that a server can answer. An integrity attribute with such a fault does not count.
    """
    if len(data) < HEADER_BYTES:
        raise StunError(f"{len(data)} bytes, expected at least {HEADER_BYTES}")
    kind, length, cookie, transaction_id = _HEADER.unpack_from(data)
    if kind & 0xC000 or cookie != MAGIC_COOKIE:
        raise StunError(f"no STUN header: type 0x{kind:04x}, cookie 0x{cookie:08x}")
    if length % 4 or HEADER_BYTES + length != len(data):
        raise StunError(f"length {length} in a message of {len(data)} bytes")
    attributes: list[Attribute] = []
    integrity_offsets: dict[int, int] = {}
    offset, fault = HEADER_BYTES, ""
    while offset < len(data):
        attribute, after = _parse_attribute(data, offset)
        wrong = "" if integrity_offsets and attribute.type not in _AFTER_INTEGRITY else _length_fault(attribute)
        fault = fault or wrong
        if wrong:
            if not allow_faults or attribute.type == AttributeType.FINGERPRINT:
                raise StunError(wrong)
        elif attribute.type == AttributeType.FINGERPRINT:
            _check_fingerprint(data, offset, after, attribute.value)
        elif attribute.type in INTEGRITY_DIGESTS:
            # SHA-1 counts only if no integrity attribute came before it. SHA-256 also counts after SHA-1.
            if attribute.type == AttributeType.MESSAGE_INTEGRITY_SHA256 or not integrity_offsets:
                integrity_offsets.setdefault(attribute.type, offset)
        elif not integrity_offsets:
            attributes.append(attribute)
        offset = after
    method, message_class = split_message_type(kind)
    return Message(method, message_class, transaction_id, tuple(attributes), data, integrity_offsets, fault)


def _parse_attribute(data: bytes, offset: int) -> tuple[Attribute, int]:
    if offset + 4 > len(data):
        raise StunError(f"{len(data) - offset} bytes left at {offset}, an attribute needs 4")
    kind, length = _ATTRIBUTE.unpack_from(data, offset)
    start = offset + 4
    after = start + length + (-length & 3)
    if after > len(data):
        raise StunError(f"attribute 0x{kind:04x} of {length} bytes at {offset} ends after the message")
    return Attribute(kind, data[start : start + length]), after


def _length_fault(attribute: Attribute) -> str:
    kind, length = attribute.type, len(attribute.value)
    minimum, maximum = VALUE_BYTES.get(kind, (0, length))
    if minimum <= length <= maximum:
        return ""
    return f"attribute 0x{kind:04x} has {length} bytes, expected {minimum} to {maximum}"


def _check_fingerprint(data: bytes, offset: int, after: int, value: bytes) -> None:
    if after != len(data):
        raise StunError("FINGERPRINT is not the last attribute")
    if _UINT32.unpack(value)[0] != _fingerprint(data[:offset]):
        raise StunError("FINGERPRINT does not match the message")


def build_message(
    method: int,
    message_class: MessageClass,
    transaction_id: bytes,
    attributes: Iterable[tuple[int, bytes]] = (),
    *,
    integrity_key: bytes | None = None,
    integrity_kind: int = AttributeType.MESSAGE_INTEGRITY,
    fingerprint: bool = False,
) -> bytes:
    """Write a message, with zero padding. With a key the integrity attribute follows, then FINGERPRINT."""
    body = bytearray()
    for kind, value in attributes:
        body += _ATTRIBUTE.pack(kind, len(value)) + value + bytes(-len(value) & 3)
    head = _HEADER.pack(message_type(method, message_class), len(body), MAGIC_COOKIE, transaction_id)
    message = bytearray(head + body)
    if integrity_key is not None:
        size = INTEGRITY_DIGESTS[integrity_kind]().digest_size
        digest = _integrity(bytes(message), size, integrity_key, integrity_kind)
        message += _ATTRIBUTE.pack(integrity_kind, size) + digest
    if fingerprint:
        message += _ATTRIBUTE.pack(AttributeType.FINGERPRINT, 4) + _UINT32.pack(_fingerprint(message))
    struct.pack_into("!H", message, 2, len(message) - HEADER_BYTES)
    return bytes(message)


def _xor_mask(size: int, transaction_id: bytes) -> bytes:
    return (MAGIC_COOKIE_BYTES + transaction_id)[:size]


def parse_xor_address(value: bytes, transaction_id: bytes) -> Address:
    """Read XOR-MAPPED-ADDRESS or a similar attribute (section 14.2). Raises StunError."""
    if len(value) < 4 or len(value) != {1: 8, 2: 20}.get(value[1]):
        raise StunError(f"XOR address of {len(value)} bytes: expected family 1 and 8, or family 2 and 20")
    port = int.from_bytes(value[2:4]) ^ (MAGIC_COOKIE >> 16)
    if value[1] == 1:
        number = int.from_bytes(value[4:]) ^ MAGIC_COOKIE
        return Address(f"{number >> 24}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}", port)
    host = bytes(a ^ b for a, b in zip(value[4:], _xor_mask(16, transaction_id), strict=True))
    return Address(canonical_host(ipaddress.IPv6Address(host)), port)


def parse_plain_address(value: bytes) -> Address:
    """Read MAPPED-ADDRESS or a similar one, which is not XORed (sections 14.1 and 14.15). Raises StunError."""
    if len(value) < 4 or len(value) != {1: 8, 2: 20}.get(value[1]):
        raise StunError(f"address of {len(value)} bytes: expected family 1 and 8, or family 2 and 20")
    return Address(canonical_host(ipaddress.ip_address(value[4:])), int.from_bytes(value[2:4]))


def build_plain_address(address: Address) -> bytes:
    """Write the value of MAPPED-ADDRESS or a similar attribute."""
    packed = ipaddress.ip_address(address.host).packed
    return struct.pack("!BBH", 0, 1 if len(packed) == 4 else 2, address.port) + packed


def build_xor_address(address: Address, transaction_id: bytes) -> bytes:
    """Write the value of XOR-MAPPED-ADDRESS or a similar attribute."""
    packed = ipaddress.ip_address(address.host).packed
    masked = bytes(a ^ b for a, b in zip(packed, _xor_mask(len(packed), transaction_id), strict=True))
    family = 1 if len(packed) == 4 else 2
    return struct.pack("!BBH", 0, family, address.port ^ (MAGIC_COOKIE >> 16)) + masked


def build_error_code(code: int, reason: str = "") -> bytes:
    """Write the value of ERROR-CODE."""
    return struct.pack("!HBB", 0, code // 100, code % 100) + reason.encode()


def build_address_error_code(family: int, code: int, reason: str = "") -> bytes:
    """Write the value of ADDRESS-ERROR-CODE (RFC 8656 section 18.12)."""
    return bytes([family]) + build_error_code(code, reason)[1:]


def build_uint32(number: int) -> bytes:
    """Write the value of LIFETIME or a similar attribute."""
    return _UINT32.pack(number)
