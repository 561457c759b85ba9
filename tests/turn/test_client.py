"""The TURN client: transcripts against the server of ``relay.turn.server``, and against answers made by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.addresses import Address
from relay.turn.client import MAX_CHALLENGES, MAX_FRESH_NONCES, MAX_PEERS_PER_RENEWAL, MAX_UNDER_WAY, TurnClient
from relay.turn.commands import SendToPeer
from relay.turn.credentials import long_term_key
from relay.turn.events import (
    AllocationCreated,
    AllocationRefreshed,
    BindingDone,
    ChannelBound,
    DataReceived,
    PermissionsCreated,
    RequestFailed,
)
from relay.turn.server import ServerSettings
from relay.turn.transactions import RTO_S
from relay.wire.channeldata import build_channel_data, is_channel_data
from relay.wire.stun import (
    AttributeType,
    Message,
    MessageClass,
    Method,
    build_error_code,
    build_message,
    build_uint32,
    build_xor_address,
    parse_message,
)
from tests.support.benches.turn import (
    ANN,
    PEER,
    Attributes,
    ClientBench,
    ServerBench,
    is_no_allocate_success,
    lifetime,
    new_client,
    numbered_ids,
)
from tests.support.properties import repeatable

OTHER = Address("8.0.0.2", 4000)
RELAYED = Address("192.0.2.1", 50000)
KEY = long_term_key("ann", "cloud9", "sesame")
CHALLENGE: list[Attributes] = [(AttributeType.REALM, b"cloud9"), (AttributeType.NONCE, b"nonce 1")]


@pytest.fixture
def pair() -> ClientBench:
    return ClientBench(new_client())


def methods(messages: list[bytes]) -> list[int]:
    return [parse_message(message).method for message in messages]


def request_of(client: TurnClient) -> Message:
    """The one request that waits to be sent."""
    (message,) = client.take_messages()
    return parse_message(message)


def success(request: Message, *attributes: Attributes, key: bytes | None = KEY) -> bytes:
    return build_message(request.method, MessageClass.SUCCESS, request.transaction_id, attributes, integrity_key=key)


def error(request: Message, code: int, *attributes: Attributes, key: bytes | None = None) -> bytes:
    values = [(AttributeType.ERROR_CODE, build_error_code(code, "because")), *attributes]
    return build_message(request.method, MessageClass.ERROR, request.transaction_id, values, integrity_key=key)


def allocated_attributes(request: Message, seconds: int = 600) -> list[Attributes]:
    return [
        (AttributeType.XOR_RELAYED_ADDRESS, build_xor_address(RELAYED, request.transaction_id)),
        (AttributeType.XOR_MAPPED_ADDRESS, build_xor_address(ANN, request.transaction_id)),
        lifetime(seconds),
    ]


def challenged_client(*, reliable: bool = False) -> tuple[TurnClient, Message]:
    """A client that has taken a challenge, and its authentic Allocate request."""
    client = new_client(reliable=reliable)
    client.allocate(0.0)
    assert client.receive(0.0, error(request_of(client), 401, *CHALLENGE)) == []
    return client, request_of(client)


def allocated_client(*, reliable: bool = False) -> TurnClient:
    client, request = challenged_client(reliable=reliable)
    (created,) = client.receive(0.0, success(request, *allocated_attributes(request)))
    assert created == AllocationCreated(RELAYED, ANN, 600)
    return client


# With the server


def test_rfc8489_2_binding(pair: ClientBench) -> None:
    pair.client.bind(pair.now)
    assert pair.settle() == [BindingDone(ANN)]
    (request,) = pair.sent
    assert len(request) == 20


def test_7_1_allocate_is_challenged_once(pair: ClientBench) -> None:
    pair.client.allocate(pair.now)
    (created,) = pair.settle()
    first, second = (parse_message(message) for message in pair.sent)
    assert first.integrity_offsets == {}
    assert first.get(AttributeType.USERNAME) is None
    assert second.text(AttributeType.USERNAME) == "ann"
    assert second.text(AttributeType.REALM) == "cloud9"
    assert first.transaction_id != second.transaction_id
    assert second.get(AttributeType.REQUESTED_TRANSPORT) == b"\x11\0\0\0"
    assert isinstance(created, AllocationCreated)
    assert (created.mapped_address, created.lifetime_s) == (ANN, 600)
    assert created.relayed_address == pair.client.relayed_address
    assert pair.bench.open_relayed == {created.relayed_address}
    assert pair.client.mapped_address == ANN


def test_9_2_5_later_requests_use_what_the_challenge_said(pair: ClientBench) -> None:
    pair.allocated()
    pair.client.create_permission(pair.now, PEER, OTHER)
    assert pair.settle() == [PermissionsCreated((PEER, OTHER))]
    assert len(pair.sent) == 3


def test_10_and_11_data_by_indications(pair: ClientBench) -> None:
    relayed = pair.allocated()
    pair.client.create_permission(pair.now, PEER)
    pair.settle()
    assert pair.data_to(PEER, b"up") == [SendToPeer(relayed, PEER, b"up")]
    assert pair.data_from(PEER, b"down") == [DataReceived(PEER, b"down")]
    assert pair.data_to(OTHER, b"no permission") == []


def test_12_data_by_channels(pair: ClientBench) -> None:
    relayed = pair.allocated()
    pair.client.bind_channel(pair.now, PEER)
    pair.client.bind_channel(pair.now, OTHER)
    assert pair.settle() == [ChannelBound(PEER, 0x4000), ChannelBound(OTHER, 0x4001)]
    assert pair.client.send_data(OTHER, b"up") == b"\x40\x01\x00\x02up"
    assert pair.data_to(PEER, b"up") == [SendToPeer(relayed, PEER, b"up")]
    assert pair.data_from(PEER, b"down") == [DataReceived(PEER, b"down")]


def test_12_until_the_channel_is_bound_data_goes_by_indications(pair: ClientBench) -> None:
    pair.allocated()
    pair.client.bind_channel(pair.now, PEER)
    assert not is_channel_data(pair.client.send_data(PEER, b"up"))
    pair.settle()
    assert is_channel_data(pair.client.send_data(PEER, b"up"))


def test_12_1_a_channel_may_be_chosen(pair: ClientBench) -> None:
    pair.allocated()
    pair.client.bind_channel(pair.now, PEER, 0x4123)
    assert pair.settle() == [ChannelBound(PEER, 0x4123)]
    pair.client.bind_channel(pair.now, PEER)
    assert pair.settle() == [ChannelBound(PEER, 0x4123)]


def test_12_1_what_is_under_way_is_asked_again_over_another_connection() -> None:
    client, other = allocated_client(reliable=True), PEER
    client.bind_channel(0.0, other, 0x4001)
    lost = request_of(client)
    assert not client.is_bound(other)
    client.start_again(1.0)
    again = request_of(client)
    assert again.transaction_id != lost.transaction_id
    assert (again.method, again.get(AttributeType.CHANNEL_NUMBER)) == (Method.CHANNEL_BIND, b"\x40\x01\0\0")
    assert client.receive(1.0, success(lost)) == []
    assert client.receive(1.0, success(again)) == [ChannelBound(other, 0x4001)]
    assert client.is_bound(other)
    client.start_again(2.0)
    assert client.take_messages() == []


def test_8_1_release(pair: ClientBench) -> None:
    """Nothing is renewed after it, and what was bound is forgotten."""
    pair.allocated()
    pair.client.bind_channel(pair.now, PEER)
    pair.settle()
    pair.client.refresh(pair.now, 0)
    assert pair.settle() == [AllocationRefreshed(0)]
    assert pair.bench.server.allocations == 0
    assert (pair.client.relayed_address, pair.client.next_deadline()) == (None, None)
    assert not is_channel_data(pair.client.send_data(PEER, b"up"))
    assert pair.client.receive(pair.now, build_channel_data(0x4000, b"down")) == []


def test_8_1_after_a_release_all_may_begin_again(pair: ClientBench) -> None:
    first = pair.allocated()
    pair.client.bind_channel(pair.now, PEER)
    pair.client.create_permission(pair.now, Address("8.0.0.3", 0))
    pair.settle()
    pair.client.refresh(pair.now, 0)
    pair.settle()
    second = pair.allocated()
    assert second != first
    pair.client.bind_channel(pair.now, OTHER)
    assert pair.settle() == [ChannelBound(OTHER, 0x4000)]
    assert pair.data_to(OTHER, b"up") == [SendToPeer(second, OTHER, b"up")]
    assert pair.advance(240) == [ChannelBound(OTHER, 0x4000)]


def test_8_1_a_release_ends_what_an_unanswered_allocate_has_made(pair: ClientBench) -> None:
    pair.passes = is_no_allocate_success
    pair.client.allocate(pair.now)
    assert pair.settle() == []
    assert pair.bench.server.allocations == 1
    pair.client.release(pair.now)
    assert pair.settle() == [AllocationRefreshed(0)]
    assert pair.bench.server.allocations == 0
    assert pair.advance(60) == []
    assert pair.client.next_deadline() is None


def test_8_1_a_release_needs_no_packet_before_the_server_could_allocate() -> None:
    client = new_client()
    client.allocate(0.0)
    unauthenticated = request_of(client)
    client.release(0.1)
    assert (client.take_messages(), client.next_deadline()) == ([], None)
    assert client.receive(0.2, error(unauthenticated, 401, *CHALLENGE)) == []
    assert client.take_messages() == []


def test_8_1_a_release_waits_for_no_other_request(pair: ClientBench) -> None:
    pair.allocated()
    for peer in many_peers(2 * MAX_UNDER_WAY):
        pair.client.bind_channel(pair.now, peer)
    pair.client.refresh(pair.now)
    pair.client.take_messages()
    pair.client.release(pair.now)
    (message,) = pair.client.take_messages()
    assert parse_message(message).uint32(AttributeType.LIFETIME) == 0
    assert pair.advance(RTO_S) == [AllocationRefreshed(0)]
    assert (pair.bench.server.allocations, pair.client.next_deadline()) == (0, None)


def test_an_hour_of_a_call(pair: ClientBench) -> None:
    """Allocation, permissions and channels are kept alive; data flows each minute, both ways, by both means."""
    relayed = pair.allocated()
    pair.client.bind_channel(pair.now, PEER)
    pair.client.create_permission(pair.now, OTHER)
    pair.settle()
    events = []
    for minute in range(60):
        events += pair.advance(60)
        data = b"%d" % minute
        for peer in (PEER, OTHER):
            assert pair.data_to(peer, data) == [SendToPeer(relayed, peer, data)], minute
            assert pair.data_from(peer, data) == [DataReceived(peer, data)], minute
    assert pair.bench.server.allocations == 1
    assert pair.bench.open_relayed == {relayed}
    assert events.count(AllocationRefreshed(600)) == 6
    assert events.count(ChannelBound(PEER, 0x4000)) == 15
    assert events.count(PermissionsCreated((OTHER,))) == 15
    assert len(events) == 6 + 15 + 15


def test_an_hour_without_the_timer_ends_after_ten_minutes(pair: ClientBench) -> None:
    """The counterpart of the hour above: without renewals nothing would be left."""
    relayed = pair.allocated()
    pair.client.bind_channel(pair.now, PEER)
    pair.settle()
    pair.bench.advance(299)
    assert pair.data_to(PEER, b"up") == [SendToPeer(relayed, PEER, b"up")]
    pair.bench.advance(1)
    assert pair.data_to(PEER, b"up") == []
    pair.bench.advance(300)
    assert pair.bench.server.allocations == 0


def test_9_2_5_438_mid_life_is_answered_with_the_fresh_nonce(pair: ClientBench) -> None:
    """Nonces live 600 s: at 1080 s the second refresh is told so, and goes again."""
    pair.allocated()
    pair.advance(1079)
    pair.sent.clear()
    assert pair.advance(1) == [AllocationRefreshed(600)]
    stale, fresh = (parse_message(message) for message in pair.sent)
    assert stale.method == fresh.method == Method.REFRESH
    assert stale.get(AttributeType.NONCE) != fresh.get(AttributeType.NONCE)
    pair.sent.clear()
    pair.client.refresh(pair.now)
    assert pair.settle() == [AllocationRefreshed(600)]
    assert len(pair.sent) == 1


def test_9_2_5_several_438_at_once(pair: ClientBench) -> None:
    pair.allocated()
    pair.bench.advance(601 - 540)
    for number in range(3):
        pair.client.bind_channel(pair.now, Address(PEER.host, 4000 + number))
    pair.settle()
    pair.client.refresh(pair.now, 3600)
    pair.settle()
    pair.bench.advance(700)
    for number in range(3):
        pair.client.bind_channel(pair.now, Address(PEER.host, 4000 + number))
    assert pair.settle() == [ChannelBound(Address(PEER.host, 4000 + number), 0x4000 + number) for number in range(3)]


@pytest.mark.parametrize(("username", "password"), [("ann", "wrong"), ("eve", "sesame")])
def test_9_2_5_wrong_credentials_fail_after_one_more_try(username: str, password: str) -> None:
    pair = ClientBench(new_client(username, password))
    pair.client.allocate(pair.now)
    assert pair.settle() == [RequestFailed(Method.ALLOCATE, 401, "")]
    assert len(pair.sent) == 2
    assert pair.client.next_deadline() is None
    assert pair.client.relayed_address is None


def test_9_2_5_without_a_user_name_a_challenge_is_the_end() -> None:
    pair = ClientBench(TurnClient(new_transaction_id=numbered_ids()))
    pair.client.allocate(pair.now)
    assert pair.settle() == [RequestFailed(Method.ALLOCATE, 401, "")]
    assert len(pair.sent) == 1


def test_a_refusal_names_its_method_code_reason_and_peers(pair: ClientBench) -> None:
    pair.allocated()
    forbidden = Address("127.0.0.1", 80)
    pair.client.create_permission(pair.now, forbidden)
    pair.client.bind_channel(pair.now, PEER, 0x5000)
    pair.client.allocate(pair.now)
    assert pair.settle() == [
        RequestFailed(Method.CREATE_PERMISSION, 403, "this peer address is not relayed to", (forbidden,)),
        RequestFailed(Method.CHANNEL_BIND, 400, "channel numbers are 0x4000 to 0x4FFF", (PEER,)),
        RequestFailed(Method.ALLOCATE, 437, "this 5-tuple has an allocation"),
    ]


def test_8_1_437_to_a_refresh_says_that_the_allocation_is_gone(pair: ClientBench) -> None:
    pair.allocated()
    pair.client.bind_channel(pair.now, PEER)
    pair.settle()
    pair.bench.perform(pair.bench.server.on_client_closed(ANN))
    assert pair.advance(240) == [RequestFailed(Method.CHANNEL_BIND, 437, "no allocation", (PEER,))]
    pair.client.refresh(pair.now)
    assert pair.settle() == [RequestFailed(Method.REFRESH, 437, "no allocation")]
    assert pair.client.next_deadline() is None
    assert pair.client.relayed_address is None


def test_7_1_attributes_may_be_added_to_allocate() -> None:
    pair = ClientBench(new_client(), ServerBench(ServerSettings(relayed_hosts=("2001:db8::1",))))
    pair.client.allocate(pair.now, ((AttributeType.REQUESTED_ADDRESS_FAMILY, b"\x02\0\0\0"),))
    (created,) = pair.settle()
    assert isinstance(created, AllocationCreated)
    assert created.relayed_address.host == "2001:db8::1"


def test_3_2_the_lifetime_is_the_clients_wish_and_refreshed_a_minute_before_its_end() -> None:
    client = TurnClient("ann", "sesame", lifetime_s=3600, new_transaction_id=numbered_ids())
    pair = ClientBench(client)
    pair.allocated()
    assert pair.advance(3539) == []
    assert pair.advance(1) == [AllocationRefreshed(3600)]


# Many peers


def many_peers(count: int) -> list[Address]:
    return [Address(f"8.1.{number >> 8}.{number & 255}", 80) for number in range(count)]


def test_rfc8489_6_2_at_most_ten_requests_are_under_way(pair: ClientBench) -> None:
    pair.allocated()
    for peer in many_peers(25):
        pair.client.bind_channel(pair.now, peer)
    first = pair.client.take_messages()
    assert len(first) == MAX_UNDER_WAY == 10
    for message in first[:4]:
        pair.deliver(pair.bench.send(message))
    assert len(pair.client.take_messages()) == 4
    assert [type(event) for event in pair.events[1:]] == [ChannelBound] * 4


def test_a_refresh_does_not_wait_behind_the_peers(pair: ClientBench) -> None:
    pair.allocated()
    for peer in many_peers(25):
        pair.client.bind_channel(pair.now, peer)
    pair.client.refresh(pair.now)
    (first, *_) = pair.client.take_messages()
    pair.deliver(pair.bench.send(first))
    assert methods(pair.client.take_messages()) == [Method.REFRESH]


def test_channels_that_wait_have_their_numbers_already(pair: ClientBench) -> None:
    pair.allocated()
    for peer in many_peers(25):
        pair.client.bind_channel(pair.now, peer)
    events = pair.settle()
    assert events == [ChannelBound(peer, 0x4000 + number) for number, peer in enumerate(many_peers(25))]


def test_a_hoot_of_hundreds_of_peers_lives_on(pair: ClientBench) -> None:
    """100 channels and 300 plain permissions; each request fits into one frame, and each is repeated if it is lost."""
    relayed = pair.allocated()
    bound, plain = many_peers(400)[:100], many_peers(400)[100:]
    for peer in bound:
        pair.client.bind_channel(pair.now, peer)
    for first in range(0, 300, 30):
        pair.client.create_permission(pair.now, *plain[first : first + 30])
    pair.settle()
    pair.sent.clear()
    events = pair.advance(900)
    assert not [event for event in events if isinstance(event, RequestFailed)]
    assert max(len(message) for message in pair.sent) <= 1500
    for peer in (*bound, *plain):
        assert pair.data_to(peer, b"up") == [SendToPeer(relayed, peer, b"up")]
    renewed = [event.peers for event in events if isinstance(event, PermissionsCreated)]
    assert max(len(peers) for peers in renewed) == MAX_PEERS_PER_RENEWAL


def test_a_hoot_survives_the_loss_of_every_first_copy(pair: ClientBench) -> None:
    seen: set[bytes] = set()

    def second_copies(message: bytes) -> bool:
        again = message in seen
        seen.add(message)
        return again or parse_message(message).message_class is not MessageClass.REQUEST

    relayed = pair.allocated()
    peers = many_peers(60)
    for peer in peers:
        pair.client.bind_channel(pair.now, peer)
    pair.settle()
    pair.passes = second_copies
    events = pair.advance(900)
    assert not [event for event in events if isinstance(event, RequestFailed)]
    for peer in peers:
        assert pair.bench.from_peer(relayed, peer, b"down")


def test_renewals_do_not_pile_up_in_front_of_a_dead_server(pair: ClientBench) -> None:
    pair.allocated()
    for peer in many_peers(100):
        pair.client.bind_channel(pair.now, peer)
    pair.settle()
    pair.passes = lambda message: False
    failed = [event for event in pair.advance(1200) if isinstance(event, RequestFailed)]
    # Ten at a time, 39.5 s each: the renewals of 240 and 720 s, and the refresh of 540 s; those of 480 and 960 s are
    # left out.
    assert [event.code for event in failed] == [0] * len(failed)
    assert [event.method for event in failed].count(Method.CHANNEL_BIND) == 200
    assert [event.method for event in failed].count(Method.REFRESH) == 1


# Retransmission


def run(client: TurnClient, until: float) -> list[tuple[float, int]]:
    """Keep every deadline without a server: (when, how many messages)."""
    sent = [(0.0, len(client.take_messages()))]
    while (deadline := client.next_deadline()) is not None and deadline <= until:
        failed = client.on_deadline(deadline)
        sent.append((deadline, len(client.take_messages())))
        if failed:
            assert failed == [RequestFailed(Method.BINDING, 0, "no answer", answered=False)]
            sent.append((deadline, -1))
    return sent


def test_rfc8489_6_2_1_over_udp_seven_sends_in_39_5_s() -> None:
    client = new_client()
    client.bind(0.0)
    sends = [(when, 1) for when in (0.0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5)]
    assert run(client, 1000.0) == [*sends, (39.5, 0), (39.5, -1)]
    assert client.next_deadline() is None


def test_rfc8489_6_2_2_over_a_stream_one_send_and_39_5_s() -> None:
    client = new_client(reliable=True)
    client.bind(0.0)
    assert run(client, 1000.0) == [(0.0, 1), (39.5, 0), (39.5, -1)]
    assert client.next_deadline() is None


def test_rfc8489_6_2_1_a_copy_is_the_same_message() -> None:
    client, request = challenged_client()
    assert client.on_deadline(0.5) == []
    assert client.take_messages() == [request.raw]


def test_rfc8489_6_2_1_a_lost_request_and_a_lost_answer(pair: ClientBench) -> None:
    losses = [True, False, True, True, True]  # Allocate; its copy passes; the 401 is lost; so are the next two.
    pair.passes = lambda message: not (losses and losses.pop(0))
    pair.client.allocate(pair.now)
    assert pair.settle() == []
    (created,) = pair.advance(30)
    assert isinstance(created, AllocationCreated)
    assert losses == []
    assert pair.bench.server.allocations == 1


def test_rfc8489_6_2_1_when_the_success_is_lost_the_copy_has_it(pair: ClientBench) -> None:
    lost: list[bytes] = []

    def passes(message: bytes) -> bool:
        if not lost and parse_message(message).message_class is MessageClass.SUCCESS:
            lost.append(message)
            return False
        return True

    pair.passes = passes
    pair.client.allocate(pair.now)
    assert pair.settle() == []
    (created,) = pair.advance(0.5)
    assert isinstance(created, AllocationCreated)
    assert pair.bench.server.allocations == 1


def test_an_answer_ends_the_copies_and_comes_once() -> None:
    client, request = challenged_client()
    answer = success(request, *allocated_attributes(request))
    assert len(client.receive(0.1, answer)) == 1
    assert client.receive(0.2, answer) == []
    assert client.on_deadline(0.5) == []
    assert client.take_messages() == []


def test_a_request_longer_than_a_frame_is_sent_again_and_answered_or_fails() -> None:
    """A server may ask for a realm and a nonce that fill more than a frame."""
    long_challenge = [(AttributeType.REALM, b"r" * 763), (AttributeType.NONCE, b"n" * 763)]
    for answered in (True, False):
        client = new_client()
        client.allocate(0.0)
        client.receive(0.0, error(request_of(client), 401, *long_challenge))
        request = request_of(client)
        assert len(request.raw) > 1500
        for deadline in (0.5, 1.5, 3.5, 7.5, 15.5, 31.5):
            assert client.next_deadline() == deadline
            assert client.on_deadline(deadline) == []
            assert client.take_messages() == [request.raw]
        assert client.next_deadline() == 39.5
        if answered:
            key = long_term_key("ann", "r" * 763, "sesame")
            assert len(client.receive(32.0, success(request, *allocated_attributes(request), key=key))) == 1
        else:
            assert client.on_deadline(39.5) == [RequestFailed(Method.ALLOCATE, 0, "no answer", answered=False)]


def test_a_dead_server_ends_the_allocation_with_one_event(pair: ClientBench) -> None:
    pair.allocated()
    pair.passes = lambda message: False
    assert pair.advance(3600) == [RequestFailed(Method.REFRESH, 0, "no answer", answered=False)]


# Over a stream


def test_an_hour_over_a_stream_sends_nothing_twice() -> None:
    pair = ClientBench(new_client(reliable=True))
    relayed = pair.allocated()
    pair.client.bind_channel(pair.now, PEER)
    pair.settle()
    pair.advance(3600)
    assert len(pair.sent) == len(set(pair.sent))
    assert pair.data_to(PEER, b"up") == [SendToPeer(relayed, PEER, b"up")]


# Answers made by hand


@pytest.mark.parametrize("key", [None, b"another key"], ids=["none", "wrong"])
def test_9_2_5_an_answer_without_its_integrity_is_as_if_it_had_not_come(key: bytes | None) -> None:
    client, request = challenged_client()
    assert client.receive(0.0, success(request, *allocated_attributes(request), key=key)) == []
    assert client.receive(0.0, error(request, 437, key=key)) == []
    assert client.relayed_address is None
    assert client.next_deadline() == 0.5
    assert len(client.receive(0.1, success(request, *allocated_attributes(request)))) == 1


def test_9_2_5_an_authentic_refusal_counts() -> None:
    client, request = challenged_client()
    assert client.receive(0.0, error(request, 486, key=KEY)) == [RequestFailed(Method.ALLOCATE, 486, "because")]
    assert client.next_deadline() is None


@pytest.mark.parametrize("code", [400, 401])
def test_9_2_5_a_second_401_or_a_400_needs_no_integrity(code: int) -> None:
    client, request = challenged_client()
    assert client.receive(0.0, error(request, code, *CHALLENGE)) == [RequestFailed(Method.ALLOCATE, code, "because")]


def test_9_2_5_a_401_with_another_realm_is_tried_with_it() -> None:
    client, request = challenged_client()
    other = [(AttributeType.REALM, b"elsewhere"), (AttributeType.NONCE, b"nonce 2")]
    assert client.receive(0.0, error(request, 401, *other)) == []
    again = request_of(client)
    assert again.text(AttributeType.REALM) == "elsewhere"
    assert again.has_integrity(long_term_key("ann", "elsewhere", "sesame"))


def test_9_2_5_a_438_without_realm_keeps_the_realm() -> None:
    client, request = challenged_client()
    assert client.receive(0.0, error(request, 438, (AttributeType.NONCE, b"nonce 2"))) == []
    again = request_of(client)
    assert again.text(AttributeType.REALM) == "cloud9"
    assert again.get(AttributeType.NONCE) == b"nonce 2"
    assert again.has_integrity(KEY)


@pytest.mark.parametrize("code", [401, 438])
def test_9_2_5_a_challenge_without_a_nonce_cannot_be_answered(code: int) -> None:
    client = new_client()
    client.allocate(0.0)
    answer = error(request_of(client), code, (AttributeType.REALM, b"cloud9"))
    assert client.receive(0.0, answer) == [RequestFailed(Method.ALLOCATE, code, "because")]


@pytest.mark.parametrize(
    ("changes", "most"),
    [(False, MAX_CHALLENGES + 1), (True, MAX_FRESH_NONCES)],
)
def test_9_2_5_endless_challenges_have_an_end(most: int, *, changes: bool) -> None:
    """The first nonce is always another; a server that goes on with the same one has the usual patience."""
    client = new_client()
    client.allocate(0.0)
    for number in range(most):
        nonce = (AttributeType.NONCE, b"%d" % (number if changes else 0))
        assert client.receive(0.0, error(request_of(client), 438, CHALLENGE[0], nonce)) == []
    answer = error(request_of(client), 438, CHALLENGE[0], (AttributeType.NONCE, b"last" if changes else b"0"))
    assert client.receive(0.0, answer) == [RequestFailed(Method.ALLOCATE, 438, "because")]
    assert client.take_messages() == []


def test_what_answers_nothing_we_asked_is_ignored() -> None:
    client, request = challenged_client()
    attributes = allocated_attributes(request)
    other_id = build_message(Method.ALLOCATE, MessageClass.SUCCESS, b"x" * 12, attributes, integrity_key=KEY)
    other_method = build_message(
        Method.REFRESH, MessageClass.SUCCESS, request.transaction_id, attributes, integrity_key=KEY
    )
    a_request = build_message(
        Method.ALLOCATE, MessageClass.REQUEST, request.transaction_id, attributes, integrity_key=KEY
    )
    for message in (other_id, other_method, a_request, b"", b"\x80rtp", success(request)[:-1]):
        assert client.receive(0.0, message) == []
    assert len(client.receive(0.0, success(request, *attributes))) == 1


def test_a_success_that_lacks_something_is_a_failure() -> None:
    reason = "a success without LIFETIME or XOR-RELAYED-ADDRESS"
    for left in range(3):
        client, request = challenged_client()
        attributes = allocated_attributes(request)
        del attributes[left]
        (event,) = client.receive(0.0, success(request, *attributes))
        if left == 1:  # XOR-MAPPED-ADDRESS is for the curious.
            assert event == AllocationCreated(RELAYED, None, 600)
        else:
            assert event == RequestFailed(Method.ALLOCATE, 0, reason)


def test_a_binding_success_without_a_xored_address_is_an_answer_all_the_same() -> None:
    client = new_client()
    client.bind(0.0)
    assert client.receive(0.0, success(request_of(client), key=None)) == [BindingDone(None)]


def test_an_authentic_success_that_is_malformed_is_a_failure_and_no_silence() -> None:
    client, request = challenged_client()
    malformed = [(AttributeType.XOR_RELAYED_ADDRESS, b"\0\x09\0\0"), lifetime(600)]
    (event,) = client.receive(0.0, success(request, *malformed))
    assert isinstance(event, RequestFailed)
    assert event.reason.startswith("XOR address of 4 bytes")
    assert client.next_deadline() is None


def test_an_error_without_code_is_a_failure() -> None:
    client, request = challenged_client()
    answer = build_message(Method.ALLOCATE, MessageClass.ERROR, request.transaction_id, integrity_key=KEY)
    assert client.receive(0.0, answer) == [RequestFailed(Method.ALLOCATE, 0, "an error without ERROR-CODE")]


def test_data_needs_a_peer_and_data() -> None:
    client = allocated_client()
    peer = (AttributeType.XOR_PEER_ADDRESS, build_xor_address(PEER, bytes(12)))
    data = (AttributeType.DATA, b"down")

    def hears(method: Method, *attributes: Attributes) -> bool:
        return bool(client.receive(0.0, build_message(method, MessageClass.INDICATION, bytes(12), attributes)))

    assert hears(Method.DATA, peer, data)
    assert not hears(Method.DATA, peer)
    assert not hears(Method.DATA, data)
    assert not hears(Method.DATA, (AttributeType.XOR_PEER_ADDRESS, b"\0\x01"), data)
    assert not hears(Method.SEND, peer, data)


def test_channel_data_of_an_unknown_channel_or_cut_off_is_ignored() -> None:
    client = allocated_client()
    client.bind_channel(0.0, PEER)
    client.receive(0.0, success(request_of(client)))
    assert client.receive(0.0, build_channel_data(0x4000, b"down", padded=True)) == [DataReceived(PEER, b"down")]
    assert client.receive(0.0, build_channel_data(0x4001, b"down")) == []
    assert client.receive(0.0, build_channel_data(0x4000, b"down")[:-1]) == []


@pytest.mark.parametrize(("seconds", "refreshed_at"), [(600, 540.0), (120, 60.0), (119, 59.5), (40, 20.0), (1, 0.5)])
def test_3_2_a_short_lifetime_is_refreshed_at_half_time(seconds: int, refreshed_at: float) -> None:
    client, request = challenged_client()
    client.receive(0.0, success(request, *allocated_attributes(request, seconds)))
    assert client.next_deadline() == refreshed_at


def test_messages_are_handed_out_once() -> None:
    client = new_client()
    client.bind(0.0)
    assert len(client.take_messages()) == 1
    assert client.take_messages() == []


# Properties


@repeatable
@given(st.lists(st.binary(max_size=80), max_size=10))
def test_any_garbage_leaves_the_client_as_it_was(messages: list[bytes]) -> None:
    client, request = challenged_client()
    for message in messages:
        assert client.receive(0.0, message) == []
    assert len(client.receive(0.1, success(request, *allocated_attributes(request)))) == 1


KINDS = st.one_of(st.sampled_from(sorted(AttributeType)), st.sampled_from([0x001A, 0x8000]))
VALUES = st.one_of(st.binary(max_size=24), st.just(build_error_code(401)), st.just(build_uint32(0)))


@repeatable
@given(
    st.sampled_from([Method.ALLOCATE, Method.REFRESH, Method.CHANNEL_BIND]),
    st.sampled_from(MessageClass),
    st.lists(st.tuples(KINDS, VALUES), max_size=5),
    st.booleans(),
)
def test_any_answer_is_ignored_or_ends_the_request_with_one_event_or_another_try(
    method: Method, message_class: MessageClass, attributes: list[Attributes], signed: bool
) -> None:
    client = allocated_client()
    if method == Method.ALLOCATE:
        client.allocate(0.0)
    elif method == Method.REFRESH:
        client.refresh(0.0)
    else:
        client.bind_channel(0.0, PEER)
    request = request_of(client)
    answer = build_message(
        method, message_class, request.transaction_id, attributes, integrity_key=KEY if signed else None
    )
    events = client.receive(0.0, answer)
    again = client.take_messages()
    still_waits = any(event.reason == "no answer" for event in later_failures(client))
    assert len(events) + len(again) + (still_waits and not again) == 1


def later_failures(client: TurnClient) -> list[RequestFailed]:
    """What fails in the next 40 seconds if no more answers come."""
    failures: list[RequestFailed] = []
    while (deadline := client.next_deadline()) is not None and deadline <= 40:
        failures += [event for event in client.on_deadline(deadline) if isinstance(event, RequestFailed)]
    return failures


# Try Alternate (RFC 8489 section 10)


@pytest.mark.parametrize(
    ("value", "alternate"),
    [
        ("0001 0d96 c0000207", Address("192.0.2.7", 3478)),
        ("0002 0d96 20010db8000000000000000000000007", Address("2001:db8::7", 3478)),
        # The first byte is not looked at; a mapped address is the one that is mapped.
        ("ff02 0d96 00000000000000000000ffffc0000207", Address("192.0.2.7", 3478)),
        ("0001 0000 c0000207", None),  # no port to connect to
        ("0003 0d96 c0000207", None),
        ("0001 0d96 c00002", None),
        ("", None),
        (None, None),
    ],
)
def test_10_where_a_300_sends_the_client(value: str | None, alternate: Address | None) -> None:
    client = new_client()
    client.allocate(0.0)
    request = parse_message(*client.take_messages())
    attributes = [] if value is None else [(AttributeType.ALTERNATE_SERVER, bytes.fromhex(value))]
    # A name for the certificate at the alternate: over UDP there is no certificate.
    attributes.append((AttributeType.ALTERNATE_DOMAIN, b"turn.example"))
    assert client.receive(0.0, error(request, 300, *attributes)) == [
        RequestFailed(Method.ALLOCATE, 300, "because", alternate=alternate)
    ]


def test_10_a_300_to_an_authenticated_request_needs_integrity() -> None:
    client, request = challenged_client()
    alternate = (AttributeType.ALTERNATE_SERVER, bytes.fromhex("0001 0d96 c0000207"))
    assert client.receive(0.0, error(request, 300, alternate)) == []
    assert client.receive(0.0, error(request, 300, alternate, key=KEY)) == [
        RequestFailed(Method.ALLOCATE, 300, "because", alternate=Address("192.0.2.7", 3478))
    ]
