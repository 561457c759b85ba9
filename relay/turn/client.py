"""The TURN client (RFC 8656), sans I/O: requests in, messages to send and events out.

A transcript::

    client = TurnClient(username, password)
    client.allocate(now)
    for message in client.take_messages(): ...          # send it
    for event in client.receive(now, message): ...      # AllocationCreated(relayed_address=…)

The client answers 401 and 438 itself, sends requests again over UDP, and keeps the allocation, its permissions
and its channels alive for as long as ``on_deadline`` is called. Each message is one whole unit: the owner of a stream
cuts it into units and pads ChannelData.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from relay.addresses import Address, AddressFamily, canonical
from relay.turn.credentials import long_term_key, prepared, raw_long_term_key
from relay.turn.events import (
    AllocationCreated,
    AllocationRefreshed,
    BindingDone,
    ChannelBound,
    DataReceived,
    Event,
    PermissionsCreated,
    RequestFailed,
)
from relay.turn.transactions import MAX_REQUEST_BYTES, RTO_S, Transactions
from relay.wire.channeldata import (
    FIRST_CHANNEL,
    LAST_CHANNEL,
    ChannelDataError,
    build_channel_data,
    is_channel_data,
    parse_channel_data,
)
from relay.wire.stun import (
    TRANSACTION_ID_BYTES,
    AttributeType,
    ErrorCode,
    Message,
    MessageClass,
    Method,
    StunError,
    build_message,
    build_uint32,
    build_xor_address,
    parse_message,
)

# RFC 8489 section 6.2.2: over a reliable transport a request fails after Ti.
RELIABLE_TIMEOUT_S = 39.5
# RFC 8656: permissions live 300 s, channels 600 s. A channel's binding also renews its permission, so both are
# renewed a minute before the permission ends.
RENEW_PEERS_S = 240.0
# The allocation is renewed this long before it ends (RFC 8656 section 3.2 suggests a minute).
REFRESH_MARGIN_S = 60.0
# A request is repeated at most this often for 401 and 438; more means that the credentials are wrong.
MAX_CHALLENGES = 3
# A relay on the way may try one source port after the other, until it finds one where the server does not hold an
# earlier allocation. Servers have a nonce for each port (438 with another nonce). If nine in ten ports are held, one in
# a thousand clients needs more than this.
MAX_FRESH_NONCES = 64
# RFC 8489 section 6.2: a client limits itself to ten outstanding transactions; further requests wait for their turn.
MAX_UNDER_WAY = 10
# Permissions are renewed this many at a time: 768 bytes of IPv6 addresses, so that the request is never fragmented.
MAX_PEERS_PER_RENEWAL = 32
UDP_TRANSPORT = bytes([17, 0, 0, 0])
# RFC 8489 section 14.3: USERNAME has fewer than 509 bytes.
MAX_USERNAME_BYTES = 508
# RFC 8656 section 18.5. coturn has ADDITIONAL-ADDRESS-FAMILY under the number of a draft (seen in 4.6.1). Other servers
# ignore an attribute with that number.
IPV4_FAMILY, IPV6_FAMILY = bytes([1, 0, 0, 0]), bytes([2, 0, 0, 0])
DRAFT_ADDITIONAL_ADDRESS_FAMILY = 0x8032
_FAMILIES: dict[AddressFamily | None, tuple[tuple[int, bytes], ...]] = {
    None: (),
    AddressFamily.IPV4: ((AttributeType.REQUESTED_ADDRESS_FAMILY, IPV4_FAMILY),),
    AddressFamily.IPV6: ((AttributeType.REQUESTED_ADDRESS_FAMILY, IPV6_FAMILY),),
    AddressFamily.BOTH: (
        (AttributeType.ADDITIONAL_ADDRESS_FAMILY, IPV6_FAMILY),
        (DRAFT_ADDITIONAL_ADDRESS_FAMILY, IPV6_FAMILY),
    ),
}


@dataclass(slots=True)
class _Request:
    method: Method
    attributes: Callable[[bytes], list[tuple[int, bytes]]]
    peers: tuple[Address, ...] = ()
    channel_number: int = 0
    # What is asked for instead if the server has no address of the family (440).
    instead: Callable[[bytes], list[tuple[int, bytes]]] | None = None
    # When it has failed; None while the transactions say so, which also send it again.
    expires: float | None = None
    # An error without MESSAGE-INTEGRITY, such as one from a relay on the way, which has no key.
    unproven: ErrorCode | None = None
    challenges: int = 0
    fresh_nonces: int = 0
    key: bytes | None = field(default=None, repr=False)


class TurnClient:
    """One 5-tuple towards one server. Without a user name requests go unauthenticated."""

    def __init__(
        self,
        username: str = "",
        password: str = "",
        *,
        reliable: bool = False,
        lifetime_s: int = 600,
        rto_s: float = RTO_S,
        new_transaction_id: Callable[[], bytes] = lambda: secrets.token_bytes(TRANSACTION_ID_BYTES),
    ) -> None:
        self.username = username
        self.relayed_address: Address | None = None
        # The IPv6 one, if both families were asked for and granted.
        self.additional_address: Address | None = None
        self.mapped_address: Address | None = None
        self._password = password
        self._reliable = reliable
        self._lifetime_s = lifetime_s
        self._new_transaction_id = new_transaction_id
        self._realm = ""
        self._nonce = b""
        self._key: bytes | None = None
        # RFC 8489 section 9.2.2 prepares user name and password (Unicode form C), but many servers do not. What is
        # refused in one form is tried in the other, until the server has shown that it has the key.
        self._is_raw = False
        self._is_proven = False
        self._requests: dict[bytes, _Request] = {}
        self._waiting: deque[_Request] = deque()
        # There is room for all requests: each must come to an end.
        self._transactions = Transactions(rto_s, MAX_UNDER_WAY * MAX_REQUEST_BYTES)
        self._outgoing: list[bytes] = []
        self._channels: dict[Address, int] = {}
        self._channel_peers: dict[int, Address] = {}
        self._permitted: set[Address] = set()
        self._refresh_at: float | None = None
        self._renew_peers_at: float | None = None

    @property
    def password(self) -> str:
        """The password, for code that goes on with the allocation in another way."""
        return self._password

    def is_bound(self, peer: Address) -> bool:
        """Whether the server has bound a channel to the peer."""
        return peer in self._channels

    def unproven_refusal(self, method: Method, peers: tuple[Address, ...] = ()) -> ErrorCode | None:
        """An error for a request under way, from a sender that has not proved to be the server.

        RFC 8489 section 9.2.5 says to ignore it, because it may be forged. When nothing else comes, or the connection
        ends, it is the best explanation there is.
        """
        under_way = (one for one in self._requests.values() if (one.method, one.peers) == (method, peers))
        return next((one.unproven for one in under_way if one.unproven is not None), None)

    def start_again(self, now: float) -> None:
        """Send all requests under way once more: the connection that carried them is gone."""
        requests = list(self._requests.values())
        self._requests.clear()
        for request in requests:
            self._send(now, request)

    # Requests

    def bind(self, now: float) -> None:
        """Ask for our own address (Binding, RFC 8489 section 2). Never authenticated."""
        self._start(now, _Request(Method.BINDING, lambda _: []))

    def allocate(
        self, now: float, attributes: tuple[tuple[int, bytes], ...] = (), family: AddressFamily | None = None
    ) -> None:
        """Ask for a relayed address (RFC 8656 section 7.1); ``attributes`` are added to those required.

        Without a ``family`` it is IPv4, and IPv6 of a server that has nothing else. BOTH may be granted in part.
        """
        required = [
            (AttributeType.REQUESTED_TRANSPORT, UDP_TRANSPORT),
            (AttributeType.LIFETIME, build_uint32(self._lifetime_s)),
        ]
        request = _Request(Method.ALLOCATE, lambda _: [*required, *_FAMILIES[family], *attributes])
        says_itself = any(kind == AttributeType.REQUESTED_ADDRESS_FAMILY for kind, _ in attributes)
        if family in {None, AddressFamily.BOTH} and not says_itself:
            request.instead = lambda _: [*required, *_FAMILIES[AddressFamily.IPV6], *attributes]
        self._start(now, request)

    def refresh(self, now: float, lifetime_s: int | None = None) -> None:
        """Renew the allocation, all its addresses, or release it with 0 s (RFC 8656 section 8.1)."""
        wanted = build_uint32(self._lifetime_s if lifetime_s is None else lifetime_s)
        self._start(now, _Request(Method.REFRESH, lambda _: [(AttributeType.LIFETIME, wanted)]))

    @property
    def may_have_allocation(self) -> bool:
        """True if the server may have an allocation of ours, which it would keep for its whole lifetime.

        An authentic Allocate whose answer has not come counts too: it may have been granted, or may be so soon.
        """
        under_way = self._requests.values()
        unanswered = any(one.method == Method.ALLOCATE and one.key is not None for one in under_way)
        return unanswered or self.relayed_address is not None

    def release(self, now: float) -> None:
        """Release what we may have at the server, and forget all that is under way: the end of this client."""
        may_have_allocation = self.may_have_allocation
        for transaction_id in self._requests:
            self._transactions.on_response(transaction_id)
        self._requests.clear()
        self._waiting.clear()
        self._refresh_at = self._renew_peers_at = None
        if may_have_allocation:
            self.refresh(now, 0)

    def create_permission(self, now: float, *peers: Address) -> None:
        """Let these peers send to us (RFC 8656 section 10.1). Raises ValueError for a peer that is not literal."""
        peers = tuple(map(canonical, peers))

        def attributes(transaction_id: bytes) -> list[tuple[int, bytes]]:
            return [(AttributeType.XOR_PEER_ADDRESS, build_xor_address(peer, transaction_id)) for peer in peers]

        self._start(now, _Request(Method.CREATE_PERMISSION, attributes, peers))

    def bind_channel(self, now: float, peer: Address, channel_number: int | None = None) -> None:
        """Bind a channel to the peer, the next free one by default (RFC 8656 section 12.1).

        Raises ValueError for a peer that is not a literal address.
        """
        peer = canonical(peer)
        number = channel_number or self._channels.get(peer) or self._free_channel()

        def attributes(transaction_id: bytes) -> list[tuple[int, bytes]]:
            return [
                (AttributeType.CHANNEL_NUMBER, number.to_bytes(2) + bytes(2)),
                (AttributeType.XOR_PEER_ADDRESS, build_xor_address(peer, transaction_id)),
            ]

        self._start(now, _Request(Method.CHANNEL_BIND, attributes, (peer,), number))

    def _free_channel(self) -> int:
        requests = (*self._requests.values(), *self._waiting)
        taken = {request.channel_number for request in requests} | self._channel_peers.keys()
        return next(number for number in range(FIRST_CHANNEL, LAST_CHANNEL + 1) if number not in taken)

    def send_data(self, peer: Address, data: bytes) -> bytes:
        """The message that carries a datagram to the peer: ChannelData if bound, else a Send indication.

        Raises ValueError for a peer that is not a literal address. ``data`` has at most 65,471 bytes.
        """
        number = self._channels.get(peer)
        if number is None:
            peer = canonical(peer)
            number = self._channels.get(peer)
        if number is not None:
            return build_channel_data(number, data)
        transaction_id = self._new_transaction_id()
        attributes = [
            (AttributeType.XOR_PEER_ADDRESS, build_xor_address(peer, transaction_id)),
            (AttributeType.DATA, data),
        ]
        return build_message(Method.SEND, MessageClass.INDICATION, transaction_id, attributes)

    def take_messages(self) -> list[bytes]:
        """The messages that wait to be sent; they are handed out once."""
        messages, self._outgoing = self._outgoing, []
        return messages

    # Time

    def next_deadline(self) -> float | None:
        """When on_deadline wants to be called, or None."""
        deadlines = [self._refresh_at, self._renew_peers_at, self._transactions.next_deadline()]
        deadlines.extend(request.expires for request in self._requests.values())
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def on_deadline(self, now: float) -> list[Event]:
        """Send again, renew, give up: whatever is due."""
        again, ended = self._transactions.on_deadline(now)
        self._outgoing.extend(again)
        for transaction_id, request in self._requests.items():
            if request.expires is not None and request.expires <= now:
                ended.append(transaction_id)
        given_up = [self._requests.pop(key) for key in ended]
        if self._refresh_at is not None and self._refresh_at <= now:
            self._refresh_at = None
            self.refresh(now)
        if self._renew_peers_at is not None and self._renew_peers_at <= now:
            self._renew_peers_at = now + RENEW_PEERS_S
            self._renew_peers(now)
        self._start_waiting(now)
        return [RequestFailed(request.method, 0, "no answer", request.peers, answered=False) for request in given_up]

    def _renew_peers(self, now: float) -> None:
        if self._waiting:
            return  # The server has not kept up with the last renewal; a second one would only wait for the first.
        for peer, number in self._channels.items():
            self.bind_channel(now, peer, number)
        plain = sorted(self._permitted - self._channels.keys())
        for first in range(0, len(plain), MAX_PEERS_PER_RENEWAL):
            self.create_permission(now, *plain[first : first + MAX_PEERS_PER_RENEWAL])

    # Transmission

    def _start(self, now: float, request: _Request) -> None:
        if len(self._requests) < MAX_UNDER_WAY:
            self._send(now, request)
        elif request.method == Method.REFRESH:
            self._waiting.appendleft(request)  # Everything else depends on the allocation.
        else:
            self._waiting.append(request)

    def _start_waiting(self, now: float) -> None:
        while self._waiting and len(self._requests) < MAX_UNDER_WAY:
            self._send(now, self._waiting.popleft())

    def _send(self, now: float, request: _Request) -> None:
        transaction_id = self._new_transaction_id()
        attributes = request.attributes(transaction_id)
        request.key = None if request.method == Method.BINDING else self._key
        if request.key is not None:
            attributes += [
                (AttributeType.USERNAME, self._username().encode()),
                (AttributeType.REALM, self._realm.encode()),
                (AttributeType.NONCE, self._nonce),
            ]
        message = build_message(
            request.method, MessageClass.REQUEST, transaction_id, attributes, integrity_key=request.key
        )
        self._requests[transaction_id] = request
        if not self._reliable:
            self._transactions.on_request(now, transaction_id, message)
        # What is too long to be sent again over UDP fails as late as over a reliable transport.
        sent_again = self._transactions.request(transaction_id) is not None
        request.expires = None if sent_again else now + RELIABLE_TIMEOUT_S
        self._outgoing.append(message)

    # Reception

    def receive(self, now: float, message: bytes) -> list[Event]:
        """Take one whole message from the server. Messages that are not for us, or not authentic, are ignored."""
        if is_channel_data(message):
            return self._on_channel_data(message)
        try:
            parsed = parse_message(message)
            if parsed.message_class is MessageClass.INDICATION:
                return self._on_indication(parsed)
            events = self._on_response(now, parsed)
        except StunError:
            return []
        self._start_waiting(now)
        return events

    def _on_channel_data(self, message: bytes) -> list[Event]:
        try:
            channel_data = parse_channel_data(message)
        except ChannelDataError:
            return []
        peer = self._channel_peers.get(channel_data.channel_number)
        return [] if peer is None else [DataReceived(peer, channel_data.data)]

    def _on_indication(self, message: Message) -> list[Event]:
        peer = message.address(AttributeType.XOR_PEER_ADDRESS)
        data = message.get(AttributeType.DATA)
        if message.method != Method.DATA or peer is None or data is None:
            return []
        return [DataReceived(peer, data)]

    def _on_response(self, now: float, message: Message) -> list[Event]:
        request = self._requests.get(message.transaction_id)
        if message.message_class is MessageClass.REQUEST or request is None or request.method != message.method:
            return []
        error = message.error if message.message_class is MessageClass.ERROR else None
        challenged = error is not None and error.code in {400, 401, 438}
        # RFC 8489 section 9.2.5: an answer that should carry integrity, and does not, is ignored.
        if request.key is not None and not challenged and not message.has_integrity(request.key):
            request.unproven = error or request.unproven
            return []
        self._is_proven |= request.key is not None and not challenged
        del self._requests[message.transaction_id]
        self._transactions.on_response(message.transaction_id)
        try:
            return self._on_answer(now, request, message, error)
        except StunError as malformed:
            return [RequestFailed(request.method, 0, str(malformed), request.peers)]

    def _on_answer(self, now: float, request: _Request, message: Message, error: ErrorCode | None) -> list[Event]:
        if message.message_class is MessageClass.SUCCESS:
            return self._on_success(now, request, message)
        if error is None:
            return [RequestFailed(request.method, 0, "an error without ERROR-CODE", request.peers)]
        if error.code in {401, 438} and self._take_challenge(request, message):
            self._send(now, request)
            return []
        if error.code == 440 and request.instead is not None:
            request.attributes, request.instead = request.instead, None
            self._send(now, request)
            return []
        if request.method == Method.REFRESH and error.code == 437:
            self._forget_allocation()
        alternate = message.alternate_server if error.code == 300 else None
        return [RequestFailed(request.method, error.code, error.reason, request.peers, alternate=alternate)]

    def _take_challenge(self, request: _Request, message: Message) -> bool:
        """Take realm and nonce of a 401 or 438. Returns False if trying again cannot help (section 9.2.5).

        Raises StunError if realm, user name or password cannot be sent.
        """
        realm = _realm(message) or self._realm
        nonce = message.get(AttributeType.NONCE)
        if message.error is not None and message.error.code == 438 and nonce != self._nonce:
            request.fresh_nonces += 1
        else:
            request.challenges += 1
        # Another request may have gone on to another key meanwhile.
        refused = request.key == self._key is not None and message.error is not None and message.error.code == 401
        if not self.username or nonce is None:
            return False
        if request.challenges > MAX_CHALLENGES or request.fresh_nonces > MAX_FRESH_NONCES:
            return False
        if realm != self._realm:
            self._is_raw = self._is_proven = False
        elif refused and not self._takes_other_form():
            return False
        self._realm = realm
        self._nonce = nonce
        self._key = self._make_key()
        return True

    def _takes_other_form(self) -> bool:
        """Go on with the characters as they were given. Returns False if they are the same, or have been tried."""
        text = f"{self.username}:{self._realm}:{self._password}"
        if self._is_raw or self._is_proven or prepared(text) == text:
            return False
        self._is_raw = True
        return True

    def _username(self) -> str:
        return self.username if self._is_raw else prepared(self.username)

    def _make_key(self) -> bytes:
        make = raw_long_term_key if self._is_raw else long_term_key
        try:
            if len(self._username().encode()) > MAX_USERNAME_BYTES:
                raise StunError(f"the user name is too long: expected at most {MAX_USERNAME_BYTES} bytes")
            return make(self.username, self._realm, self._password)
        except UnicodeEncodeError:
            raise StunError("user name or password hold half a surrogate pair") from None

    def _on_success(self, now: float, request: _Request, message: Message) -> list[Event]:
        if request.method == Method.BINDING:
            return [BindingDone(message.address(AttributeType.XOR_MAPPED_ADDRESS))]
        if request.method in {Method.ALLOCATE, Method.REFRESH}:
            return self._on_lifetime(now, request.method, message)
        self._permitted.update(request.peers)
        if self._renew_peers_at is None:
            self._renew_peers_at = now + RENEW_PEERS_S
        if request.method == Method.CREATE_PERMISSION:
            return [PermissionsCreated(request.peers)]
        (peer,) = request.peers
        self._channels[peer] = request.channel_number
        self._channel_peers[request.channel_number] = peer
        return [ChannelBound(peer, request.channel_number)]

    def _on_lifetime(self, now: float, method: Method, message: Message) -> list[Event]:
        lifetime_s = message.uint32(AttributeType.LIFETIME)
        relayed, additional = _relayed(message)
        if lifetime_s is None or (method == Method.ALLOCATE and relayed is None):
            return [RequestFailed(method, 0, "a success without LIFETIME or XOR-RELAYED-ADDRESS")]
        if lifetime_s > 0:
            self._refresh_at = now + max(lifetime_s - REFRESH_MARGIN_S, lifetime_s / 2)
        else:
            self._forget_allocation()
        if method == Method.REFRESH:
            return [AllocationRefreshed(lifetime_s)]
        assert relayed is not None
        self.relayed_address, self.additional_address = relayed, additional
        self.mapped_address = message.address(AttributeType.XOR_MAPPED_ADDRESS)
        return [AllocationCreated(relayed, self.mapped_address, lifetime_s, additional)]

    def _forget_allocation(self) -> None:
        """The allocation is gone, and so are its permissions and channels: nothing is left to renew."""
        self.relayed_address = self.additional_address = None
        self._refresh_at = self._renew_peers_at = None
        self._channels.clear()
        self._channel_peers.clear()
        self._permitted.clear()


def _relayed(message: Message) -> tuple[Address | None, Address | None]:
    """The relayed address, IPv4 if there is one, and the IPv6 address beside an IPv4 one."""
    # coturn gives 0.0.0.0:0 for a family that it has not granted.
    granted = [one for one in message.addresses(AttributeType.XOR_RELAYED_ADDRESS) if one.port]
    ipv4 = next((one for one in granted if not one.is_ipv6), None)
    ipv6 = next((one for one in granted if one.is_ipv6), None)
    return (ipv6, None) if ipv4 is None else (ipv4, ipv6)


def _realm(message: Message) -> str | None:
    """The REALM of a challenge. Raises StunError with a guess at its text if it is not UTF-8."""
    try:
        return message.text(AttributeType.REALM)
    except StunError:
        latin = (message.get(AttributeType.REALM) or b"").decode("latin-1")
        raise StunError(f"the server's REALM is not UTF-8; as Latin-1 it reads {latin[:128]!r}") from None
