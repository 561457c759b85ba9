"""The TURN server, line by line of the checklist: STUN, credentials, Allocate, Refresh, permissions, channels, data."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.addresses import LOOPBACK, Address, RelayPolicy
from relay.turn.answers import MAX_ANSWERS
from relay.turn.commands import CloseRelayed, OpenRelayed, SendToClient, SendToPeer
from relay.turn.credentials import RestCredentials, long_term_key, raw_long_term_key, rest_password, rest_username
from relay.turn.drops import Drop
from relay.turn.opening import MAX_OPEN_TRIES
from relay.turn.server import MAX_RELAYED_BYTES, MAX_SPARE_DEADLINES, ServerSettings
from relay.wire.stun import (
    AttributeType,
    ErrorCode,
    Message,
    MessageClass,
    Method,
    build_message,
    build_uint32,
    build_xor_address,
    parse_message,
    parse_xor_address,
)
from tests.support.benches.turn import (
    ANN,
    BOB,
    EPOCH,
    PEER,
    PEER_V6,
    UDP,
    Attributes,
    FixedPorts,
    ServerBench,
    code_of,
    lifetime,
)
from tests.support.properties import repeatable
from tests.support.stun_vectors import SAMPLE_REQUEST

DONT_FRAGMENT: Attributes = (0x001A, b"")
EVEN_PORT: Attributes = (AttributeType.EVEN_PORT, b"\x00")
EVEN_PORT_AND_SIBLING: Attributes = (AttributeType.EVEN_PORT, b"\x80")
IPV4: Attributes = (AttributeType.REQUESTED_ADDRESS_FAMILY, b"\x01\0\0\0")
IPV6: Attributes = (AttributeType.REQUESTED_ADDRESS_FAMILY, b"\x02\0\0\0")
SAME_HOST = Address(PEER.host, 4999)
OTHER = Address("8.0.0.2", 4000)
BOTH_FAMILIES = ServerSettings(relayed_hosts=("192.0.2.1", "2001:db8::1"))


@pytest.fixture
def bench() -> ServerBench:
    return ServerBench()


def binding(bench: ServerBench, *attributes: Attributes) -> bytes:
    return build_message(Method.BINDING, MessageClass.REQUEST, bench.new_id(), attributes)


def bare(bench: ServerBench, method: Method = Method.ALLOCATE) -> bytes:
    return build_message(method, MessageClass.REQUEST, bench.new_id(), [UDP])


def flipped(data: bytes, offset: int) -> bytes:
    return data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :]


def with_length(data: bytes) -> bytes:
    return data[:2] + struct.pack("!H", len(data) - 20) + data[4:]


# STUN (RFC 8489)


def test_binding_is_answered_with_32_bytes_and_no_credentials(bench: ServerBench) -> None:
    """RFC 8489 section 2."""
    request = binding(bench)
    assert bench.send(request) == [
        SendToClient(
            ANN,
            bytes.fromhex("0101000c2112a442")
            + request[8:20]
            + bytes.fromhex("00200008")
            + build_xor_address(ANN, request[8:20]),
        )
    ]
    (answer,) = bench.send(binding(bench))
    assert isinstance(answer, SendToClient)
    assert len(answer.data) == 32


def test_binding_of_the_rfc5769_sample_is_answered(bench: ServerBench) -> None:
    """It has PRIORITY, a USERNAME and an integrity of which this server knows nothing, and needs nothing."""
    assert bench.ask(SAMPLE_REQUEST).address(AttributeType.XOR_MAPPED_ADDRESS) == ANN


def test_binding_shows_an_ipv6_client_its_address(bench: ServerBench) -> None:
    client = Address("2001:db8::5", 1024)
    assert bench.ask(binding(bench), client).address(AttributeType.XOR_MAPPED_ADDRESS) == client


def test_rfc8489_6_3_what_is_malformed_is_dropped(bench: ServerBench) -> None:
    request = binding(bench, (AttributeType.SOFTWARE, b"abcd"))
    assert bench.ask(request)
    dropped = {
        "nothing": b"",
        "too short": request[:19],
        "top bits": b"\x80" + request[1:],
        "length no multiple of four": request[:3] + b"\x07" + request[4:],
        "cookie": flipped(request, 7),
        "one byte more": request + b"\0",
        "one byte less": request[:-1],
        "an attribute too long": flipped(request, 23) + b"",
    }
    for what, data in dropped.items():
        assert bench.send(data) == [], what


WRONG_LENGTHS: list[tuple[Method, Attributes]] = [
    (Method.BINDING, (AttributeType.LIFETIME, b"abc")),
    (Method.BINDING, (AttributeType.PRIORITY, b"")),
    (Method.ALLOCATE, (AttributeType.REQUESTED_TRANSPORT, b"\x11")),
    (Method.ALLOCATE, (AttributeType.LIFETIME, bytes(5))),
    (Method.ALLOCATE, (AttributeType.EVEN_PORT, b"")),
    (Method.ALLOCATE, (AttributeType.EVEN_PORT, bytes(4))),
    (Method.ALLOCATE, (AttributeType.RESERVATION_TOKEN, bytes(7))),
    (Method.ALLOCATE, (AttributeType.REQUESTED_ADDRESS_FAMILY, b"\x01")),
    (Method.ALLOCATE, (AttributeType.ADDITIONAL_ADDRESS_FAMILY, b"\x02")),
    (Method.REFRESH, (AttributeType.LIFETIME, b"")),
    (Method.CHANNEL_BIND, (AttributeType.CHANNEL_NUMBER, b"\x40\x00")),
    (Method.CREATE_PERMISSION, (AttributeType.XOR_PEER_ADDRESS, bytes(7))),
    (Method.ALLOCATE, (AttributeType.USERNAME, bytes(514))),
]


@pytest.mark.parametrize(("method", "attribute"), WRONG_LENGTHS, ids=str)
def test_rfc8489_6_3_an_attribute_of_the_wrong_length_is_answered_with_400(
    bench: ServerBench, method: Method, attribute: Attributes
) -> None:
    """Without credentials and with them; in the second case the answer is signed."""
    if method not in {Method.BINDING, Method.ALLOCATE}:
        bench.allocate()
    parsed_late = attribute[0] == AttributeType.XOR_PEER_ADDRESS  # It has no one length: only its reader can tell.
    plain = bench.ask(build_message(method, MessageClass.REQUEST, bench.new_id(), [attribute]))
    assert code_of(plain) == (401 if parsed_late else 400)
    assert plain.integrity_offsets == {}
    if method != Method.BINDING and attribute[0] != AttributeType.USERNAME:
        assert code_of(bench.call(method, attribute)) == 400


def test_rfc8489_6_3_an_indication_with_an_attribute_of_the_wrong_length_is_dropped(bench: ServerBench) -> None:
    bench.allocate()
    bench.permit(PEER)
    assert bench.send_indication(PEER, b"up", (AttributeType.LIFETIME, b"abc")) == []


def test_rfc8489_6_3_an_integrity_of_the_wrong_length_is_answered_with_400(bench: ServerBench) -> None:
    for kind, size in ((AttributeType.MESSAGE_INTEGRITY, 0), (AttributeType.MESSAGE_INTEGRITY_SHA256, 16)):
        attributes = [UDP, (AttributeType.USERNAME, b"ann"), (kind, bytes(size))]
        request = build_message(Method.ALLOCATE, MessageClass.REQUEST, bench.new_id(), attributes)
        assert code_of(bench.ask(request)) == 400


def test_rfc8489_14_7_a_wrong_fingerprint_or_one_that_is_not_last_is_dropped(bench: ServerBench) -> None:
    request = build_message(Method.BINDING, MessageClass.REQUEST, bench.new_id(), fingerprint=True)
    assert bench.ask(request)
    assert bench.send(flipped(request, 27)) == []
    assert bench.send(with_length(request + bytes.fromhex("80220000"))) == []


@pytest.mark.parametrize("message_class", [MessageClass.SUCCESS, MessageClass.ERROR, MessageClass.INDICATION])
@pytest.mark.parametrize("method", [Method.BINDING, Method.ALLOCATE, Method.REFRESH])
def test_responses_and_indications_are_not_answered(
    bench: ServerBench, method: Method, message_class: MessageClass
) -> None:
    assert bench.send(build_message(method, message_class, bench.new_id(), [UDP])) == []


@pytest.mark.parametrize("method", [0x000, 0x002, 0x00A, Method.SEND, Method.DATA, 0xFFF])
def test_requests_of_other_methods_are_not_answered(bench: ServerBench, method: int) -> None:
    assert bench.send(build_message(method, MessageClass.REQUEST, bench.new_id())) == []


def test_rfc8489_6_3_1_420_lists_what_must_be_understood(bench: ServerBench) -> None:
    answer = bench.ask(binding(bench, (0x7FFE, b""), (0x8FFF, b""), (0x0002, b"x"), (0x7FFE, b"")))
    assert code_of(answer) == 420
    assert answer.get(AttributeType.UNKNOWN_ATTRIBUTES) == bytes.fromhex("7ffe0002")


def test_rfc8489_14_5_attributes_behind_the_integrity_are_ignored(bench: ServerBench) -> None:
    request = bench.request(Method.ALLOCATE, UDP)
    late = with_length(request + bytes.fromhex("7ffe0000") + bytes.fromhex("000d0004") + build_uint32(3000))
    answer = bench.ask(late)
    assert code_of(answer) == 0
    assert answer.uint32(AttributeType.LIFETIME) == 600


def test_rfc8489_14_of_duplicates_the_first_counts(bench: ServerBench) -> None:
    answer = bench.call(Method.ALLOCATE, UDP, lifetime(1200), lifetime(3600))
    assert answer.uint32(AttributeType.LIFETIME) == 1200


def test_rfc8489_14_8_an_error_code_of_any_length_and_all_padding_zero(bench: ServerBench) -> None:
    """The reason "bad" and more: the length in the attribute is that of the text, padding comes on top."""
    (command,) = bench.send(bench.request(Method.REFRESH))
    assert isinstance(command, SendToClient)
    reason = b"no allocation"
    assert command.data[20:].startswith(struct.pack("!HHHBB", 0x0009, 4 + len(reason), 0, 4, 37) + reason + bytes(3))
    assert command.data[20 + 4 + 20 :].startswith(b"\x00\x08\x00\x14")


@pytest.mark.parametrize("method", [Method.ALLOCATE, Method.REFRESH, Method.CREATE_PERMISSION, Method.CHANNEL_BIND])
def test_rfc8489_6_3_a_retransmitted_request_has_the_same_answer(bench: ServerBench, method: Method) -> None:
    if method != Method.ALLOCATE:
        bench.allocate()
    transaction_id = bench.new_id()
    attributes: dict[Method, list[Attributes]] = {
        Method.ALLOCATE: [UDP],
        Method.REFRESH: [lifetime(1200)],
        Method.CREATE_PERMISSION: [(AttributeType.XOR_PEER_ADDRESS, build_xor_address(PEER, transaction_id))],
        Method.CHANNEL_BIND: [
            (AttributeType.CHANNEL_NUMBER, b"\x40\x00\0\0"),
            (AttributeType.XOR_PEER_ADDRESS, build_xor_address(PEER, transaction_id)),
        ],
    }
    request = bench.request(method, *attributes[method], transaction_id=transaction_id)
    first = bench.send(request)
    assert len(first) == 1
    bench.advance(39.5)
    assert bench.send(request) == first


def test_a_retransmitted_release_is_not_a_mismatch(bench: ServerBench) -> None:
    bench.allocate()
    release = bench.request(Method.REFRESH, lifetime(0))
    first, closed = bench.send(release)[-1], bench.server.allocations
    assert closed == 0
    assert bench.send(release) == [first]


def test_answers_are_kept_for_each_client_apart(bench: ServerBench) -> None:
    transaction_id = bench.new_id()
    mine = bench.request(Method.ALLOCATE, UDP, transaction_id=transaction_id)
    theirs = bench.request(Method.ALLOCATE, UDP, client=BOB, user="bob", transaction_id=transaction_id)
    relayed = {bench.ask(mine).address(AttributeType.XOR_RELAYED_ADDRESS)}
    relayed.add(bench.ask(theirs, BOB).address(AttributeType.XOR_RELAYED_ADDRESS))
    assert len(relayed) == 2


def test_rfc8489_6_3_a_kept_answer_is_only_for_copies_of_its_request(bench: ServerBench) -> None:
    """Another method, or other credentials, with the same id is another request."""
    transaction_id, nonce = bench.new_id(), bench.nonce()
    allocate = bench.request(Method.ALLOCATE, UDP, nonce=nonce, transaction_id=transaction_id)
    first = bench.send(allocate)
    refresh = bench.ask(bench.request(Method.REFRESH, nonce=nonce, transaction_id=transaction_id))
    assert (refresh.method, code_of(refresh)) == (Method.REFRESH, 0)
    of_bob = bench.request(Method.ALLOCATE, UDP, user="bob", nonce=nonce, transaction_id=transaction_id)
    assert code_of(bench.ask(of_bob)) == 437
    wrong = forged(bench, "ann", "wrong", transaction_id, nonce)
    assert code_of(bench.ask(wrong)) == 401
    assert first


def test_so_many_answers_are_kept_and_no_more(bench: ServerBench) -> None:
    allocate = bench.request(Method.ALLOCATE, UDP)
    first = bench.send(allocate)
    nonce = bench.nonce()
    for _ in range(MAX_ANSWERS - 1):
        bench.send(bench.request(Method.REFRESH, nonce=nonce))
    assert bench.send(allocate) == first
    bench.send(bench.request(Method.REFRESH, nonce=nonce))
    assert code_of(bench.ask(allocate)) == 437


# Long-term credentials (RFC 8489 section 9.2.4)


def test_9_2_4_without_integrity_401_with_realm_and_nonce(bench: ServerBench) -> None:
    answer = bench.ask(bare(bench))
    assert code_of(answer) == 401
    assert answer.text(AttributeType.REALM) == "cloud9"
    assert len(answer.get(AttributeType.NONCE) or b"") == 16
    assert answer.integrity_offsets == {}
    assert bench.server.allocations == 0


@pytest.mark.parametrize("realm", ["cloud9", "12345678", "a.realm.of.20.bytes."])
def test_10_a_401_takes_at_most_72_bytes(realm: str) -> None:
    """No more than a small factor of the request: nothing to gain by forging a source."""
    bench = ServerBench(ServerSettings(realm=realm))
    (answer,) = bench.send(bare(bench))
    assert isinstance(answer, SendToClient)
    assert len(answer.data) <= 72


@pytest.mark.parametrize("method", [Method.ALLOCATE, Method.REFRESH, Method.CREATE_PERMISSION, Method.CHANNEL_BIND])
def test_9_2_4_every_turn_request_is_challenged(bench: ServerBench, method: Method) -> None:
    bench.allocate()
    assert code_of(bench.ask(bare(bench, method))) == 401


@pytest.mark.parametrize("missing", [AttributeType.USERNAME, AttributeType.REALM, AttributeType.NONCE])
def test_9_2_4_integrity_without_username_realm_or_nonce_400(bench: ServerBench, missing: AttributeType) -> None:
    attributes = [
        UDP,
        (AttributeType.USERNAME, b"ann"),
        (AttributeType.REALM, b"cloud9"),
        (AttributeType.NONCE, bench.nonce()),
    ]
    kept = [item for item in attributes if item[0] != missing]
    request = build_message(Method.ALLOCATE, MessageClass.REQUEST, bench.new_id(), kept, integrity_key=bench.key("ann"))
    answer = bench.ask(request)
    assert code_of(answer) == 400
    assert answer.integrity_offsets == {}
    assert answer.get(AttributeType.NONCE) is None


def test_9_2_4_a_username_that_is_no_text_400(bench: ServerBench) -> None:
    attributes = [
        (AttributeType.USERNAME, b"\xff"),
        (AttributeType.REALM, b"cloud9"),
        (AttributeType.NONCE, bench.nonce()),
    ]
    request = build_message(Method.ALLOCATE, MessageClass.REQUEST, bench.new_id(), attributes, integrity_key=b"key")
    assert code_of(bench.ask(request)) == 400


def forged(bench: ServerBench, user: str, password: str, transaction_id: bytes, nonce: bytes) -> bytes:
    other = ServerBench(passwords={user: password})
    return other.request(Method.ALLOCATE, UDP, user=user, nonce=nonce, transaction_id=transaction_id)


def test_9_2_4_unknown_user_and_wrong_password_have_the_same_answer(bench: ServerBench) -> None:
    """Byte for byte, and it is the answer to a request without credentials, too."""
    transaction_id, nonce = bench.new_id(), bench.nonce()
    unknown = bench.send(forged(bench, "eve", "sesame", transaction_id, nonce))
    wrong = bench.send(forged(bench, "ann", "wrong", transaction_id, nonce))
    plain = bench.send(build_message(Method.ALLOCATE, MessageClass.REQUEST, transaction_id, [UDP]))
    assert unknown == wrong == plain
    (answer,) = unknown
    assert isinstance(answer, SendToClient)
    assert code_of(parse_message(answer.data)) == 401
    assert bench.server.allocations == 0


def test_9_2_4_unknown_user_costs_the_same_work_as_a_wrong_password(
    bench: ServerBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[bytes] = []
    has_integrity = Message.has_integrity

    def counting(message: Message, key: bytes, kind: int = AttributeType.MESSAGE_INTEGRITY) -> bool:
        checked.append(key)
        return has_integrity(message, key, kind)

    nonce = bench.nonce()
    monkeypatch.setattr(Message, "has_integrity", counting)
    bench.send(forged(bench, "ann", "wrong", bench.new_id(), nonce))
    known = len(checked)
    bench.send(forged(bench, "eve", "sesame", bench.new_id(), nonce))
    assert len(checked) == 2 * known == 4
    assert {len(key) for key in checked} == {16}


def test_9_2_4_whoever_guesses_what_stands_in_for_an_unknown_users_password_is_unknown_still(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("relay.turn.authentication.secrets.token_hex", lambda size: "stand-in")
    bench = ServerBench()
    assert code_of(bench.ask(forged(bench, "eve", "stand-in", bench.new_id(), bench.nonce()))) == 401


def test_9_2_4_a_stale_nonce_438_with_a_fresh_one(bench: ServerBench) -> None:
    nonce = bench.nonce()
    bench.advance(600)
    assert code_of(bench.call(Method.ALLOCATE, UDP, nonce=nonce)) == 0
    bench.advance(1)
    stale = bench.ask(bench.request(Method.REFRESH, nonce=nonce))
    fresh = stale.get(AttributeType.NONCE)
    assert code_of(stale) == 438
    assert stale.text(AttributeType.REALM) == "cloud9"
    assert fresh is not None
    assert fresh != nonce
    assert stale.integrity_offsets == {}
    assert code_of(bench.call(Method.REFRESH, nonce=fresh)) == 0


@pytest.mark.parametrize("nonce", [b"x", b"A" * 16, b"\xff" * 16, b"obMatJos2AAAAf//499k954d6OL34oL9FSTvy64sA"])
def test_9_2_4_a_foreign_nonce_438(bench: ServerBench, nonce: bytes) -> None:
    assert code_of(bench.ask(bench.request(Method.ALLOCATE, UDP, nonce=nonce))) == 438


def test_9_2_4_a_nonce_of_another_client_438(bench: ServerBench) -> None:
    nonce = bench.nonce(BOB)
    assert code_of(bench.ask(bench.request(Method.ALLOCATE, UDP, nonce=nonce))) == 438
    assert code_of(bench.ask(bench.request(Method.ALLOCATE, UDP, client=BOB, nonce=nonce), BOB)) == 0


def test_9_2_4_answers_to_authentic_requests_carry_integrity(bench: ServerBench) -> None:
    """Successes and errors alike; ``call`` checks it with the key of the user."""
    assert code_of(bench.call(Method.REFRESH)) == 437
    assert code_of(bench.call(Method.ALLOCATE)) == 400
    assert code_of(bench.call(Method.ALLOCATE, UDP)) == 0
    assert code_of(bench.call(Method.REFRESH)) == 0


def test_14_6_who_signs_with_sha256_is_answered_with_sha256(bench: ServerBench) -> None:
    kind = AttributeType.MESSAGE_INTEGRITY_SHA256
    for attributes, code in (((), 400), ((UDP,), 0)):
        answer = bench.ask(bench.request(Method.ALLOCATE, *attributes, integrity_kind=kind))
        assert code_of(answer) == code
        assert answer.has_integrity(bench.key("ann"), kind)
        assert set(answer.integrity_offsets) == {kind}


def test_14_6_of_two_integrities_sha256_decides(bench: ServerBench) -> None:
    request = bench.request(Method.ALLOCATE, UDP)
    forgery = with_length(request + bytes.fromhex("001c0020") + bytes(32))
    assert code_of(bench.ask(forgery)) == 401


def test_6_3_1_420_only_after_the_credentials(bench: ServerBench) -> None:
    request = build_message(Method.ALLOCATE, MessageClass.REQUEST, bench.new_id(), [UDP, (0x7FFE, b"")])
    assert code_of(bench.ask(request)) == 401
    answer = bench.call(Method.ALLOCATE, UDP, (0x7FFE, b""))
    assert code_of(answer) == 420
    assert answer.get(AttributeType.UNKNOWN_ATTRIBUTES) == bytes.fromhex("7ffe")


def rest_bench(expires: int) -> tuple[ServerBench, str]:
    user = rest_username("ann", expires)
    return ServerBench(credentials=RestCredentials("north"), passwords={user: rest_password("north", user)}), user


def test_9_2_4_password_algorithms_that_were_not_offered_400(bench: ServerBench) -> None:
    one, list_of_one = (AttributeType.PASSWORD_ALGORITHM, b"\0\1\0\0"), (AttributeType.PASSWORD_ALGORITHMS, b"\0\1\0\0")
    for attributes in ([one], [list_of_one], [one, list_of_one]):
        assert code_of(bench.call(Method.ALLOCATE, UDP, *attributes)) == 400
    assert bench.server.allocations == 0


@pytest.mark.parametrize(
    ("method", "attribute"),
    [
        (Method.ALLOCATE, (AttributeType.USERHASH, bytes(32))),
        (Method.REFRESH, (AttributeType.USE_CANDIDATE, b"")),
        (Method.CREATE_PERMISSION, (AttributeType.PRIORITY, bytes(4))),
        (Method.CHANNEL_BIND, (0x001A, b"")),
    ],
    ids=["USERHASH", "USE-CANDIDATE", "PRIORITY", "DONT-FRAGMENT"],
)
def test_6_3_1_420_for_what_has_a_name_and_is_not_implemented(
    bench: ServerBench, method: Method, attribute: Attributes
) -> None:
    if method != Method.ALLOCATE:
        bench.allocate()
    answer = bench.call(method, attribute)
    assert code_of(answer) == 420
    assert answer.get(AttributeType.UNKNOWN_ATTRIBUTES) == attribute[0].to_bytes(2)


def test_9_2_4_420_for_a_userhash_in_place_of_a_username(bench: ServerBench) -> None:
    attributes = [
        UDP,
        (AttributeType.USERHASH, bytes(32)),
        (AttributeType.REALM, b"cloud9"),
        (AttributeType.NONCE, bench.nonce()),
    ]
    request = build_message(Method.ALLOCATE, MessageClass.REQUEST, bench.new_id(), attributes, integrity_key=b"key")
    answer = bench.ask(request)
    assert code_of(answer) == 420
    assert answer.get(AttributeType.UNKNOWN_ATTRIBUTES) == b"\x00\x1e"


COMPOSED, DECOMPOSED = "Zo\u00eb", "Zoe\u0308"


@pytest.mark.parametrize("stored", [COMPOSED, DECOMPOSED])
@pytest.mark.parametrize("sent", [COMPOSED, DECOMPOSED])
@pytest.mark.parametrize("make_key", [long_term_key, raw_long_term_key])
def test_9_2_2_either_form_of_a_name_is_accepted_and_answered_with_the_key_that_proved_it(
    stored: str, sent: str, make_key: Callable[[str, str, str], bytes]
) -> None:
    bench = ServerBench(passwords={stored: "sesame"})
    key = make_key(sent, "cloud9", "sesame")
    attributes = [
        UDP,
        (AttributeType.USERNAME, sent.encode()),
        (AttributeType.REALM, b"cloud9"),
        (AttributeType.NONCE, bench.nonce()),
    ]
    request = build_message(Method.ALLOCATE, MessageClass.REQUEST, bench.new_id(), attributes, integrity_key=key)
    answer = bench.ask(request)
    assert code_of(answer) == 0
    assert answer.has_integrity(key)


@pytest.mark.parametrize("realm", [COMPOSED, DECOMPOSED])
@pytest.mark.parametrize("password", [COMPOSED, DECOMPOSED])
@pytest.mark.parametrize("make_key", [long_term_key, raw_long_term_key])
def test_9_2_2_either_form_of_realm_and_password_is_accepted(
    realm: str, password: str, make_key: Callable[[str, str, str], bytes]
) -> None:
    bench = ServerBench(ServerSettings(realm=realm), passwords={"ann": password})
    attributes = [
        UDP,
        (AttributeType.USERNAME, b"ann"),
        (AttributeType.REALM, realm.encode()),
        (AttributeType.NONCE, bench.nonce()),
    ]
    key = make_key("ann", realm, password)
    request = build_message(Method.ALLOCATE, MessageClass.REQUEST, bench.new_id(), attributes, integrity_key=key)
    assert code_of(bench.ask(request)) == 0


def test_5_either_form_of_a_name_is_the_same_user() -> None:
    """The allocation's owner may refresh it, and has one quota."""
    settings = ServerSettings(max_allocations_per_user=1)
    bench = ServerBench(settings, passwords={COMPOSED: "sesame", DECOMPOSED: "sesame"})
    bench.allocate(user=COMPOSED)
    assert code_of(bench.call(Method.REFRESH, user=DECOMPOSED)) == 0
    assert code_of(bench.call(Method.ALLOCATE, UDP, client=BOB, user=DECOMPOSED)) == 486


def test_rest_credentials_end_with_their_expiry() -> None:
    """The bench's clock shows 1000 when the day's shows EPOCH + 1000."""
    bench, user = rest_bench(EPOCH + 1300)
    bench.advance(299)
    assert code_of(bench.call(Method.ALLOCATE, UDP, user=user)) == 0
    bench.advance(1)
    expired = bench.ask(bench.request(Method.ALLOCATE, UDP, client=BOB, user=user), BOB)
    assert code_of(expired) == 401
    assert expired.integrity_offsets == {}
    assert bench.server.allocations == 1


def test_an_allocation_outlives_the_credentials_that_it_was_made_with() -> None:
    """As at coturn: a call may last longer than the hour of its credentials."""
    bench, user = rest_bench(EPOCH + 1300)
    bench.allocate(user=user)
    bench.advance(590)
    assert code_of(bench.call(Method.REFRESH, user=user)) == 0
    assert bench.permit(PEER, user=user) == 0
    assert bench.bind_channel(0x4000, PEER, user=user) == 0
    bench.passwords[user] = rest_password("south", user)
    assert code_of(bench.ask(bench.request(Method.REFRESH, user=user))) == 401
    fresh = rest_username("ann", EPOCH + 9000)
    bench.passwords |= {fresh: rest_password("north", fresh), user: rest_password("north", user)}
    assert code_of(bench.call(Method.REFRESH, user=fresh)) == 441
    assert code_of(bench.call(Method.REFRESH, lifetime(0), user=user)) == 0
    assert code_of(bench.ask(bench.request(Method.ALLOCATE, UDP, user=user))) == 401


def test_rest_credentials_of_another_secret_401() -> None:
    bench, user = rest_bench(EPOCH + 9000)
    bench.passwords[user] = rest_password("south", user)
    assert code_of(bench.ask(bench.request(Method.ALLOCATE, UDP, user=user))) == 401


def test_10_unauthenticated_answers_are_limited_and_authentic_ones_are_not() -> None:
    bench = ServerBench(limited=True)
    nonce = bench.nonce()
    assert sum(len(bench.send(bare(bench))) for _ in range(8)) == 8
    assert code_of(bench.call(Method.ALLOCATE, UDP, nonce=nonce)) == 0
    assert sum(code_of(bench.call(Method.REFRESH, nonce=nonce)) == 0 for _ in range(20)) == 20
    assert sum(code_of(bench.call(Method.ALLOCATE, nonce=nonce)) == 437 for _ in range(20)) == 20
    assert sum(len(bench.send(bare(bench))) for _ in range(20)) == 1
    assert bench.send(binding(bench)) == []
    assert bench.send(forged(bench, "ann", "wrong", bench.new_id(), nonce)) == []
    bench.advance(0.5)
    assert sum(len(bench.send(binding(bench))) for _ in range(20)) == 5
    assert bench.ask(binding(bench), BOB)


def test_10_the_flood_of_one_port_leaves_the_others_of_its_address_their_share() -> None:
    bench = ServerBench(limited=True)
    assert sum(len(bench.send(binding(bench))) for _ in range(1000)) == 10
    neighbours = [Address(ANN.host, port) for port in range(1024, 1044)]
    assert sum(len(bench.send(binding(bench), neighbour)) for neighbour in neighbours) == 20
    bench.allocate(client=neighbours[0])


def test_10_a_flood_of_wrong_passwords_costs_no_more_hmacs_than_it_has_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = ServerBench(limited=True)
    nonce = bench.nonce()
    checked: list[bytes] = []
    has_integrity = Message.has_integrity

    def counting(message: Message, key: bytes, kind: int = AttributeType.MESSAGE_INTEGRITY) -> bool:
        checked.append(key)
        return has_integrity(message, key, kind)

    monkeypatch.setattr(Message, "has_integrity", counting)
    answers = sum(len(bench.send(forged(bench, "ann", "wrong", bench.new_id(), nonce))) for _ in range(1000))
    assert answers == 9
    assert len(checked) == 2 * answers


# Allocate (RFC 8656 section 7.2)


def test_7_2_allocate(bench: ServerBench) -> None:
    answer = bench.call(Method.ALLOCATE, UDP)
    relayed = answer.address(AttributeType.XOR_RELAYED_ADDRESS)
    assert code_of(answer) == 0
    assert relayed is not None
    assert relayed.host == "192.0.2.1"
    assert 49152 <= relayed.port <= 65535
    assert answer.address(AttributeType.XOR_MAPPED_ADDRESS) == ANN
    assert answer.uint32(AttributeType.LIFETIME) == 600
    assert answer.get(AttributeType.RESERVATION_TOKEN) is None
    assert bench.open_relayed == {relayed}
    assert bench.server.allocations == 1


def test_7_2_437_for_a_5_tuple_that_is_busy(bench: ServerBench) -> None:
    bench.allocate()
    assert code_of(bench.call(Method.ALLOCATE, UDP)) == 437
    assert code_of(bench.call(Method.ALLOCATE, UDP, user="bob")) == 437
    assert code_of(bench.call(Method.ALLOCATE, UDP, client=BOB)) == 0


def test_7_2_the_same_id_has_the_cached_success_and_not_437(bench: ServerBench) -> None:
    request = bench.request(Method.ALLOCATE, UDP)
    first = bench.send(request)
    assert bench.send(request) == first
    assert bench.server.allocations == 1
    bench.advance(40)
    nonce = bench.nonce()
    retried = bench.request(Method.ALLOCATE, UDP, nonce=nonce, transaction_id=request[8:20])
    assert code_of(bench.ask(retried)) == 437


def test_7_2_a_copy_that_comes_while_the_socket_opens_opens_no_second_one(bench: ServerBench) -> None:
    request = bench.request(Method.ALLOCATE, UDP)
    other = bench.request(Method.ALLOCATE, UDP)
    (opening,) = bench.server.receive(bench.now, ANN, request)
    assert isinstance(opening, OpenRelayed)
    assert bench.server.receive(bench.now, ANN, request) == []
    assert code_of(bench.ask(other)) == 437
    (answer,) = bench.server.on_relayed_opened(bench.now, opening.relayed_address)
    assert isinstance(answer, SendToClient)
    assert parse_message(answer.data).transaction_id == request[8:20]


def test_7_2_400_without_requested_transport(bench: ServerBench) -> None:
    assert code_of(bench.call(Method.ALLOCATE)) == 400


@pytest.mark.parametrize("protocol", [0, 1, 6, 16, 18, 255])
def test_7_2_442_for_another_transport_than_udp(bench: ServerBench, protocol: int) -> None:
    transport = (AttributeType.REQUESTED_TRANSPORT, bytes([protocol, 0, 0, 17]))
    assert code_of(bench.call(Method.ALLOCATE, transport)) == 442


def test_7_2_the_reserved_bytes_of_requested_transport_are_ignored(bench: ServerBench) -> None:
    assert code_of(bench.call(Method.ALLOCATE, (AttributeType.REQUESTED_TRANSPORT, b"\x11\xff\xff\xff"))) == 0


def test_7_2_420_for_dont_fragment(bench: ServerBench) -> None:
    answer = bench.call(Method.ALLOCATE, UDP, DONT_FRAGMENT)
    assert code_of(answer) == 420
    assert answer.get(AttributeType.UNKNOWN_ATTRIBUTES) == bytes.fromhex("001a")
    assert bench.server.allocations == 0


@pytest.mark.parametrize("other", [EVEN_PORT, EVEN_PORT_AND_SIBLING, IPV4, IPV6], ids=["R=0", "R=1", "IPv4", "IPv6"])
def test_7_2_400_for_a_token_with_even_port_or_family(bench: ServerBench, other: Attributes) -> None:
    token = (AttributeType.RESERVATION_TOKEN, bytes(8))
    assert code_of(bench.call(Method.ALLOCATE, UDP, token, other)) == 400


def test_7_2_508_for_an_unknown_token(bench: ServerBench) -> None:
    assert code_of(bench.call(Method.ALLOCATE, UDP, (AttributeType.RESERVATION_TOKEN, bytes(8)))) == 508


def test_7_2_even_port_with_r_0_leaves_the_sibling_free(bench: ServerBench) -> None:
    answer = bench.call(Method.ALLOCATE, UDP, EVEN_PORT)
    relayed = answer.address(AttributeType.XOR_RELAYED_ADDRESS)
    assert relayed is not None
    assert relayed.port % 2 == 0
    assert answer.get(AttributeType.RESERVATION_TOKEN) is None


def test_7_2_even_port_with_r_1_reserves_the_sibling_for_the_token(bench: ServerBench) -> None:
    answer = bench.call(Method.ALLOCATE, UDP, EVEN_PORT_AND_SIBLING)
    relayed, token = answer.address(AttributeType.XOR_RELAYED_ADDRESS), answer.get(AttributeType.RESERVATION_TOKEN)
    assert relayed is not None
    assert relayed.port % 2 == 0
    assert token is not None
    redeemed = bench.allocate((AttributeType.RESERVATION_TOKEN, token), client=BOB)
    assert redeemed == Address(relayed.host, relayed.port + 1)
    again = bench.call(
        Method.ALLOCATE, UDP, (AttributeType.RESERVATION_TOKEN, token), client=Address("192.168.1.12", 1)
    )
    assert code_of(again) == 508


def test_7_2_a_reserved_port_is_open_so_that_no_other_program_takes_it(bench: ServerBench) -> None:
    answer = bench.call(Method.ALLOCATE, UDP, EVEN_PORT_AND_SIBLING)
    relayed, token = answer.address(AttributeType.XOR_RELAYED_ADDRESS), answer.get(AttributeType.RESERVATION_TOKEN)
    assert relayed is not None
    assert token is not None
    sibling = Address(relayed.host, relayed.port + 1)
    assert bench.open_relayed == {relayed, sibling}
    assert (bench.server.relayed, bench.server.relays(sibling)) == (1, False)
    assert bench.server.receive_from_peer(bench.now, sibling, PEER, b"early") == []
    assert bench.server.drops[Drop.NO_ALLOCATION] == 1
    # It needs no socket any more, and outlives the allocation that it came with.
    bench.call(Method.REFRESH, lifetime(0))
    assert bench.open_relayed == {sibling}
    bench.can_open = lambda address: False
    assert bench.allocate((AttributeType.RESERVATION_TOKEN, token), client=BOB) == sibling
    assert bench.open_relayed == {sibling}
    bench.call(Method.REFRESH, lifetime(0), client=BOB)
    assert bench.open_relayed == set()


def test_7_2_another_pair_is_tried_when_the_sibling_cannot_be_opened() -> None:
    bench = ServerBench(choose=FixedPorts(50000, 50002, 50000))
    bench.can_open = lambda address: address.port != 50001
    assert bench.allocate(EVEN_PORT_AND_SIBLING).port == 50002
    assert {address.port for address in bench.open_relayed} == {50002, 50003}
    assert bench.allocate(EVEN_PORT, client=BOB).port == 50000


def test_7_2_508_when_no_sibling_can_be_opened(bench: ServerBench) -> None:
    bench.can_open = lambda address: address.port % 2 == 0
    assert code_of(bench.call(Method.ALLOCATE, UDP, EVEN_PORT_AND_SIBLING)) == 508
    assert bench.open_relayed == set()
    assert bench.server.next_deadline() is None


def test_7_2_a_reserved_port_counts_as_an_allocation() -> None:
    bench = ServerBench(ServerSettings(max_allocations_per_user=2, max_allocations=3))
    assert code_of(bench.call(Method.ALLOCATE, UDP, client=Address("192.168.1.1", 1))) == 0
    assert code_of(bench.call(Method.ALLOCATE, UDP, EVEN_PORT_AND_SIBLING)) == 486
    token = bench.call(Method.ALLOCATE, UDP, EVEN_PORT_AND_SIBLING, user="bob").get(AttributeType.RESERVATION_TOKEN)
    assert token is not None
    assert code_of(bench.call(Method.ALLOCATE, UDP, client=BOB)) == 508
    assert code_of(bench.call(Method.ALLOCATE, UDP, client=BOB, user="bob")) == 486
    assert code_of(bench.call(Method.ALLOCATE, UDP, (AttributeType.RESERVATION_TOKEN, token), client=BOB)) == 0


def test_7_2_a_token_is_over_after_30_s_and_its_port_is_closed(bench: ServerBench) -> None:
    answer = bench.call(Method.ALLOCATE, UDP, EVEN_PORT_AND_SIBLING)
    relayed, token = answer.address(AttributeType.XOR_RELAYED_ADDRESS), answer.get(AttributeType.RESERVATION_TOKEN)
    assert relayed is not None
    assert token is not None
    assert bench.server.next_deadline() == bench.now + 30
    assert bench.advance(30) == [CloseRelayed(Address(relayed.host, relayed.port + 1))]
    assert bench.open_relayed == {relayed}
    assert code_of(bench.call(Method.ALLOCATE, UDP, (AttributeType.RESERVATION_TOKEN, token), client=BOB)) == 508


def test_7_2_a_retransmitted_token_is_not_redeemed_twice(bench: ServerBench) -> None:
    token = bench.call(Method.ALLOCATE, UDP, EVEN_PORT_AND_SIBLING).get(AttributeType.RESERVATION_TOKEN)
    assert token is not None
    request = bench.request(Method.ALLOCATE, UDP, (AttributeType.RESERVATION_TOKEN, token), client=BOB)
    assert bench.send(request, BOB) == bench.send(request, BOB)


def test_7_2_a_token_of_an_ipv6_only_server() -> None:
    bench = ServerBench(ServerSettings(relayed_hosts=("2001:db8::1",)))
    answer = bench.call(Method.ALLOCATE, UDP, IPV6, EVEN_PORT_AND_SIBLING)
    token = answer.get(AttributeType.RESERVATION_TOKEN)
    assert token is not None
    assert bench.allocate((AttributeType.RESERVATION_TOKEN, token), client=BOB).host == "2001:db8::1"


def test_7_2_440_for_a_family_that_is_not_relayed(bench: ServerBench) -> None:
    assert code_of(bench.call(Method.ALLOCATE, UDP, IPV6)) == 440
    assert code_of(bench.call(Method.ALLOCATE, UDP, (AttributeType.REQUESTED_ADDRESS_FAMILY, b"\x03\0\0\0"))) == 440
    assert bench.allocate(IPV4).host == "192.0.2.1"


def test_7_2_each_family_has_its_host_and_ipv4_is_the_default() -> None:
    bench = ServerBench(BOTH_FAMILIES)
    assert bench.allocate(client=Address("192.168.1.1", 1)).host == "192.0.2.1"
    assert bench.allocate(IPV4, client=Address("192.168.1.1", 2)).host == "192.0.2.1"
    assert bench.allocate(IPV6, client=Address("192.168.1.1", 3)).host == "2001:db8::1"


# ADDITIONAL-ADDRESS-FAMILY (RFC 8656 sections 7.2, 8.2 and 18.11)

BOTH: Attributes = (AttributeType.ADDITIONAL_ADDRESS_FAMILY, b"\x02\0\0\0")


def relayed_addresses(answer: Message) -> list[Address]:
    values = answer.get_all(AttributeType.XOR_RELAYED_ADDRESS)
    return [parse_xor_address(value, answer.transaction_id) for value in values]


def test_7_2_an_additional_family_gives_a_relayed_address_of_each() -> None:
    bench = ServerBench(BOTH_FAMILIES)
    answer = bench.call(Method.ALLOCATE, UDP, BOTH)
    v4, v6 = relayed_addresses(answer)
    assert (v4.host, v6.host) == ("192.0.2.1", "2001:db8::1")
    assert answer.get(AttributeType.ADDRESS_ERROR_CODE) is None
    assert bench.open_relayed == {v4, v6}
    assert bench.server.allocations == 1
    assert bench.permit(PEER, PEER_V6) == 0
    assert bench.send_indication(PEER, b"up") == [SendToPeer(v4, PEER, b"up")]
    assert bench.send_indication(PEER_V6, b"up") == [SendToPeer(v6, PEER_V6, b"up")]
    assert bench.bind_channel(0x4000, PEER_V6) == 0
    assert bench.from_peer(v6, PEER_V6, b"down") == [SendToClient(ANN, b"\x40\0\0\x04down")]
    assert len(bench.from_peer(v4, PEER, b"down")) == 1


@pytest.mark.parametrize(("hosts", "missing"), [(("192.0.2.1",), 2), (("2001:db8::1",), 1)], ids=["no IPv6", "no IPv4"])
def test_7_2_a_family_that_is_not_relayed_is_told_beside_the_other(hosts: tuple[str, ...], missing: int) -> None:
    bench = ServerBench(ServerSettings(relayed_hosts=hosts))
    answer = bench.call(Method.ALLOCATE, UDP, BOTH)
    assert [address.host for address in relayed_addresses(answer)] == list(hosts)
    value = answer.get(AttributeType.ADDRESS_ERROR_CODE)
    assert value is not None
    assert value[:4] == bytes([missing, 0, 4, 40])


def test_7_2_a_family_without_a_free_port_is_told_beside_the_other() -> None:
    bench = ServerBench(BOTH_FAMILIES)
    bench.can_open = lambda address: not address.is_ipv6
    answer = bench.call(Method.ALLOCATE, UDP, BOTH)
    assert [address.host for address in relayed_addresses(answer)] == ["192.0.2.1"]
    value = answer.get(AttributeType.ADDRESS_ERROR_CODE)
    assert value is not None
    assert value[:4] == b"\x02\0\x05\x08"


def test_7_2_an_error_when_neither_family_can_be_had() -> None:
    bench = ServerBench(BOTH_FAMILIES)
    bench.can_open = lambda address: False
    assert code_of(bench.call(Method.ALLOCATE, UDP, BOTH)) == 508
    assert bench.server.allocations == 0


@pytest.mark.parametrize(
    "attributes",
    [
        (BOTH, IPV4),
        (BOTH, IPV6),
        (BOTH, EVEN_PORT_AND_SIBLING),
        (BOTH, (AttributeType.RESERVATION_TOKEN, bytes(8))),
        ((AttributeType.ADDITIONAL_ADDRESS_FAMILY, b"\x01\0\0\0"),),
        ((AttributeType.ADDITIONAL_ADDRESS_FAMILY, b"\x03\0\0\0"),),
    ],
    ids=["with IPv4", "with IPv6", "with R=1", "with a token", "of IPv4", "of no family"],
)
def test_7_2_400_for_an_additional_family(attributes: tuple[Attributes, ...]) -> None:
    assert code_of(ServerBench(BOTH_FAMILIES).call(Method.ALLOCATE, UDP, *attributes)) == 400


def test_7_2_even_port_with_r_0_goes_for_both_families() -> None:
    answer = ServerBench(BOTH_FAMILIES).call(Method.ALLOCATE, UDP, BOTH, EVEN_PORT)
    assert [address.port % 2 for address in relayed_addresses(answer)] == [0, 0]


def test_8_2_each_family_is_refreshed_and_deleted_alone() -> None:
    bench = ServerBench(BOTH_FAMILIES)
    v4, v6 = relayed_addresses(bench.call(Method.ALLOCATE, UDP, BOTH))
    bench.advance(500)
    assert code_of(bench.call(Method.REFRESH, IPV6, lifetime(1000))) == 0
    assert bench.advance(100) == [CloseRelayed(v4)]
    assert code_of(bench.call(Method.REFRESH, IPV4)) == 443
    assert bench.permit(PEER) == 443
    assert bench.permit(PEER_V6) == 0
    assert CloseRelayed(v6) in bench.send(bench.request(Method.REFRESH, IPV6, lifetime(0)))
    assert bench.server.allocations == 0
    assert code_of(bench.call(Method.REFRESH)) == 437


def test_8_2_without_a_family_all_are_refreshed_and_deleted() -> None:
    bench = ServerBench(BOTH_FAMILIES)
    v4, v6 = relayed_addresses(bench.call(Method.ALLOCATE, UDP, BOTH))
    bench.advance(599)
    bench.call(Method.REFRESH, lifetime(1000))
    assert bench.advance(999) == []
    assert set(bench.advance(1)) == {CloseRelayed(v4), CloseRelayed(v6)}


def test_3_1_a_close_while_the_second_socket_opens_lets_go_of_both() -> None:
    bench = ServerBench(BOTH_FAMILIES)
    (first,) = bench.server.receive(bench.now, ANN, bench.request(Method.ALLOCATE, UDP, BOTH))
    assert isinstance(first, OpenRelayed)
    (second,) = bench.server.on_relayed_opened(bench.now, first.relayed_address)
    assert isinstance(second, OpenRelayed)
    bench.server.on_client_closed(ANN)
    closed = bench.server.on_relayed_opened(bench.now, second.relayed_address)
    assert closed == [CloseRelayed(first.relayed_address), CloseRelayed(second.relayed_address)]
    assert bench.server.allocations == 0


@pytest.mark.parametrize("opens", [True, False])
def test_3_1_a_close_while_the_sibling_opens_lets_go_of_the_pair(*, opens: bool) -> None:
    bench = ServerBench(choose=FixedPorts(50000))
    (first,) = bench.server.receive(bench.now, ANN, bench.request(Method.ALLOCATE, UDP, EVEN_PORT_AND_SIBLING))
    assert isinstance(first, OpenRelayed)
    (second,) = bench.server.on_relayed_opened(bench.now, first.relayed_address)
    assert isinstance(second, OpenRelayed)
    bench.server.on_client_closed(ANN)
    close = CloseRelayed(first.relayed_address)
    if opens:
        both = [close, CloseRelayed(second.relayed_address)]
        assert bench.server.on_relayed_opened(bench.now, second.relayed_address) == both
    else:
        assert bench.server.on_relayed_failed(bench.now, second.relayed_address) == [close]
    assert bench.allocate(EVEN_PORT_AND_SIBLING, client=BOB).port == 50000


def test_7_2_508_says_what_the_server_has_run_out_of(bench: ServerBench) -> None:
    (opening,) = bench.server.receive(bench.now, ANN, bench.request(Method.ALLOCATE, UDP))
    assert isinstance(opening, OpenRelayed)
    (command,) = bench.server.on_relayed_failed(bench.now, opening.relayed_address, "no file descriptors left")
    assert isinstance(command, SendToClient)
    assert parse_message(command.data).error == ErrorCode(508, "no file descriptors left")


def test_7_2_486_for_a_user_with_too_many(bench: ServerBench) -> None:
    bench = ServerBench(ServerSettings(max_allocations_per_user=2))
    clients = [Address("192.168.1.1", port) for port in (1, 2, 3, 4)]
    for client in clients[:2]:
        bench.allocate(client=client)
    assert code_of(bench.call(Method.ALLOCATE, UDP, client=clients[2])) == 486
    assert code_of(bench.call(Method.ALLOCATE, UDP, client=clients[3], user="bob")) == 0
    bench.call(Method.REFRESH, lifetime(0), client=clients[0])
    assert code_of(bench.call(Method.ALLOCATE, UDP, client=clients[2])) == 0


def test_7_2_the_quota_counts_sockets_that_are_being_opened() -> None:
    bench = ServerBench(ServerSettings(max_allocations_per_user=1))
    (opening,) = bench.server.receive(bench.now, ANN, bench.request(Method.ALLOCATE, UDP))
    assert isinstance(opening, OpenRelayed)
    assert code_of(bench.call(Method.ALLOCATE, UDP, client=BOB)) == 486


def test_7_2_508_when_the_server_is_full() -> None:
    bench = ServerBench(ServerSettings(max_allocations=1))
    bench.allocate()
    assert code_of(bench.call(Method.ALLOCATE, UDP, client=BOB, user="bob")) == 508


def test_7_2_another_port_is_tried_when_one_cannot_be_opened(bench: ServerBench) -> None:
    tried: list[Address] = []

    def third(address: Address) -> bool:
        tried.append(address)
        return len(tried) == 3

    bench.can_open = third
    assert bench.allocate() == tried[2]
    assert bench.open_relayed == {tried[2]}


def test_7_2_508_when_no_port_can_be_opened(bench: ServerBench) -> None:
    tried: list[Address] = []

    def none(address: Address) -> bool:
        tried.append(address)
        return False

    bench.can_open = none
    assert code_of(bench.call(Method.ALLOCATE, UDP)) == 508
    assert len(tried) == MAX_OPEN_TRIES == 16
    bench.can_open = lambda address: True
    assert code_of(bench.call(Method.ALLOCATE, UDP)) == 0


@pytest.mark.parametrize(
    ("wanted", "granted"), [(None, 600), (0, 600), (1, 600), (599, 600), (601, 601), (3600, 3600), (3601, 3600)]
)
def test_7_2_lifetime_is_clamped_to_600_and_3600(bench: ServerBench, wanted: int | None, granted: int) -> None:
    answer = bench.call(Method.ALLOCATE, UDP, *([] if wanted is None else [lifetime(wanted)]))
    assert answer.uint32(AttributeType.LIFETIME) == granted
    bench.advance(granted - 0.1)
    assert bench.server.allocations == 1
    assert [type(command) for command in bench.advance(0.1)] == [CloseRelayed]
    assert bench.server.allocations == 0


def test_7_2_relayed_ports_are_random(bench: ServerBench) -> None:
    ports = [bench.allocate(client=Address("192.168.1.1", port)).port for port in range(1, 51)]
    assert len(set(ports)) == 50
    assert ports != sorted(ports)
    assert max(ports) - min(ports) > 8192


@pytest.mark.parametrize("method", [Method.REFRESH, Method.CREATE_PERMISSION, Method.CHANNEL_BIND])
def test_5_441_for_another_users_allocation(bench: ServerBench, method: Method) -> None:
    bench.allocate()
    assert code_of(bench.call(method, lifetime(0), user="bob")) == 441
    assert bench.server.allocations == 1


# Refresh (RFC 8656 section 8.2)


@pytest.mark.parametrize("method", [Method.REFRESH, Method.CREATE_PERMISSION, Method.CHANNEL_BIND])
def test_5_437_without_an_allocation(bench: ServerBench, method: Method) -> None:
    assert code_of(bench.call(method)) == 437


def test_8_2_refresh_prolongs_from_now(bench: ServerBench) -> None:
    bench.allocate()
    bench.advance(500)
    assert bench.call(Method.REFRESH, lifetime(1000)).uint32(AttributeType.LIFETIME) == 1000
    assert bench.advance(999) == []
    assert len(bench.advance(1)) == 1


def test_8_2_refresh_may_shorten(bench: ServerBench) -> None:
    bench.allocate(lifetime(3600))
    assert bench.call(Method.REFRESH, lifetime(600)).uint32(AttributeType.LIFETIME) == 600
    assert bench.advance(599) == []
    assert len(bench.advance(1)) == 1
    assert bench.advance(4000) == []


def test_8_2_lifetime_0_deletes(bench: ServerBench) -> None:
    relayed = bench.allocate()
    closed, answer = bench.send(bench.request(Method.REFRESH, lifetime(0)))
    assert closed == CloseRelayed(relayed)
    assert isinstance(answer, SendToClient)
    assert parse_message(answer.data).uint32(AttributeType.LIFETIME) == 0
    assert (bench.server.allocations, bench.open_relayed) == (0, set())
    assert code_of(bench.call(Method.REFRESH)) == 437
    assert code_of(bench.call(Method.ALLOCATE, UDP)) == 0


def test_8_2_443_for_another_family() -> None:
    bench = ServerBench(BOTH_FAMILIES)
    bench.allocate()
    bench.allocate(IPV6, client=BOB)
    assert code_of(bench.call(Method.REFRESH, IPV4)) == 0
    assert code_of(bench.call(Method.REFRESH, IPV6)) == 443
    assert code_of(bench.call(Method.REFRESH, IPV6, client=BOB)) == 0
    assert code_of(bench.call(Method.REFRESH, IPV4, lifetime(0), client=BOB)) == 443
    assert bench.server.allocations == 2


def test_8_2_an_allocation_that_is_over_is_over_even_if_the_timer_is_late(bench: ServerBench) -> None:
    relayed = bench.allocate()
    bench.permit(PEER)
    bench.now += 600
    assert code_of(bench.call(Method.REFRESH)) == 437
    assert bench.from_peer(relayed, PEER, b"late") == []
    closed, answer = bench.send(bench.request(Method.ALLOCATE, UDP))
    assert closed == CloseRelayed(relayed)
    assert isinstance(answer, SendToClient)
    assert bench.server.allocations == 1
    assert bench.advance(599) == []


def test_a_flood_of_refreshes_piles_up_nothing(bench: ServerBench) -> None:
    """Many refreshes leave one deadline each time the old one comes, not one for every refresh."""
    bench.allocate()
    nonce = bench.nonce()
    for seconds in [3600, 600] * 50:
        bench.call(Method.REFRESH, lifetime(seconds), nonce=nonce)
    deadlines = 0
    while bench.server.next_deadline() is not None:
        deadline = bench.server.next_deadline()
        assert deadline is not None
        bench.now = deadline
        bench.perform(bench.server.on_deadline(bench.now))
        deadlines += 1
    assert deadlines <= 2
    assert (bench.now, bench.server.allocations) == (1600.0, 0)


def test_a_day_of_changing_lifetimes_piles_up_nothing(bench: ServerBench) -> None:
    bench.allocate()
    for _ in range(50):
        bench.call(Method.REFRESH, lifetime(3600))
        bench.advance(1200)
        bench.call(Method.REFRESH, lifetime(600))
        bench.advance(500)
    assert bench.server.allocations == 1
    assert len(bench.server._expiries) <= 3


def test_the_next_deadline_is_that_of_the_allocation_that_ends_first(bench: ServerBench) -> None:
    assert bench.server.next_deadline() is None
    bench.allocate(lifetime(3000))
    bench.allocate(client=BOB)
    assert bench.server.next_deadline() == 1600.0
    bench.advance(600)
    assert bench.server.next_deadline() == 4000.0
    assert bench.server.allocations == 1


# CreatePermission (RFC 8656 section 10.2)


def test_10_2_a_permission_lets_a_peer_in_for_300_s(bench: ServerBench) -> None:
    relayed = bench.allocate()
    assert bench.from_peer(relayed, PEER, b"hello") == []
    assert bench.permit(PEER) == 0
    bench.advance(299.9)
    assert len(bench.from_peer(relayed, PEER, b"hello")) == 1
    bench.advance(0.1)
    assert bench.from_peer(relayed, PEER, b"hello") == []


def test_10_2_ports_do_not_count(bench: ServerBench) -> None:
    relayed = bench.allocate()
    assert bench.permit(Address(PEER.host, 0)) == 0
    assert len(bench.from_peer(relayed, SAME_HOST, b"hello")) == 1
    assert bench.from_peer(relayed, OTHER, b"hello") == []


def test_10_2_400_without_a_peer(bench: ServerBench) -> None:
    bench.allocate()
    assert bench.permit() == 400


def test_10_2_400_for_a_malformed_peer(bench: ServerBench) -> None:
    bench.allocate()
    answer = bench.call(Method.CREATE_PERMISSION, (AttributeType.XOR_PEER_ADDRESS, b"\0\x01\0\0"))
    assert code_of(answer) == 400


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "0.0.0.0", "224.0.0.1", "255.255.255.255"]
)
def test_10_2_403_for_a_peer_that_is_never_relayed_to(bench: ServerBench, host: str) -> None:
    bench.allocate()
    assert bench.permit(Address(host, 80)) == 403


@pytest.mark.parametrize("host", ["::1", "fe80::1", "fc00::1", "64:ff9b::7f00:1", "2002:7f00:1::", "::127.0.0.2"])
def test_10_2_403_for_an_ipv6_peer_that_is_never_relayed_to(host: str) -> None:
    bench = ServerBench(BOTH_FAMILIES)
    bench.allocate(IPV6)
    assert bench.permit(Address(host, 80)) == 403


def test_10_2_a_v4_mapped_peer_is_an_ipv4_peer() -> None:
    bench = ServerBench(BOTH_FAMILIES)
    relayed = bench.allocate()
    bench.allocate(IPV6, client=BOB)
    mapped, forbidden = Address("::ffff:8.0.0.1", 80), Address("::ffff:127.0.0.1", 80)
    assert bench.permit(forbidden) == 403
    assert bench.permit(mapped) == 0
    assert len(bench.from_peer(relayed, PEER, b"hello")) == 1
    assert bench.permit(mapped, client=BOB) == 443
    assert bench.permit(forbidden, client=BOB) == 443


def test_10_2_the_operator_may_list_what_is_never_relayed_to() -> None:
    bench = ServerBench(ServerSettings(policy=RelayPolicy(LOOPBACK)))
    bench.allocate()
    assert bench.permit(Address("127.0.0.1", 80)) == 0
    assert bench.permit(Address("10.0.0.1", 80)) == 403


def test_10_2_443_for_a_peer_of_the_other_family() -> None:
    bench = ServerBench(BOTH_FAMILIES)
    bench.allocate()
    bench.allocate(IPV6, client=BOB)
    assert bench.permit(PEER_V6) == 443
    assert bench.permit(PEER_V6, client=BOB) == 0
    assert bench.permit(PEER, client=BOB) == 443


@pytest.mark.parametrize(("bad", "code"), [(Address("127.0.0.1", 1), 403), (PEER_V6, 443)])
@pytest.mark.parametrize("first", [True, False])
def test_10_2_all_or_nothing(bench: ServerBench, bad: Address, code: int, *, first: bool) -> None:
    relayed = bench.allocate()
    assert bench.permit(*([bad, PEER] if first else [PEER, bad])) == code
    assert bench.from_peer(relayed, PEER, b"hello") == []


def many_peers(count: int) -> list[Address]:
    return [Address(f"8.1.{number >> 8}.{number & 255}", 80) for number in range(count)]


def test_10_2_508_beyond_1024_permissions(bench: ServerBench) -> None:
    relayed = bench.allocate()
    assert bench.permit(*many_peers(1025)) == 508
    assert bench.from_peer(relayed, many_peers(1)[0], b"hello") == []
    assert bench.permit(*many_peers(1024)) == 0
    assert bench.permit(PEER) == 508
    assert bench.permit(*many_peers(1024)) == 0
    bench.advance(300)
    assert bench.permit(PEER) == 0


# ChannelBind (RFC 8656 section 12.2)


@pytest.mark.parametrize(("number", "code"), [(0x4000, 0), (0x4FFF, 0), (0x3FFF, 400), (0x5000, 400), (0x7FFF, 400)])
def test_12_2_channels_are_0x4000_to_0x4fff(bench: ServerBench, number: int, code: int) -> None:
    bench.allocate()
    assert bench.bind_channel(number, PEER) == code


@pytest.mark.parametrize(("number", "code"), [(0x4000, 0), (0x5000, 0), (0x7FFF, 0), (0x3FFF, 400), (0x8000, 400)])
def test_rfc5766_channels_to_0x7fff_on_request(number: int, code: int) -> None:
    bench = ServerBench(ServerSettings(accepts_rfc5766_channels=True))
    relayed = bench.allocate()
    assert bench.bind_channel(number, PEER) == code
    assert bench.send_channel_data(number, b"up") == ([] if code else [SendToPeer(relayed, PEER, b"up")])


@pytest.mark.parametrize("kept", [AttributeType.CHANNEL_NUMBER, AttributeType.XOR_PEER_ADDRESS])
def test_12_2_400_without_number_or_peer(bench: ServerBench, kept: AttributeType) -> None:
    bench.allocate()
    transaction_id = bench.new_id()
    values = {
        AttributeType.CHANNEL_NUMBER: b"\x40\0\0\0",
        AttributeType.XOR_PEER_ADDRESS: build_xor_address(PEER, transaction_id),
    }
    request = bench.request(Method.CHANNEL_BIND, (kept, values[kept]), transaction_id=transaction_id)
    assert code_of(bench.ask(request)) == 400


def test_12_2_400_for_a_conflict_either_way(bench: ServerBench) -> None:
    bench.allocate()
    assert bench.bind_channel(0x4000, PEER) == 0
    assert bench.bind_channel(0x4000, OTHER) == 400
    assert bench.bind_channel(0x4001, PEER) == 400
    assert bench.bind_channel(0x4000, PEER) == 0
    assert bench.bind_channel(0x4001, SAME_HOST) == 0


def test_12_2_an_expired_binding_is_no_conflict(bench: ServerBench) -> None:
    bench.allocate(lifetime(3600))
    bench.bind_channel(0x4000, PEER)
    bench.advance(600)
    assert bench.bind_channel(0x4000, OTHER) == 0
    assert bench.bind_channel(0x4001, PEER) == 0


def test_12_2_400_for_a_peer_without_a_port(bench: ServerBench) -> None:
    bench.allocate()
    assert bench.bind_channel(0x4000, Address(PEER.host, 0)) == 400


def test_may_reach_judges_the_port_of_a_peer_too() -> None:
    bench = ServerBench(ServerSettings(may_reach=lambda peer: peer == PEER))
    relayed = bench.allocate()
    assert (bench.permit(PEER), bench.permit(SAME_HOST)) == (0, 0)
    assert bench.bind_channel(0x4000, SAME_HOST) == 403
    assert bench.send_indication(SAME_HOST, b"up") == []
    assert bench.send_indication(PEER, b"up") == [SendToPeer(relayed, PEER, b"up")]
    assert bench.bind_channel(0x4000, PEER) == 0


def test_12_2_403_and_443(bench: ServerBench) -> None:
    bench.allocate()
    assert bench.bind_channel(0x4000, Address("127.0.0.1", 80)) == 403
    assert bench.bind_channel(0x4000, PEER_V6) == 443
    assert bench.bind_channel(0x4000, PEER) == 0


def test_12_2_a_channel_lives_600_s_and_its_permission_300_s(bench: ServerBench) -> None:
    relayed = bench.allocate(lifetime(3600))
    bench.bind_channel(0x4000, PEER)
    bench.advance(299.9)
    assert bench.send_channel_data(0x4000, b"up") == [SendToPeer(relayed, PEER, b"up")]
    bench.advance(0.1)
    assert bench.send_channel_data(0x4000, b"up") == []
    assert bench.from_peer(relayed, PEER, b"down") == []
    bench.permit(PEER)
    bench.advance(299.9)
    assert bench.send_channel_data(0x4000, b"up") == [SendToPeer(relayed, PEER, b"up")]
    assert bench.from_peer(relayed, PEER, b"down") == [SendToClient(ANN, b"\x40\0\0\x04down")]
    bench.permit(PEER)
    bench.advance(0.1)
    assert bench.send_channel_data(0x4000, b"up") == []


def test_12_2_508_beyond_1024_channels(bench: ServerBench) -> None:
    bench.allocate(lifetime(3600))
    for number in range(1024):
        assert bench.bind_channel(0x4000 + number, Address(PEER.host, 1000 + number)) == 0
    assert bench.bind_channel(0x4400, PEER) == 508
    assert bench.bind_channel(0x4000, Address(PEER.host, 1000)) == 0
    bench.advance(600)
    assert bench.bind_channel(0x4400, PEER) == 0


def test_12_2_508_when_the_permissions_are_full(bench: ServerBench) -> None:
    bench.allocate()
    bench.permit(*many_peers(1024))
    assert bench.bind_channel(0x4000, PEER) == 508
    assert bench.bind_channel(0x4000, many_peers(1)[0]) == 0


# Data (RFC 8656 sections 11 and 12)


def test_11_2_send_reaches_the_peer(bench: ServerBench) -> None:
    relayed = bench.allocate()
    bench.permit(PEER)
    assert bench.send_indication(PEER, b"up") == [SendToPeer(relayed, PEER, b"up")]
    assert bench.send_indication(SAME_HOST, b"") == [SendToPeer(relayed, SAME_HOST, b"")]


def test_11_2_send_is_dropped_silently(bench: ServerBench) -> None:
    assert bench.send_indication(PEER, b"no allocation") == []
    bench.allocate()
    assert bench.send_indication(PEER, b"no permission") == []
    bench.permit(PEER)
    assert bench.send_indication(OTHER, b"permission for another") == []
    assert bench.send_indication(PEER, b"unknown attribute", DONT_FRAGMENT) == []
    assert bench.send_indication(PEER, b"another client", client=BOB) == []
    values: list[list[Attributes]] = [
        [(AttributeType.DATA, b"no peer")],
        [(AttributeType.XOR_PEER_ADDRESS, build_xor_address(PEER, bytes(12)))],
        [(AttributeType.DATA, b"malformed peer"), (AttributeType.XOR_PEER_ADDRESS, b"\0\x01")],
    ]
    for attributes in values:
        assert bench.send(build_message(Method.SEND, MessageClass.INDICATION, bytes(12), attributes)) == []


def test_11_2_data_is_no_method_of_clients(bench: ServerBench) -> None:
    bench.allocate()
    bench.permit(PEER)
    attributes = [
        (AttributeType.XOR_PEER_ADDRESS, build_xor_address(PEER, bytes(12))),
        (AttributeType.DATA, b"up"),
    ]
    assert bench.send(build_message(Method.DATA, MessageClass.INDICATION, bytes(12), attributes)) == []


def test_11_3_a_peers_datagram_comes_as_data_indication(bench: ServerBench) -> None:
    relayed = bench.allocate()
    bench.permit(PEER)
    (command,) = bench.from_peer(relayed, SAME_HOST, b"down")
    assert isinstance(command, SendToClient)
    assert command.client == ANN
    message = parse_message(command.data)
    assert (message.method, message.message_class) == (Method.DATA, MessageClass.INDICATION)
    assert message.address(AttributeType.XOR_PEER_ADDRESS) == SAME_HOST
    assert message.get(AttributeType.DATA) == b"down"


def test_11_3_a_peers_datagram_without_allocation_is_dropped(bench: ServerBench) -> None:
    assert bench.from_peer(Address("192.0.2.1", 50000), PEER, b"down") == []


@pytest.mark.parametrize(("family", "peer"), [(IPV4, PEER), (IPV6, PEER_V6)], ids=["IPv4", "IPv6"])
def test_11_3_what_no_datagram_to_the_client_can_carry_is_dropped(family: Attributes, peer: Address) -> None:
    """The longest UDP payload is 65507 bytes over IPv4, 65527 over IPv6; a STUN message ends at 65535."""
    bench = ServerBench(BOTH_FAMILIES)
    relayed = bench.allocate(family)
    bench.permit(peer)
    (command,) = bench.from_peer(relayed, peer, bytes(MAX_RELAYED_BYTES))
    assert isinstance(command, SendToClient)
    assert len(command.data) <= 65507
    for size in (MAX_RELAYED_BYTES + 1, 65507, 65527):
        assert bench.from_peer(relayed, peer, bytes(size)) == []
    bench.bind_channel(0x4000, peer)
    assert bench.from_peer(relayed, peer, bytes(65527)) == []


def test_12_6_channel_data_goes_both_ways(bench: ServerBench) -> None:
    relayed = bench.allocate()
    bench.bind_channel(0x4001, PEER)
    assert bench.send_channel_data(0x4001, b"up") == [SendToPeer(relayed, PEER, b"up")]
    assert bench.send_channel_data(0x4001, b"") == [SendToPeer(relayed, PEER, b"")]
    assert bench.from_peer(relayed, PEER, b"down") == [SendToClient(ANN, b"\x40\x01\x00\x04down")]
    (indication,) = bench.from_peer(relayed, SAME_HOST, b"another port")
    assert isinstance(indication, SendToClient)
    assert parse_message(indication.data).get(AttributeType.DATA) == b"another port"


def test_12_5_over_udp_padding_is_optional(bench: ServerBench) -> None:
    relayed = bench.allocate()
    bench.bind_channel(0x4000, PEER)
    assert bench.send(b"\x40\0\0\x01a") == [SendToPeer(relayed, PEER, b"a")]
    assert bench.send(b"\x40\0\0\x01a\0\0\0") == [SendToPeer(relayed, PEER, b"a")]


def test_12_6_channel_data_is_dropped_silently(bench: ServerBench) -> None:
    assert bench.send_channel_data(0x4000, b"no allocation") == []
    bench.allocate()
    assert bench.send_channel_data(0x4000, b"no channel") == []
    bench.bind_channel(0x4000, PEER)
    assert bench.send_channel_data(0x4001, b"another channel") == []
    assert bench.send_channel_data(0x4000, b"another client", client=BOB) == []
    assert bench.send(b"\x40\0\0\x05cut ") == []
    assert bench.send(b"\x40\0\0") == []


# The end


def test_3_1_the_close_of_the_control_connection_deletes_the_allocation(bench: ServerBench) -> None:
    relayed = bench.allocate()
    assert bench.perform(bench.server.on_client_closed(ANN)) == [CloseRelayed(relayed)]
    assert bench.server.allocations == 0
    assert bench.server.on_client_closed(ANN) == []
    assert bench.server.on_client_closed(BOB) == []


@pytest.mark.parametrize("opens", [True, False])
def test_3_1_a_close_while_the_socket_opens(*, opens: bool) -> None:
    """The allocation of a client that is gone never begins, and its place and its ports are free again."""
    bench = ServerBench(ServerSettings(max_allocations_per_user=2), choose=FixedPorts(50000))
    (opening,) = bench.server.receive(bench.now, ANN, bench.request(Method.ALLOCATE, UDP, EVEN_PORT_AND_SIBLING))
    assert isinstance(opening, OpenRelayed)
    assert bench.server.on_client_closed(ANN) == []
    if opens:
        expected = [CloseRelayed(opening.relayed_address)]
        assert bench.server.on_relayed_opened(bench.now, opening.relayed_address) == expected
    else:
        assert bench.server.on_relayed_failed(bench.now, opening.relayed_address) == []
    assert bench.server.allocations == 0
    assert bench.allocate(EVEN_PORT_AND_SIBLING, client=BOB).port == 50000


def test_a_port_is_free_again_with_the_end_of_its_allocation() -> None:
    bench = ServerBench(choose=FixedPorts(50000))
    bench.allocate()
    assert code_of(bench.call(Method.ALLOCATE, UDP, client=BOB)) == 508
    bench.call(Method.REFRESH, lifetime(0))
    assert bench.allocate(client=BOB).port == 50000


def test_an_allocation_leaves_nothing_behind(bench: ServerBench) -> None:
    """The names of time-limited credentials are new each time: a table of all that ever came would grow for ever."""
    bench.allocate()
    bench.permit(PEER)
    bench.advance(600)
    server = bench.server
    assert not any(
        (server._allocations, server._by_relayed, list(server._openings.all()), server._per_user, server._expiries)
    )


def test_deadlines_of_allocations_that_have_ended_do_not_pile_up(bench: ServerBench) -> None:
    for _ in range(1000):
        bench.allocate(lifetime(3600))
        bench.call(Method.REFRESH, lifetime(0))
    assert len(bench.server._expiries) <= MAX_SPARE_DEADLINES
    bench.allocate()
    assert len(bench.advance(600)) == 1


# Properties


@repeatable
@given(st.lists(st.binary(max_size=120), max_size=10))
def test_any_datagrams_leave_the_server_standing(datagrams: list[bytes]) -> None:
    bench = ServerBench()
    for data in datagrams:
        bench.send(data)
    assert bench.server.allocations == 0
    bench.allocate()


KINDS = st.one_of(st.sampled_from(sorted(AttributeType)), st.sampled_from([0x001A, 0x7FFF, 0x8000]))
VALUES = st.one_of(st.binary(max_size=24), st.sampled_from([b"\x11\0\0\0", b"\x40\0\0\0", b"\x80", bytes(8)]))


@repeatable
@given(
    st.sampled_from([Method.ALLOCATE, Method.REFRESH, Method.CREATE_PERMISSION, Method.CHANNEL_BIND]),
    st.lists(st.tuples(KINDS, VALUES), max_size=5),
    st.booleans(),
)
def test_any_attributes_of_an_authentic_request_have_an_answer_or_none(
    method: Method, attributes: list[Attributes], allocated: bool
) -> None:
    """At most one answer, always whole; what is malformed is dropped."""
    bench = ServerBench()
    if allocated:
        bench.allocate()
    nonce = bench.nonce()
    answers = [c for c in bench.send(bench.request(method, *attributes, nonce=nonce)) if isinstance(c, SendToClient)]
    assert len(answers) <= 1
    for answer in answers:
        assert parse_message(answer.data).message_class in {MessageClass.SUCCESS, MessageClass.ERROR}
