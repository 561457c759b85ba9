"""The TURN client and address families (RFC 8656 sections 7.1 and 7.3), and credentials that are not ASCII."""

from __future__ import annotations

import unicodedata

import pytest

from relay.addresses import Address, AddressFamily
from relay.turn.client import TurnClient
from relay.turn.credentials import long_term_key, raw_long_term_key
from relay.turn.events import AllocationCreated, Event, RequestFailed
from relay.wire.stun import (
    AttributeType,
    Message,
    MessageClass,
    build_error_code,
    build_message,
    build_uint32,
    build_xor_address,
    parse_message,
)
from tests.support.benches.turn import ANN, Attributes

V4, V6 = Address("192.0.2.1", 50000), Address("2001:db8::1", 50002)
NOTHING = Address("0.0.0.0", 0)
REQUESTED, ADDITIONAL = AttributeType.REQUESTED_ADDRESS_FAMILY, AttributeType.ADDITIONAL_ADDRESS_FAMILY
DRAFT_ADDITIONAL = 0x8032
IPV4, IPV6 = bytes([1, 0, 0, 0]), bytes([2, 0, 0, 0])
ASKED = {
    None: {},
    AddressFamily.IPV4: {REQUESTED: IPV4},
    AddressFamily.IPV6: {REQUESTED: IPV6},
    AddressFamily.BOTH: {ADDITIONAL: IPV6, DRAFT_ADDITIONAL: IPV6},
}


def request_of(client: TurnClient) -> Message:
    (message,) = client.take_messages()
    return parse_message(message)


def families_in(request: Message) -> dict[int, bytes]:
    return {kind: value for kind, value in request.attributes if kind in {REQUESTED, ADDITIONAL, DRAFT_ADDITIONAL}}


def answer(request: Message, kind: MessageClass, *attributes: Attributes, key: bytes | None = None) -> bytes:
    return build_message(request.method, kind, request.transaction_id, attributes, integrity_key=key)


def refusal(request: Message, code: int, *attributes: Attributes) -> bytes:
    return answer(
        request, MessageClass.ERROR, (AttributeType.ERROR_CODE, build_error_code(code, "because")), *attributes
    )


def granted(request: Message, *relayed: Address, key: bytes | None = None) -> bytes:
    addresses = [(AttributeType.XOR_RELAYED_ADDRESS, build_xor_address(one, request.transaction_id)) for one in relayed]
    mapped = (AttributeType.XOR_MAPPED_ADDRESS, build_xor_address(ANN, request.transaction_id))
    lifetime = (AttributeType.LIFETIME, build_uint32(600))
    return answer(request, MessageClass.SUCCESS, *addresses, mapped, lifetime, key=key)


@pytest.mark.parametrize("family", ASKED)
def test_what_is_asked_for(family: AddressFamily | None) -> None:
    client = TurnClient()
    client.allocate(0.0, family=family)
    assert families_in(request_of(client)) == ASKED[family]


@pytest.mark.parametrize(
    ("given", "relayed", "additional"),
    [
        ([V4], V4, None),
        ([V6], V6, None),
        ([V4, V6], V4, V6),
        ([V6, V4], V4, V6),
        ([V4, NOTHING], V4, None),
        ([NOTHING, V6], V6, None),
    ],
)
def test_what_is_granted(given: list[Address], relayed: Address, additional: Address | None) -> None:
    client = TurnClient()
    client.allocate(0.0, family=AddressFamily.BOTH)
    assert client.receive(0.0, granted(request_of(client), *given)) == [
        AllocationCreated(relayed, ANN, 600, additional)
    ]
    assert (client.relayed_address, client.additional_address) == (relayed, additional)
    client.refresh(1.0, 0)
    released = answer(request_of(client), MessageClass.SUCCESS, (AttributeType.LIFETIME, build_uint32(0)))
    client.receive(1.0, released)
    assert (client.relayed_address, client.additional_address) == (None, None)


@pytest.mark.parametrize("family", [None, AddressFamily.BOTH])
def test_server_without_ipv4_is_asked_for_ipv6_once(family: AddressFamily | None) -> None:
    client = TurnClient()
    client.allocate(0.0, family=family)
    assert client.receive(0.0, refusal(request_of(client), 440)) == []
    again = request_of(client)
    assert families_in(again) == {REQUESTED: IPV6}
    (failed,) = client.receive(0.0, refusal(again, 440))
    assert isinstance(failed, RequestFailed)
    assert failed.code == 440
    assert not client.take_messages()


@pytest.mark.parametrize("family", [AddressFamily.IPV4, AddressFamily.IPV6])
def test_family_that_was_named_is_all_that_is_wanted(family: AddressFamily) -> None:
    client = TurnClient()
    client.allocate(0.0, family=family)
    (failed,) = client.receive(0.0, refusal(request_of(client), 440))
    assert isinstance(failed, RequestFailed)
    assert (failed.code, client.take_messages()) == (440, [])


def test_caller_that_names_the_family_itself() -> None:
    client = TurnClient()
    client.allocate(0.0, ((REQUESTED, IPV4),))
    assert len(client.receive(0.0, refusal(request_of(client), 440))) == 1
    assert not client.take_messages()


# Credentials: DÉBORAH, in composed and in decomposed letters

COMPOSED = unicodedata.normalize("NFC", "d\u00e9borah")
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)
REALM = "firm"


def challenged(username: str, password: str, realm: bytes = REALM.encode()) -> tuple[TurnClient, list[Event]]:
    client = TurnClient(username, password)
    client.allocate(0.0)
    return client, client.receive(0.0, unauthorized(request_of(client), realm))


def unauthorized(request: Message, realm: bytes = REALM.encode()) -> bytes:
    return refusal(request, 401, (AttributeType.REALM, realm), (AttributeType.NONCE, b"nonce"))


@pytest.mark.parametrize(
    ("username", "password", "realm"),
    [(DECOMPOSED, "sesame", REALM), ("ann", DECOMPOSED, REALM), ("ann", "sesame", DECOMPOSED)],
)
def test_prepared_form_then_the_characters_as_given(username: str, password: str, realm: str) -> None:
    client, _ = challenged(username, password, realm.encode())
    first = request_of(client)
    assert first.text(AttributeType.USERNAME) == unicodedata.normalize("NFC", username)
    assert first.get(AttributeType.REALM) == realm.encode()
    assert first.has_integrity(long_term_key(username, realm, password))
    assert client.receive(0.0, unauthorized(first, realm.encode())) == []
    second = request_of(client)
    key = raw_long_term_key(username, realm, password)
    assert second.text(AttributeType.USERNAME) == username
    assert second.has_integrity(key)
    assert not second.has_integrity(long_term_key(username, realm, password))
    (created,) = client.receive(0.0, granted(second, V4, key=key))
    assert isinstance(created, AllocationCreated)
    # From here on it is known which form the server has.
    client.refresh(1.0)
    assert request_of(client).has_integrity(key)


def test_wrong_in_both_forms() -> None:
    client, _ = challenged("ann", DECOMPOSED)
    assert client.receive(0.0, unauthorized(request_of(client))) == []
    (failed,) = client.receive(0.0, unauthorized(request_of(client)))
    assert isinstance(failed, RequestFailed)
    assert (failed.code, client.take_messages()) == (401, [])


@pytest.mark.parametrize("password", ["wrong", COMPOSED])
def test_form_that_makes_no_difference_is_not_tried(password: str) -> None:
    client, _ = challenged("ann", password)
    (failed,) = client.receive(0.0, unauthorized(request_of(client)))
    assert isinstance(failed, RequestFailed)
    assert (failed.code, client.take_messages()) == (401, [])


def test_form_that_was_proven_is_kept() -> None:
    """A password that has changed since is not tried in another form."""
    client, _ = challenged("ann", DECOMPOSED)
    request = request_of(client)
    client.receive(0.0, granted(request, V4, key=long_term_key("ann", REALM, DECOMPOSED)))
    client.refresh(1.0)
    (failed,) = client.receive(1.0, unauthorized(request_of(client)))
    assert isinstance(failed, RequestFailed)
    assert failed.code == 401


def test_requests_under_way_follow_to_the_other_form() -> None:
    client, _ = challenged("ann", DECOMPOSED)
    first = request_of(client)
    client.refresh(0.0)
    second = request_of(client)
    assert client.receive(0.0, unauthorized(first)) == []
    assert client.receive(0.0, unauthorized(second)) == []
    key = raw_long_term_key("ann", REALM, DECOMPOSED)
    assert all(parse_message(message).has_integrity(key) for message in client.take_messages())


CANNOT_BE_SENT = [
    ("ann", "sesame", "Zürich".encode("latin-1"), "the server's REALM is not UTF-8; as Latin-1 it reads 'Zürich'"),
    ("ann\udc80", "sesame", b"firm", "user name or password hold half a surrogate pair"),
    ("ann", "\ud800", b"firm", "user name or password hold half a surrogate pair"),
    ("a" * 509, "sesame", b"firm", "the user name is too long: expected at most 508 bytes"),
]


@pytest.mark.parametrize(("username", "password", "realm", "text"), CANNOT_BE_SENT)
def test_what_cannot_be_sent_says_what_is_wrong(username: str, password: str, realm: bytes, text: str) -> None:
    client, events = challenged(username, password, realm)
    (failed,) = events
    assert isinstance(failed, RequestFailed)
    assert (failed.code, failed.reason, client.take_messages()) == (0, text, [])
    assert client.next_deadline() is None


# Peers

MAPPED, PLAIN = Address("::ffff:8.0.0.2", 4000), Address("8.0.0.2", 4000)


def test_mapped_peer_is_its_ipv4_address() -> None:
    client = TurnClient()
    client.bind_channel(0.0, MAPPED)
    request = request_of(client)
    assert request.address(AttributeType.XOR_PEER_ADDRESS) == PLAIN
    client.receive(0.0, answer(request, MessageClass.SUCCESS))
    assert client.send_data(MAPPED, b"x") == client.send_data(PLAIN, b"x") == b"\x40\x00\x00\x01x"
    client.create_permission(0.0, MAPPED, Address("2001:DB8:0::7", 1))
    found = request_of(client).addresses(AttributeType.XOR_PEER_ADDRESS)
    assert found == [PLAIN, Address("2001:db8::7", 1)]


@pytest.mark.parametrize("peer", [Address("name.test", 1), Address("::1%lo", 1), Address("::1", 65536)])
def test_peers_that_are_not_addresses(peer: Address) -> None:
    client = TurnClient()
    for ask in (
        lambda: client.bind_channel(0.0, peer),
        lambda: client.create_permission(0.0, peer),
        lambda: client.send_data(peer, b"x"),
    ):
        with pytest.raises(ValueError, match=r"expected|appear"):
            ask()
    assert not client.take_messages()
