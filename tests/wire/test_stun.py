"""STUN messages: the vectors of RFC 5769, every rule of the parser, and what it does with garbage."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relay.addresses import Address, canonical_host
from relay.turn.credentials import long_term_key
from relay.wire.stun import (
    VALUE_BYTES,
    Attribute,
    AttributeType,
    ErrorCode,
    Message,
    MessageClass,
    Method,
    StunError,
    build_address_error_code,
    build_error_code,
    build_message,
    build_plain_address,
    build_uint32,
    build_xor_address,
    is_stun,
    message_type,
    parse_message,
    parse_plain_address,
    parse_xor_address,
    split_message_type,
)
from tests.support import stun_vectors as vectors
from tests.support.properties import repeatable

ID = bytes(range(12))
KEY = b"0123456789abcdef"
SHA1, SHA256 = AttributeType.MESSAGE_INTEGRITY, AttributeType.MESSAGE_INTEGRITY_SHA256


def attribute(kind: int, value: bytes, padding: bytes | None = None) -> bytes:
    return struct.pack("!HH", kind, len(value)) + value + (bytes(-len(value) & 3) if padding is None else padding)


def message(*attributes: bytes, kind: int = 0x0001, length: int | None = None) -> bytes:
    body = b"".join(attributes)
    return struct.pack("!HHI", kind, len(body) if length is None else length, 0x2112A442) + ID + body


def integrity_of(before: bytes, kind: int = SHA1, key: bytes = KEY) -> bytes:
    """The integrity attribute that belongs behind ``before``, computed apart from the code under test."""
    digest = hashlib.sha1 if kind == SHA1 else hashlib.sha256
    size = digest().digest_size
    covered = before[:2] + struct.pack("!H", len(before) - 20 + 4 + size) + before[4:]
    return attribute(kind, hmac.new(key, covered, digest).digest())


# Whoever asks says what it understands; here all that has a name.
KNOWN = frozenset(AttributeType)


def with_length(data: bytes) -> bytes:
    return data[:2] + struct.pack("!H", len(data) - 20) + data[4:]


def flipped(data: bytes, offset: int) -> bytes:
    return data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :]


# RFC 5769


def test_rfc5769_2_1_request() -> None:
    parsed = parse_message(vectors.SAMPLE_REQUEST)
    assert (parsed.method, parsed.message_class) == (Method.BINDING, MessageClass.REQUEST)
    assert parsed.transaction_id == vectors.TRANSACTION_ID
    assert parsed.text(AttributeType.SOFTWARE) == "STUN test client"
    assert parsed.uint32(AttributeType.PRIORITY) == 0x6E0001FF
    assert parsed.get(AttributeType.ICE_CONTROLLED) == bytes.fromhex("932ff9b151263b36")
    assert parsed.text(AttributeType.USERNAME) == "evtj:h6vY"
    assert parsed.has_integrity(vectors.SHORT_TERM_PASSWORD)
    assert parsed.unknown_required(KNOWN) == ()


def test_rfc5769_2_2_ipv4_response() -> None:
    parsed = parse_message(vectors.SAMPLE_IPV4_RESPONSE)
    assert (parsed.method, parsed.message_class) == (Method.BINDING, MessageClass.SUCCESS)
    assert parsed.text(AttributeType.SOFTWARE) == "test vector"
    assert parsed.address(AttributeType.XOR_MAPPED_ADDRESS) == Address("192.0.2.1", 32853)
    assert parsed.has_integrity(vectors.SHORT_TERM_PASSWORD)


def test_rfc5769_2_3_ipv6_response() -> None:
    parsed = parse_message(vectors.SAMPLE_IPV6_RESPONSE)
    mapped = Address("2001:db8:1234:5678:11:2233:4455:6677", 32853)
    assert parsed.address(AttributeType.XOR_MAPPED_ADDRESS) == mapped
    assert build_xor_address(mapped, vectors.TRANSACTION_ID) == parsed.get(AttributeType.XOR_MAPPED_ADDRESS)
    assert parsed.has_integrity(vectors.SHORT_TERM_PASSWORD)


def test_rfc5769_2_4_long_term_request_is_rebuilt_byte_by_byte() -> None:
    key = long_term_key(vectors.LONG_TERM_USERNAME, vectors.LONG_TERM_REALM, vectors.LONG_TERM_PASSWORD)
    parsed = parse_message(vectors.SAMPLE_LONG_TERM_REQUEST)
    assert parsed.text(AttributeType.USERNAME) == vectors.LONG_TERM_USERNAME
    assert parsed.text(AttributeType.NONCE) == "f//499k954d6OL34oL9FSTvy64sA"
    assert parsed.text(AttributeType.REALM) == vectors.LONG_TERM_REALM
    assert parsed.has_integrity(key)
    rebuilt = build_message(
        Method.BINDING,
        MessageClass.REQUEST,
        vectors.LONG_TERM_TRANSACTION_ID,
        parsed.attributes,
        integrity_key=key,
    )
    assert rebuilt == vectors.SAMPLE_LONG_TERM_REQUEST


SHORT_TERM_SAMPLES = [vectors.SAMPLE_REQUEST, vectors.SAMPLE_IPV4_RESPONSE, vectors.SAMPLE_IPV6_RESPONSE]


@pytest.mark.parametrize("sample", SHORT_TERM_SAMPLES, ids=["2.1", "2.2", "2.3"])
def test_rfc5769_samples_rebuilt_differ_in_padding_and_what_covers_it(sample: bytes) -> None:
    """The vectors pad with 0x20, we pad with zero (RFC 8489 section 14): the HMAC and the CRC follow."""
    parsed = parse_message(sample)
    rebuilt = build_message(
        parsed.method,
        parsed.message_class,
        parsed.transaction_id,
        parsed.attributes,
        integrity_key=vectors.SHORT_TERM_PASSWORD,
        fingerprint=True,
    )
    # 24 bytes of MESSAGE-INTEGRITY and 8 of FINGERPRINT end the message.
    assert rebuilt[:-32].replace(b"Y\0\0\0", b"Y   ").replace(b"vector\0", b"vector ") == sample[:-32]
    assert rebuilt[-32:-28] == sample[-32:-28]
    again = parse_message(rebuilt)
    assert again.attributes == parsed.attributes
    assert again.has_integrity(vectors.SHORT_TERM_PASSWORD)


@pytest.mark.parametrize("sample", SHORT_TERM_SAMPLES, ids=["2.1", "2.2", "2.3"])
def test_rfc5769_samples_fail_with_any_other_key_or_byte(sample: bytes) -> None:
    assert not parse_message(sample).has_integrity(vectors.SHORT_TERM_PASSWORD + b"x")
    fingerprint_type = {len(sample) - 8, len(sample) - 7}  # A message need not have a FINGERPRINT.
    for offset in set(range(len(sample))) - fingerprint_type:
        with pytest.raises(StunError):
            parse_message(flipped(sample, offset))


def test_rfc8489_b1_as_printed_is_refused_although_its_hmac_fits() -> None:
    """The length in the header, 0x9c, is not that of the attributes, 0x88; the HMAC was made over it."""
    sample = vectors.SAMPLE_SHA256_REQUEST
    assert len(sample) == 20 + 0x88
    text = f"{vectors.LONG_TERM_USERNAME}:{vectors.LONG_TERM_REALM}:{vectors.LONG_TERM_PASSWORD}"
    key = hashlib.sha256(text.encode()).digest()
    assert hmac.new(key, sample[:-36], hashlib.sha256).digest() == sample[-32:]
    with pytest.raises(StunError, match="length 156 in a message of 156 bytes"):
        parse_message(sample)
    # With the length that is true it is a message, but not an authentic one.
    repaired = parse_message(with_length(sample))
    userhash = hashlib.sha256(f"{vectors.LONG_TERM_USERNAME}:{vectors.LONG_TERM_REALM}".encode()).digest()
    assert repaired.get(AttributeType.USERHASH) == userhash
    assert not repaired.has_integrity(key, SHA256)


# The header, RFC 8489 section 5


@pytest.mark.parametrize(
    ("method", "message_class", "kind"),
    [
        (Method.BINDING, MessageClass.REQUEST, 0x0001),
        (Method.BINDING, MessageClass.INDICATION, 0x0011),
        (Method.BINDING, MessageClass.SUCCESS, 0x0101),
        (Method.BINDING, MessageClass.ERROR, 0x0111),
        (Method.ALLOCATE, MessageClass.ERROR, 0x0113),
        (Method.REFRESH, MessageClass.REQUEST, 0x0004),
        (Method.SEND, MessageClass.INDICATION, 0x0016),
        (Method.DATA, MessageClass.INDICATION, 0x0017),
        (Method.CREATE_PERMISSION, MessageClass.SUCCESS, 0x0108),
        (Method.CHANNEL_BIND, MessageClass.REQUEST, 0x0009),
    ],
)
def test_section_5_message_type(method: Method, message_class: MessageClass, kind: int) -> None:
    assert message_type(method, message_class) == kind
    assert split_message_type(kind) == (method, message_class)


def test_section_5_every_message_type_is_split_and_joined() -> None:
    for kind in range(0x4000):
        assert message_type(*split_message_type(kind)) == kind


@pytest.mark.parametrize(
    "data",
    [
        b"",
        message()[:19],
        message(kind=0x4001),
        message(kind=0x8001),
        flipped(message(), 4),
        flipped(message(), 7),
        message(length=4),
        message(attribute(0x8022, b"abcd"), length=4),
        message(b"\0\0", length=2),
        message() + b"\0",
        message(length=65532),
    ],
    ids=[
        "nothing",
        "19 bytes",
        "ChannelData bits",
        "RTP bits",
        "cookie begins otherwise",
        "cookie ends otherwise",
        "length too long",
        "length too short",
        "length no multiple of four",
        "trailing byte",
        "longest length",
    ],
)
def test_section_5_and_6_3_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(StunError):
        parse_message(data)


def test_section_5_a_header_alone_is_a_message() -> None:
    parsed = parse_message(message())
    assert (parsed.attributes, parsed.transaction_id, parsed.raw) == ((), ID, message())


def test_is_stun_looks_at_the_top_bits_and_the_cookie() -> None:
    assert is_stun(message())
    assert is_stun(message(attribute(0x8022, b"abc"), length=1))
    assert not is_stun(message()[:19])
    assert not is_stun(message(kind=0x4001))
    assert not is_stun(flipped(message(), 5))


# Attributes, section 14


@pytest.mark.parametrize("size", range(9))
def test_section_14_values_come_without_their_padding(size: int) -> None:
    value = b"\xff" * size
    parsed = parse_message(message(attribute(0x8022, value), attribute(0x8023, b"next")))
    assert parsed.attributes == (Attribute(0x8022, value), Attribute(0x8023, b"next"))


def test_section_14_padding_may_be_anything_when_read_and_is_zero_when_written() -> None:
    read = parse_message(message(attribute(0x8022, b"a", padding=b"xyz")))
    assert read.attributes == (Attribute(0x8022, b"a"),)
    assert build_message(0x001, MessageClass.REQUEST, ID, read.attributes).endswith(b"a\0\0\0")


@pytest.mark.parametrize("length", [5, 8, 65535])
def test_section_14_a_value_that_ends_behind_the_message_is_refused(length: int) -> None:
    with pytest.raises(StunError, match="ends after the message"):
        parse_message(message(struct.pack("!HH", 0x8022, length) + b"abcd"))


def test_section_14_of_duplicates_the_first_counts() -> None:
    lifetimes = [(AttributeType.LIFETIME, build_uint32(600)), (AttributeType.LIFETIME, build_uint32(0))]
    parsed = parse_message(build_message(Method.REFRESH, MessageClass.REQUEST, ID, lifetimes))
    assert parsed.uint32(AttributeType.LIFETIME) == 600
    assert parsed.get_all(AttributeType.LIFETIME) == [build_uint32(600), build_uint32(0)]


# Written out from the RFCs, so that a changed table shows.
FIXED_LENGTHS = {
    "MESSAGE_INTEGRITY": (20, 20),
    "MESSAGE_INTEGRITY_SHA256": (32, 32),
    "FINGERPRINT": (4, 4),
    "ERROR_CODE": (4, 767),
    "ADDITIONAL_ADDRESS_FAMILY": (4, 4),
    "ADDRESS_ERROR_CODE": (4, 767),
    "CHANNEL_NUMBER": (4, 4),
    "LIFETIME": (4, 4),
    "REQUESTED_ADDRESS_FAMILY": (4, 4),
    "EVEN_PORT": (1, 1),
    "REQUESTED_TRANSPORT": (4, 4),
    "RESERVATION_TOKEN": (8, 8),
    "USERNAME": (0, 513),
    "REALM": (0, 763),
    "NONCE": (0, 763),
    "PRIORITY": (4, 4),
    "USE_CANDIDATE": (0, 0),
}


def test_section_14_the_table_of_lengths_is_that_of_the_specification() -> None:
    assert {AttributeType(kind).name: bounds for kind, bounds in VALUE_BYTES.items()} == FIXED_LENGTHS


@pytest.mark.parametrize("name", FIXED_LENGTHS)
def test_section_14_each_length_is_enforced(name: str) -> None:
    kind = AttributeType[name]
    least, most = FIXED_LENGTHS[name]
    for size in {least, most} - ({4} if name == "FINGERPRINT" else set()):
        value = bytes([0, 0, 4, 0]).ljust(size, b"\0") if name == "ERROR_CODE" else bytes(size)
        parse_message(message(attribute(kind, value)))
    for size in {least - 1, most + 1} - {-1}:
        with pytest.raises(StunError, match="expected"):
            parse_message(message(attribute(kind, bytes(size))))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("USERNAME", 0x0006),
        ("MESSAGE_INTEGRITY", 0x0008),
        ("ERROR_CODE", 0x0009),
        ("UNKNOWN_ATTRIBUTES", 0x000A),
        ("CHANNEL_NUMBER", 0x000C),
        ("LIFETIME", 0x000D),
        ("XOR_PEER_ADDRESS", 0x0012),
        ("DATA", 0x0013),
        ("REALM", 0x0014),
        ("NONCE", 0x0015),
        ("XOR_RELAYED_ADDRESS", 0x0016),
        ("REQUESTED_ADDRESS_FAMILY", 0x0017),
        ("EVEN_PORT", 0x0018),
        ("REQUESTED_TRANSPORT", 0x0019),
        ("MESSAGE_INTEGRITY_SHA256", 0x001C),
        ("USERHASH", 0x001E),
        ("XOR_MAPPED_ADDRESS", 0x0020),
        ("RESERVATION_TOKEN", 0x0022),
        ("SOFTWARE", 0x8022),
        ("ALTERNATE_SERVER", 0x8023),
        ("FINGERPRINT", 0x8028),
        ("ADDITIONAL_ADDRESS_FAMILY", 0x8000),
        ("ADDRESS_ERROR_CODE", 0x8001),
        ("PASSWORD_ALGORITHMS", 0x8002),
    ],
)
def test_section_18_3_attribute_numbers(name: str, kind: int) -> None:
    assert AttributeType[name] == kind


def test_section_6_3_1_unknown_attributes_that_must_be_understood_are_listed_once_each() -> None:
    """DONT-FRAGMENT (0x001A) is among them; from 0x8000 on nothing need be understood."""
    kinds = [0x001A, 0x7FFF, 0x8000, 0xFFFF, 0x001A, AttributeType.LIFETIME]
    parsed = parse_message(message(*(attribute(kind, bytes(4)) for kind in kinds)))
    assert parsed.unknown_required(KNOWN) == (0x001A, 0x7FFF)


def test_what_is_not_there_is_none() -> None:
    parsed = parse_message(message())
    assert parsed.get(AttributeType.USERNAME) is None
    assert parsed.get_all(AttributeType.XOR_PEER_ADDRESS) == []
    assert parsed.text(AttributeType.USERNAME) is None
    assert parsed.uint32(AttributeType.LIFETIME) is None
    assert parsed.address(AttributeType.XOR_MAPPED_ADDRESS) is None
    assert parsed.error is None
    assert not parsed.has_integrity(KEY)


def test_a_value_too_short_for_a_number_or_not_utf8_is_refused_when_asked_for() -> None:
    parsed = parse_message(message(attribute(0x8030, b"abc"), attribute(AttributeType.USERNAME, b"\xff")))
    with pytest.raises(StunError, match="3 bytes"):
        parsed.uint32(0x8030)
    with pytest.raises(StunError, match="not UTF-8"):
        parsed.text(AttributeType.USERNAME)


# XORed addresses, section 14.2


@pytest.mark.parametrize(
    ("address", "value"),
    [
        (Address("192.0.2.1", 32853), "0001a147e112a643"),
        (Address("0.0.0.0", 0), "000121122112a442"),
        (Address("255.255.255.255", 65535), "0001deeddeed5bbd"),
        (Address("::", 0), "000221122112a442000102030405060708090a0b"),
        (Address("2001:db8::7", 1), "0002211301 13a9fa 000102030405060708090a0c"),
    ],
    ids=str,
)
def test_section_14_2_addresses_are_xored_with_cookie_and_transaction_id(address: Address, value: str) -> None:
    assert build_xor_address(address, ID) == bytes.fromhex(value)
    assert parse_xor_address(bytes.fromhex(value), ID) == address


def test_section_14_2_a_v4_mapped_address_is_read_as_ipv4() -> None:
    value = build_xor_address(Address("::ffff:10.1.2.3", 5000), ID)
    assert len(value) == 20
    assert parse_xor_address(value, ID) == Address("10.1.2.3", 5000)


@pytest.mark.parametrize(
    "value",
    [
        *("", "0001", "0001a147", "0001a147e112a6", "0001a147e112a64300"),
        *("0000a147e112a643", "0002a147e112a643", "0003a147e112a643"),
        *("0001a1470113a9faa5d3f179bc25f4b5bed2b9d9", "0002a1470113a9faa5d3f179bc25f4b5bed2b9"),
    ],
)
def test_section_14_2_an_address_of_another_form_is_refused(value: str) -> None:
    with pytest.raises(StunError, match="XOR address"):
        parse_xor_address(bytes.fromhex(value), ID)


def test_section_14_1_the_reserved_byte_of_an_address_is_ignored() -> None:
    assert parse_xor_address(bytes.fromhex("ff01a147e112a643"), ID) == Address("192.0.2.1", 32853)


# Error codes, section 14.8


@pytest.mark.parametrize("address", [Address("192.0.2.7", 3478), Address("2001:db8::7", 65535)])
def test_plain_addresses_there_and_back(address: Address) -> None:
    assert parse_plain_address(build_plain_address(address)) == address


@pytest.mark.parametrize("value", ["", "0001", "00010d96", "00010d96c00002", "00020d96c0000207", "00000d96c0000207"])
def test_plain_addresses_that_are_malformed(value: str) -> None:
    with pytest.raises(StunError, match="expected family 1"):
        parse_plain_address(bytes.fromhex(value))


@pytest.mark.parametrize("code", [300, 400, 401, 420, 438, 486, 508, 699])
def test_section_14_8_error_codes(code: int) -> None:
    value = build_error_code(code, "why not")
    assert value == bytes([0, 0, code // 100, code % 100]) + b"why not"
    assert parse_message(message(attribute(AttributeType.ERROR_CODE, value))).error == ErrorCode(code, "why not")


def test_section_14_8_the_length_leaves_the_padding_out() -> None:
    assert build_message(
        Method.ALLOCATE, MessageClass.ERROR, ID, [(AttributeType.ERROR_CODE, build_error_code(400, "no"))]
    ) == message(bytes.fromhex("00090006 00000400 6e6f 0000"), kind=0x0113)


def test_section_14_8_reserved_bits_are_ignored_and_a_reason_need_not_be_utf8() -> None:
    value = bytes([0xFF, 0xFF, 0xFC, 1]) + b"\xff"
    assert parse_message(message(attribute(AttributeType.ERROR_CODE, value))).error == ErrorCode(401, "\ufffd")


@pytest.mark.parametrize("value", [b"\0\0\2\0", b"\0\0\7\0", b"\0\0\0\0", b"\0\0\4\x64", b"\0\0\4\xff"])
def test_section_14_8_a_code_outside_300_to_699_is_refused(value: bytes) -> None:
    with pytest.raises(StunError, match="ERROR-CODE"):
        _ = parse_message(message(attribute(AttributeType.ERROR_CODE, value))).error


# Integrity, sections 14.5 and 14.6


@pytest.mark.parametrize("kind", [SHA1, SHA256], ids=["SHA-1", "SHA-256"])
@pytest.mark.parametrize("fingerprint", [False, True], ids=["", "with FINGERPRINT"])
def test_sections_14_5_and_14_6_the_hmac_covers_all_before_it(kind: AttributeType, fingerprint: bool) -> None:
    attributes = [(AttributeType.USERNAME, b"ann")]
    built = build_message(
        0x003, MessageClass.REQUEST, ID, attributes, integrity_key=KEY, integrity_kind=kind, fingerprint=fingerprint
    )
    before = message(attribute(AttributeType.USERNAME, b"ann"), kind=0x0003)
    assert built[4:].startswith((before + integrity_of(before, kind))[4:])
    parsed = parse_message(built)
    assert parsed.has_integrity(KEY, kind)
    assert not parsed.has_integrity(KEY[:-1], kind)
    assert not parsed.has_integrity(KEY, SHA1 if kind == SHA256 else SHA256)


@pytest.mark.parametrize("kind", [SHA1, SHA256], ids=["SHA-1", "SHA-256"])
def test_sections_14_5_and_14_6_every_byte_counts(kind: AttributeType) -> None:
    attributes = [(0x8022, b"abcd")]
    built = build_message(0x003, MessageClass.REQUEST, ID, attributes, integrity_key=KEY, integrity_kind=kind)
    for offset in range(len(built)):
        with contextlib.suppress(StunError):  # Changed lengths and cookies are no messages at all.
            assert not parse_message(flipped(built, offset)).has_integrity(KEY, kind), offset


@pytest.mark.parametrize("kind", sorted(VALUE_BYTES))
def test_a_value_of_the_wrong_length_raises_or_is_a_fault_that_the_message_names(kind: int) -> None:
    least, most = VALUE_BYTES[kind]
    for length in {max(0, least - 1), most + 1} - set(range(least, most + 1)):
        data = message(attribute(kind, bytes(length)))
        with pytest.raises(StunError, match=f"0x{kind:04x} has {length} bytes"):
            parse_message(data)
        if kind != AttributeType.FINGERPRINT:
            parsed = parse_message(data, allow_faults=True)
            assert f"0x{kind:04x} has {length} bytes" in parsed.fault
            assert parsed.integrity_offsets == {}


def test_an_integrity_of_no_bytes_proves_nothing() -> None:
    for kind in (AttributeType.MESSAGE_INTEGRITY, AttributeType.MESSAGE_INTEGRITY_SHA256):
        parsed = parse_message(message(attribute(kind, b"")), allow_faults=True)
        assert not parsed.has_integrity(KEY, kind)


def test_what_is_ignored_after_the_integrity_has_no_fault() -> None:
    signed = message(attribute(AttributeType.USERNAME, b"ann"))
    signed += integrity_of(signed)
    parsed = parse_message(with_length(signed + attribute(AttributeType.LIFETIME, b"abc")))
    assert (parsed.fault, parsed.has_integrity(KEY)) == ("", True)


def test_an_error_code_whose_padding_is_counted_has_the_same_words() -> None:
    for padding in (b"", b"\0", b"\0\0\0", b"  "):
        parsed = parse_message(message(attribute(AttributeType.ERROR_CODE, b"\0\0\x04\x25Mismatch" + padding)))
        assert parsed.error == ErrorCode(437, "Mismatch")


def test_rfc8656_18_12_address_error_code() -> None:
    assert build_address_error_code(2, 440, "no") == b"\x02\0\x04\x28no"


def test_section_14_5_attributes_behind_the_integrity_do_not_count() -> None:
    signed = message(attribute(AttributeType.USERNAME, b"ann"))
    signed += integrity_of(signed)
    late = [attribute(AttributeType.REALM, b"evil"), attribute(0x7FFF, b""), attribute(AttributeType.USERNAME, b"eve")]
    parsed = parse_message(with_length(signed + b"".join(late)))
    assert parsed.attributes == (Attribute(AttributeType.USERNAME, b"ann"),)
    assert parsed.unknown_required(KNOWN) == ()
    assert parsed.has_integrity(KEY)


def test_section_14_6_sha256_may_follow_sha1_and_covers_it() -> None:
    signed = message(attribute(AttributeType.USERNAME, b"ann"))
    signed += integrity_of(signed)
    signed += integrity_of(signed, SHA256)
    parsed = parse_message(with_length(signed))
    assert parsed.has_integrity(KEY)
    assert parsed.has_integrity(KEY, SHA256)
    assert set(parsed.integrity_offsets) == {SHA1, SHA256}


def test_section_14_6_sha1_behind_sha256_does_not_count() -> None:
    signed = message(attribute(AttributeType.USERNAME, b"ann"))
    signed += integrity_of(signed, SHA256)
    signed += integrity_of(signed)
    parsed = parse_message(with_length(signed))
    assert parsed.has_integrity(KEY, SHA256)
    assert not parsed.has_integrity(KEY)


@pytest.mark.parametrize("kind", [SHA1, SHA256], ids=["SHA-1", "SHA-256"])
def test_section_14_of_two_integrities_the_first_counts(kind: AttributeType) -> None:
    signed = message(attribute(AttributeType.USERNAME, b"ann"))
    forged = signed + attribute(kind, bytes(20 if kind == SHA1 else 32))
    forged += integrity_of(forged, kind)
    assert not parse_message(with_length(forged)).has_integrity(KEY, kind)


@pytest.mark.parametrize("size", [16, 20, 28])
def test_section_14_6_a_truncated_sha256_is_refused(size: int) -> None:
    """TURN does not say that truncation is allowed: sixteen bytes would be easier to guess."""
    before = message()
    covered = with_length(before + bytes(4 + size))[:20]
    value = hmac.new(KEY, covered, hashlib.sha256).digest()[:size]
    with pytest.raises(StunError, match="expected 32 to 32"):
        parse_message(with_length(before + attribute(SHA256, value)))


# FINGERPRINT, section 14.7


def test_section_14_7_fingerprint() -> None:
    built = build_message(Method.BINDING, MessageClass.REQUEST, ID, fingerprint=True)
    assert len(built) == 28
    assert parse_message(built).attributes == ()


def test_section_14_7_a_wrong_fingerprint_is_refused() -> None:
    built = build_message(Method.BINDING, MessageClass.REQUEST, ID, fingerprint=True)
    for offset in (0, 8, 24, 27):
        with pytest.raises(StunError, match="FINGERPRINT does not match"):
            parse_message(flipped(built, offset))


def test_section_14_7_a_fingerprint_that_is_not_last_is_refused() -> None:
    built = build_message(Method.BINDING, MessageClass.REQUEST, ID, fingerprint=True)
    with pytest.raises(StunError, match="not the last"):
        parse_message(with_length(built + attribute(0x8022, b"")))


# Properties


def check_reading(parsed: Message) -> None:
    """Every question that can be asked of a message has an answer or a StunError."""
    for kind in AttributeType:
        for ask in (parsed.get, parsed.address, parsed.uint32, parsed.text, parsed.get_all):
            try:
                ask(kind)
            except StunError:
                continue
    with contextlib.suppress(StunError):
        _ = parsed.error
    _ = parsed.unknown_required, parsed.has_integrity(KEY), parsed.has_integrity(KEY, SHA256)


@repeatable
@given(st.binary(max_size=200))
@example(message(attribute(AttributeType.ERROR_CODE, b"\0\0\4\0")))
def test_any_bytes_give_a_message_or_a_stun_error(data: bytes) -> None:
    try:
        parsed = parse_message(data)
    except StunError:
        return
    check_reading(parsed)


KINDS = st.one_of(st.sampled_from(sorted(AttributeType)), st.integers(0, 0xFFFF))


@repeatable
@given(st.integers(0, 0x3FFF), st.lists(st.tuples(KINDS, st.binary(max_size=40)), max_size=6), st.binary(max_size=8))
def test_any_attributes_give_a_message_or_a_stun_error(
    kind: int, attributes: list[tuple[int, bytes]], rest: bytes
) -> None:
    """The same with a header that is right, so that the search comes to the attributes."""
    body = b"".join(attribute(kind, value) for kind, value in attributes)
    try:
        parsed = parse_message(message(body, rest, kind=kind))
    except StunError:
        return
    check_reading(parsed)


OPEN_KINDS = st.integers(0, 0xFFFF).filter(lambda kind: kind not in VALUE_BYTES)


@repeatable
@given(
    method=st.integers(0, 0xFFF),
    message_class=st.sampled_from(MessageClass),
    transaction_id=st.binary(min_size=12, max_size=12),
    attributes=st.lists(st.tuples(OPEN_KINDS, st.binary(max_size=30)), max_size=6),
    kind=st.sampled_from([SHA1, SHA256]),
    signed=st.booleans(),
    fingerprint=st.booleans(),
)
def test_what_is_built_is_parsed_as_it_was(
    *,
    method: int,
    message_class: MessageClass,
    transaction_id: bytes,
    attributes: list[tuple[int, bytes]],
    kind: AttributeType,
    signed: bool,
    fingerprint: bool,
) -> None:
    built = build_message(
        method,
        message_class,
        transaction_id,
        attributes,
        integrity_key=KEY if signed else None,
        integrity_kind=kind,
        fingerprint=fingerprint,
    )
    parsed = parse_message(built)
    assert (parsed.method, parsed.message_class, parsed.transaction_id) == (method, message_class, transaction_id)
    assert list(parsed.attributes) == attributes
    assert parsed.has_integrity(KEY, kind) == signed
    assert len(built) % 4 == 0


ADDRESSES = st.builds(
    Address,
    st.ip_addresses().map(canonical_host),
    st.integers(0, 65535),
)


@repeatable
@given(ADDRESSES, st.binary(min_size=12, max_size=12))
def test_any_address_is_xored_there_and_back(address: Address, transaction_id: bytes) -> None:
    assert parse_xor_address(build_xor_address(address, transaction_id), transaction_id) == address
