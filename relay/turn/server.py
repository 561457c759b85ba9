"""The TURN server over UDP (RFC 8489, RFC 8656), sans I/O: datagrams in, commands out.

``receive`` takes what a client sent, ``receive_from_peer`` what came to a relayed address; both give commands for
an adapter that owns sockets. A relayed address is opened in two steps, because only a socket can tell whether the
port is free: the server asks with OpenRelayed, the adapter answers with ``on_relayed_opened`` or
``on_relayed_failed``.

No state is kept for a client before it has shown a valid nonce and the key of a user.
"""

from __future__ import annotations

import heapq
import random
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from relay.addresses import Address, RelayPolicy
from relay.turn.allocation import Allocation
from relay.turn.credentials import CredentialStore, NonceMint, long_term_key
from relay.turn.rate_limit import RateLimit
from relay.turn.relayed_ports import RelayedPorts
from relay.wire.channeldata import (
    FIRST_CHANNEL,
    LAST_CHANNEL,
    LAST_RFC5766_CHANNEL,
    build_channel_data,
    is_channel_data,
)
from relay.wire.stun import (
    TRANSACTION_ID_BYTES,
    AttributeType,
    Message,
    MessageClass,
    Method,
    StunError,
    build_error_code,
    build_message,
    build_uint32,
    build_xor_address,
    is_stun,
    parse_message,
    parse_xor_address,
)

UDP_PROTOCOL = 17
FAMILY_IPV4 = 1
FAMILY_IPV6 = 2
# RFC 8656 sections 3.2 and 7.2: the default, which is also the least that is granted, and the most.
DEFAULT_LIFETIME_S = 600
MAX_LIFETIME_S = 3600
# A client sends a request again for up to 39.5 s; its answer is kept that long, for at most so many requests.
ANSWER_LIFETIME_S = 40.0
MAX_ANSWERS = 4096
# A port that other programs hold makes an open fail; more than 16 in a row means that something else is wrong.
MAX_OPEN_TRIES = 16

# The most that a Data indication carries to the client in one datagram: 65507 bytes, less the header, an IPv6
# XOR-PEER-ADDRESS, the head of DATA and its padding.
MAX_RELAYED_BYTES = 65507 - 20 - 24 - 4 - 3

_METHODS = frozenset({Method.ALLOCATE, Method.REFRESH, Method.CREATE_PERMISSION, Method.CHANNEL_BIND})
_INTEGRITY_BY_PREFERENCE = (AttributeType.MESSAGE_INTEGRITY_SHA256, AttributeType.MESSAGE_INTEGRITY)


@dataclass(frozen=True, slots=True)
class SendToClient:
    """Send a datagram to the client from the server's address."""

    client: Address
    data: bytes


@dataclass(frozen=True, slots=True)
class SendToPeer:
    """Send a datagram to the peer from the relayed address."""

    relayed_address: Address
    peer: Address
    data: bytes


@dataclass(frozen=True, slots=True)
class OpenRelayed:
    """Open a UDP socket on this address, then call on_relayed_opened or on_relayed_failed."""

    relayed_address: Address


@dataclass(frozen=True, slots=True)
class CloseRelayed:
    """Close the socket of this address."""

    relayed_address: Address


Command = SendToClient | SendToPeer | OpenRelayed | CloseRelayed


@dataclass(frozen=True)
class ServerSettings:
    """What an operator may set; 0 means "no bound"."""

    # Eight characters or fewer keep a 401 within 72 bytes.
    realm: str = "cloud9"
    relayed_hosts: tuple[str, ...] = ("127.0.0.1",)
    policy: RelayPolicy = field(default_factory=RelayPolicy)
    # A TURN client needs one allocation for each call, or two with separate RTCP.
    max_allocations: int = 10_000
    max_allocations_per_user: int = 0
    # RFC 5766 let clients bind channels up to 0x7FFF, and turnutils_uclient still does; RFC 8656 ends at 0x4FFF.
    accepts_rfc5766_channels: bool = False
    # Answers to unauthenticated requests, a second and source address. 10 stops reflection; a server behind a relay
    # sees a whole firm as one address and must leave it at 0.
    unauthenticated_answers_per_s: float = 0.0


class _Refused(Exception):
    """A request is answered with an error."""

    def __init__(self, code: int, reason: str = "", attributes: tuple[tuple[int, bytes], ...] = ()) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason
        self.attributes = attributes


@dataclass(slots=True)
class _Request:
    """A request whose sender is known; ``integrity_kind`` is what its answer carries as well."""

    client: Address
    message: Message
    username: str
    key: bytes
    integrity_kind: int


@dataclass(slots=True)
class _Opening:
    """An Allocate that waits for its socket."""

    request: _Request
    lifetime_s: int
    even: bool = False
    with_sibling: bool = False
    tries: int = 1
    client_closed: bool = False


class TurnServer:
    """One server address; clients are told apart by their transport address."""

    def __init__(
        self,
        settings: ServerSettings,
        credentials: CredentialStore,
        *,
        nonces: NonceMint | None = None,
        choose: random.Random | None = None,
        unix_time: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._credentials = credentials
        self._nonces = nonces or NonceMint()
        self._unix_time = unix_time
        self._ports = RelayedPorts(choose or random.SystemRandom())
        self._limit = RateLimit(settings.unauthenticated_answers_per_s)
        self._decoy_password = secrets.token_hex(16)
        self._allocations: dict[Address, Allocation] = {}
        self._by_relayed: dict[Address, Allocation] = {}
        self._opening: dict[Address, _Opening] = {}
        self._per_user: Counter[str] = Counter()
        self._answers: OrderedDict[tuple[Address, bytes], tuple[float, bytes]] = OrderedDict()
        self._expiries: list[tuple[float, Address]] = []

    @property
    def allocations(self) -> int:
        """How many allocations live."""
        return len(self._allocations)

    # Time

    def next_deadline(self) -> float | None:
        """When on_deadline wants to be called, or None."""
        return self._expiries[0][0] if self._expiries else None

    def on_deadline(self, now: float) -> list[Command]:
        """Let go of the allocations whose lifetime is over."""
        commands: list[Command] = []
        while self._expiries and self._expiries[0][0] <= now:
            deadline, client = heapq.heappop(self._expiries)
            allocation = self._allocations.get(client)
            if allocation is None or allocation.deadline != deadline:
                continue
            if allocation.expires <= now:
                commands += self._delete(allocation)
            else:
                self._look_at(allocation, allocation.expires)
        return commands

    def _look_at(self, allocation: Allocation, deadline: float) -> None:
        allocation.deadline = deadline
        heapq.heappush(self._expiries, (deadline, allocation.client))

    def on_client_closed(self, client: Address) -> list[Command]:
        """The client's TCP control connection ended: its allocation ends too (RFC 8656 section 3.1)."""
        for opening in self._opening.values():
            if opening.request.client == client:
                opening.client_closed = True
        allocation = self._allocations.get(client)
        return [] if allocation is None else self._delete(allocation)

    def _delete(self, allocation: Allocation) -> list[Command]:
        del self._allocations[allocation.client]
        del self._by_relayed[allocation.relayed_address]
        self._ports.release(allocation.relayed_address)
        self._per_user[allocation.username] -= 1
        if not self._per_user[allocation.username]:
            del self._per_user[allocation.username]
        return [CloseRelayed(allocation.relayed_address)]

    # Data

    def receive(self, now: float, client: Address, data: bytes) -> list[Command]:
        """Take a datagram from a client. What is malformed is dropped (RFC 8489 section 6.3)."""
        if is_channel_data(data):
            return self._on_channel_data(now, client, data)
        if not is_stun(data):
            return []
        try:
            message = parse_message(data)
        except StunError:
            return []
        if message.message_class is MessageClass.INDICATION:
            return self._on_indication(now, client, message)
        if message.message_class is MessageClass.REQUEST:
            return self._on_request(now, client, message)
        return []

    def receive_from_peer(self, now: float, relayed_address: Address, peer: Address, data: bytes) -> list[Command]:
        """Take a datagram that came to a relayed address (RFC 8656 sections 11.3 and 12.7)."""
        allocation = self._by_relayed.get(relayed_address)
        if allocation is None or allocation.expires <= now or not allocation.permits(now, peer.host):
            return []
        if len(data) > MAX_RELAYED_BYTES:
            return []
        channel = allocation.channel_from(now, peer)
        if channel is not None:
            return [SendToClient(allocation.client, build_channel_data(channel.number, data))]
        transaction_id = secrets.token_bytes(TRANSACTION_ID_BYTES)
        attributes = [
            (AttributeType.XOR_PEER_ADDRESS, build_xor_address(peer, transaction_id)),
            (AttributeType.DATA, data),
        ]
        message = build_message(Method.DATA, MessageClass.INDICATION, transaction_id, attributes)
        return [SendToClient(allocation.client, message)]

    def _on_channel_data(self, now: float, client: Address, data: bytes) -> list[Command]:
        allocation = self._live(now, client)
        channel = None if allocation is None else allocation.channel_to(now, data[0] << 8 | data[1])
        length = data[2] << 8 | data[3]
        if allocation is None or channel is None or 4 + length > len(data):
            return []
        return [SendToPeer(allocation.relayed_address, channel.peer, data[4 : 4 + length])]

    def _on_indication(self, now: float, client: Address, message: Message) -> list[Command]:
        allocation = self._live(now, client)
        if allocation is None or message.method != Method.SEND or message.unknown_required:
            return []
        try:
            peer = message.address(AttributeType.XOR_PEER_ADDRESS)
        except StunError:
            return []
        data = message.get(AttributeType.DATA)
        if peer is None or data is None or not allocation.permits(now, peer.host):
            return []
        return [SendToPeer(allocation.relayed_address, peer, data)]

    def _live(self, now: float, client: Address) -> Allocation | None:
        allocation = self._allocations.get(client)
        return None if allocation is None or allocation.expires <= now else allocation

    # Requests

    def _on_request(self, now: float, client: Address, message: Message) -> list[Command]:
        if message.method == Method.BINDING:
            return self._on_binding(now, client, message)
        if message.method not in _METHODS:
            return []
        known = self._answers.get((client, message.transaction_id))
        if known is not None and known[0] > now:
            return [SendToClient(client, known[1])]
        request: _Request | None = None
        try:
            request = self._authenticate(now, client, message)
            return self._on_authentic(now, request)
        except StunError as malformed:
            refused = _Refused(400, str(malformed))
        except _Refused as error:
            refused = error
        if request is None and not self._limit.allows(now, client.host):
            return []
        return self._refuse(client, message, request, refused)

    def _on_binding(self, now: float, client: Address, message: Message) -> list[Command]:
        if not self._limit.allows(now, client.host):
            return []
        if message.unknown_required:
            return self._refuse(client, message, None, _unknown_attributes(message))
        mapped = (AttributeType.XOR_MAPPED_ADDRESS, build_xor_address(client, message.transaction_id))
        answer = build_message(Method.BINDING, MessageClass.SUCCESS, message.transaction_id, [mapped])
        return [SendToClient(client, answer)]

    def _authenticate(self, now: float, client: Address, message: Message) -> _Request:
        """The long-term mechanism (RFC 8489 section 9.2.4), branch by branch."""
        kind = next((kind for kind in _INTEGRITY_BY_PREFERENCE if kind in message.integrity_offsets), None)
        if kind is None:
            raise self._challenge(401, client, now)
        username = message.text(AttributeType.USERNAME)
        nonce = message.get(AttributeType.NONCE)
        if username is None or nonce is None or message.get(AttributeType.REALM) is None:
            raise _Refused(400, "USERNAME, REALM and NONCE are required")
        if not self._nonces.accepts(nonce.decode(errors="replace"), client, now):
            raise self._challenge(438, client, now)
        realm = self._settings.realm
        key = self._credentials.key(username, realm, self._unix_time())
        # An unknown user costs the same work and gets the same answer as a wrong password.
        tried = long_term_key(username, realm, self._decoy_password) if key is None else key
        if not message.has_integrity(tried, kind) or key is None:
            raise self._challenge(401, client, now)
        return _Request(client, message, username, key, kind)

    def _challenge(self, code: int, client: Address, now: float) -> _Refused:
        realm = (AttributeType.REALM, self._settings.realm.encode())
        nonce = (AttributeType.NONCE, self._nonces.mint(client, now).encode())
        return _Refused(code, "", (realm, nonce))

    def _on_authentic(self, now: float, request: _Request) -> list[Command]:
        if request.message.unknown_required:
            raise _unknown_attributes(request.message)
        allocation = self._live(now, request.client)
        if request.message.method == Method.ALLOCATE:
            return self._on_allocate(now, request, allocation)
        if allocation is None:
            raise _Refused(437, "no allocation")
        if allocation.username != request.username:
            raise _Refused(441, "another user's allocation")
        if request.message.method == Method.REFRESH:
            return self._on_refresh(now, request, allocation)
        if request.message.method == Method.CREATE_PERMISSION:
            return self._on_create_permission(now, request, allocation)
        return self._on_channel_bind(now, request, allocation)

    # Allocate (RFC 8656 section 7.2)

    def _on_allocate(self, now: float, request: _Request, allocation: Allocation | None) -> list[Command]:
        under_way = next((o for o in self._opening.values() if o.request.client == request.client), None)
        if under_way is not None and under_way.request.message.transaction_id == request.message.transaction_id:
            return []
        if allocation is not None or under_way is not None:
            raise _Refused(437, "this 5-tuple has an allocation")
        transport = request.message.uint32(AttributeType.REQUESTED_TRANSPORT)
        if transport is None:
            raise _Refused(400, "REQUESTED-TRANSPORT is required")
        if transport >> 24 != UDP_PROTOCOL:
            raise _Refused(442, "only UDP is relayed")
        opening = _Opening(request, _granted_lifetime(request.message))
        address = self._choose_address(now, opening)
        self._opening[address] = opening
        return [OpenRelayed(address)]

    def _choose_address(self, now: float, opening: _Opening) -> Address:
        message = opening.request.message
        token = message.get(AttributeType.RESERVATION_TOKEN)
        even_port = message.get(AttributeType.EVEN_PORT)
        family = message.uint32(AttributeType.REQUESTED_ADDRESS_FAMILY)
        if token is not None and (even_port is not None or family is not None):
            raise _Refused(400, "RESERVATION-TOKEN excludes EVEN-PORT and REQUESTED-ADDRESS-FAMILY")
        self._check_quota(opening.request.username)
        if even_port is not None:
            opening.even, opening.with_sibling = True, bool(even_port[0] & 0x80)
        if token is not None:
            address = self._ports.redeem(now, token)
        else:
            host = self._host_of_family(FAMILY_IPV4 if family is None else family >> 24)
            address = self._ports.take(now, host, even=opening.even, with_sibling=opening.with_sibling)
        if address is None:
            raise _Refused(508, "no such reservation" if token is not None else "no free port")
        return address

    def _host_of_family(self, family: int) -> str:
        for host in self._settings.relayed_hosts:
            if family == (FAMILY_IPV6 if ":" in host else FAMILY_IPV4):
                return host
        raise _Refused(440, "this address family is not relayed")

    def _check_quota(self, username: str) -> None:
        held = self._per_user[username] + sum(o.request.username == username for o in self._opening.values())
        if 0 < self._settings.max_allocations_per_user <= held:
            raise _Refused(486, "allocation quota reached")
        if 0 < self._settings.max_allocations <= len(self._allocations) + len(self._opening):
            raise _Refused(508, "the server is full")

    def on_relayed_opened(self, now: float, relayed_address: Address) -> list[Command]:
        """The adapter has opened the socket: the allocation begins."""
        opening = self._opening.pop(relayed_address)
        request = opening.request
        if opening.client_closed:
            self._ports.release(relayed_address, with_sibling=opening.with_sibling)
            return [CloseRelayed(relayed_address)]
        expires = now + opening.lifetime_s
        allocation = Allocation(request.client, request.username, relayed_address, expires, expires)
        commands: list[Command] = []
        if (expired := self._allocations.get(request.client)) is not None:
            commands += self._delete(expired)
        self._allocations[request.client] = allocation
        self._by_relayed[relayed_address] = allocation
        self._per_user[request.username] += 1
        self._look_at(allocation, expires)
        transaction_id = request.message.transaction_id
        attributes: list[tuple[int, bytes]] = [
            (AttributeType.XOR_RELAYED_ADDRESS, build_xor_address(relayed_address, transaction_id)),
            (AttributeType.LIFETIME, build_uint32(opening.lifetime_s)),
            (AttributeType.XOR_MAPPED_ADDRESS, build_xor_address(request.client, transaction_id)),
        ]
        if opening.with_sibling:
            token = self._ports.reserve_sibling(now, relayed_address)
            attributes.append((AttributeType.RESERVATION_TOKEN, token))
        return [*commands, *self._succeed(now, request, attributes)]

    def on_relayed_failed(self, now: float, relayed_address: Address) -> list[Command]:
        """The adapter could not open the socket: another port is tried, in the end 508 is answered."""
        opening = self._opening.pop(relayed_address)
        self._ports.release(relayed_address, with_sibling=opening.with_sibling)
        request = opening.request
        if opening.client_closed:
            return []
        address = None
        if opening.tries < MAX_OPEN_TRIES and request.message.get(AttributeType.RESERVATION_TOKEN) is None:
            address = self._ports.take(now, relayed_address.host, even=opening.even, with_sibling=opening.with_sibling)
        if address is None:
            return self._refuse(request.client, request.message, request, _Refused(508, "no free port"))
        opening.tries += 1
        self._opening[address] = opening
        return [OpenRelayed(address)]

    # Refresh (section 8.2), CreatePermission (section 10.2), ChannelBind (section 12.2)

    def _on_refresh(self, now: float, request: _Request, allocation: Allocation) -> list[Command]:
        family = request.message.uint32(AttributeType.REQUESTED_ADDRESS_FAMILY)
        own_family = FAMILY_IPV6 if allocation.relayed_address.is_ipv6 else FAMILY_IPV4
        if family is not None and family >> 24 != own_family:
            raise _Refused(443, "the allocation has another address family")
        commands: list[Command] = []
        if request.message.uint32(AttributeType.LIFETIME) == 0:
            lifetime_s = 0
            commands += self._delete(allocation)
        else:
            lifetime_s = _granted_lifetime(request.message)
            allocation.expires = now + lifetime_s
            # A later end is found out at the old deadline: a flood of Refresh requests must not pile up deadlines.
            if allocation.expires < allocation.deadline:
                self._look_at(allocation, allocation.expires)
        return [*commands, *self._succeed(now, request, [(AttributeType.LIFETIME, build_uint32(lifetime_s))])]

    def _on_create_permission(self, now: float, request: _Request, allocation: Allocation) -> list[Command]:
        message = request.message
        values = message.get_all(AttributeType.XOR_PEER_ADDRESS)
        peers = [parse_xor_address(value, message.transaction_id) for value in values]
        if not peers:
            raise _Refused(400, "XOR-PEER-ADDRESS is required")
        for peer in peers:
            self._check_peer(allocation, peer)
        hosts = {peer.host for peer in peers}
        if not allocation.has_room_for(now, hosts):
            raise _Refused(508, "too many permissions")
        for host in hosts:
            allocation.permit(now, host)
        return self._succeed(now, request, [])

    def _on_channel_bind(self, now: float, request: _Request, allocation: Allocation) -> list[Command]:
        number = request.message.uint32(AttributeType.CHANNEL_NUMBER)
        peer = request.message.address(AttributeType.XOR_PEER_ADDRESS)
        if number is None or peer is None:
            raise _Refused(400, "CHANNEL-NUMBER and XOR-PEER-ADDRESS are required")
        number >>= 16
        last_channel = LAST_RFC5766_CHANNEL if self._settings.accepts_rfc5766_channels else LAST_CHANNEL
        if not FIRST_CHANNEL <= number <= last_channel:
            raise _Refused(400, f"channel numbers are 0x{FIRST_CHANNEL:04X} to 0x{last_channel:04X}")
        self._check_peer(allocation, peer)
        if allocation.conflicts(now, number, peer):
            raise _Refused(400, "the channel or the peer is bound otherwise")
        if not allocation.has_room_for(now, {peer.host}) or not allocation.bind_channel(now, number, peer):
            raise _Refused(508, "too many channels or permissions")
        return self._succeed(now, request, [])

    def _check_peer(self, allocation: Allocation, peer: Address) -> None:
        if peer.is_ipv6 != allocation.relayed_address.is_ipv6:
            raise _Refused(443, "the peer has another address family")
        if not self._settings.policy.permits(peer.host):
            raise _Refused(403, "this peer address is not relayed to")

    # Answers

    def _succeed(self, now: float, request: _Request, attributes: list[tuple[int, bytes]]) -> list[Command]:
        transaction_id = request.message.transaction_id
        answer = build_message(
            request.message.method,
            MessageClass.SUCCESS,
            transaction_id,
            attributes,
            integrity_key=request.key,
            integrity_kind=request.integrity_kind,
        )
        self._answers[request.client, transaction_id] = (now + ANSWER_LIFETIME_S, answer)
        if len(self._answers) > MAX_ANSWERS:
            self._answers.popitem(last=False)
        return [SendToClient(request.client, answer)]

    def _refuse(self, client: Address, message: Message, request: _Request | None, refused: _Refused) -> list[Command]:
        attributes = [(AttributeType.ERROR_CODE, build_error_code(refused.code, refused.reason))]
        answer = build_message(
            message.method,
            MessageClass.ERROR,
            message.transaction_id,
            [*attributes, *refused.attributes],
            integrity_key=None if request is None else request.key,
            integrity_kind=AttributeType.MESSAGE_INTEGRITY if request is None else request.integrity_kind,
        )
        return [SendToClient(client, answer)]


def _granted_lifetime(message: Message) -> int:
    wanted = message.uint32(AttributeType.LIFETIME)
    return DEFAULT_LIFETIME_S if wanted is None else min(max(wanted, DEFAULT_LIFETIME_S), MAX_LIFETIME_S)


def _unknown_attributes(message: Message) -> _Refused:
    types = message.unknown_required
    value = b"".join(kind.to_bytes(2) for kind in types)
    return _Refused(420, "", ((AttributeType.UNKNOWN_ATTRIBUTES, value),))
