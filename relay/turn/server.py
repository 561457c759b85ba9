"""The TURN server over UDP (RFC 8489, RFC 8656), sans I/O: datagrams in, commands out.

``receive`` takes what a client sent, ``receive_from_peer`` what came to a relayed address; both return commands for
the adapter that owns the sockets. A relayed address is opened in two steps, because only a socket can tell whether the
port is free: the server asks with OpenRelayed, the adapter answers with ``on_relayed_opened`` or
``on_relayed_failed``. ``authentication`` finds out who sent a request, ``allocate`` what an Allocate asks for,
``opening`` which sockets it needs, and ``answers`` builds what is sent back.

No state is kept for a client before it has shown a valid nonce and the key of a user.
"""

from __future__ import annotations

import heapq
import random
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from relay.addresses import Address, RelayPolicy
from relay.turn.allocate import granted_lifetime, read_allocate
from relay.turn.allocation import Allocation, Relayed
from relay.turn.answers import Answers, build_refusal
from relay.turn.authentication import Authenticator, AuthenticRequest, TurnError, unknown_attributes
from relay.turn.commands import CloseRelayed, Command, SendToClient, SendToPeer
from relay.turn.credentials import CredentialStore, NonceMint, prepared
from relay.turn.drops import Drop
from relay.turn.observer import Observer
from relay.turn.opening import Opening, Openings
from relay.turn.relayed_ports import FIRST_PORT, RelayedPorts
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
    build_address_error_code,
    build_message,
    build_uint32,
    build_xor_address,
    family_of,
    is_stun,
    parse_message,
    parse_xor_address,
)

# Deadlines of allocations that have ended are thrown out when there are this many more of them than living allocations.
MAX_SPARE_DEADLINES = 64

# The most that a Data indication carries to the client in one datagram: 65507 bytes, less the header, an IPv6
# XOR-PEER-ADDRESS, the head of DATA and its padding.
MAX_RELAYED_BYTES = 65507 - 20 - 24 - 4 - 3

_METHODS = frozenset({Method.ALLOCATE, Method.REFRESH, Method.CREATE_PERMISSION, Method.CHANNEL_BIND})
# What this server implements, or knows from answers. Everything else below 0x8000 is answered with 420.
_UNDERSTOOD = frozenset(
    {
        AttributeType.MAPPED_ADDRESS,
        AttributeType.USERNAME,
        AttributeType.ERROR_CODE,
        AttributeType.UNKNOWN_ATTRIBUTES,
        AttributeType.CHANNEL_NUMBER,
        AttributeType.LIFETIME,
        AttributeType.XOR_PEER_ADDRESS,
        AttributeType.DATA,
        AttributeType.REALM,
        AttributeType.NONCE,
        AttributeType.XOR_RELAYED_ADDRESS,
        AttributeType.REQUESTED_ADDRESS_FAMILY,
        AttributeType.EVEN_PORT,
        AttributeType.REQUESTED_TRANSPORT,
        AttributeType.PASSWORD_ALGORITHM,
        AttributeType.XOR_MAPPED_ADDRESS,
        AttributeType.RESERVATION_TOKEN,
    }
)
# A Binding may be a connectivity check of ICE, which ends here as a plain Binding.
_UNDERSTOOD_IN_BINDING = _UNDERSTOOD | {AttributeType.PRIORITY, AttributeType.USE_CANDIDATE}


@dataclass(frozen=True)
class ServerSettings:
    """What an operator may set; 0 means "no bound"."""

    # Eight characters or fewer keep a 401 within 72 bytes.
    realm: str = "cloud9"
    relayed_hosts: tuple[str, ...] = ("127.0.0.1",)
    policy: RelayPolicy = field(default_factory=RelayPolicy)
    # Where data may go of what the policy permits, port included. None: to all of it.
    may_reach: Callable[[Address], bool] | None = None
    # The lowest port of a relayed address; the highest is 65535.
    first_relayed_port: int = FIRST_PORT
    # A TURN client needs one allocation for each call, or two with separate RTCP.
    max_allocations: int = 10_000
    max_allocations_per_user: int = 0
    # Whose quota a user name counts for: time-limited names (``credentials.user_of_rest``) change with each login.
    quota_name: Callable[[str], str] = str
    # RFC 5766 let clients bind channels up to 0x7FFF, and turnutils_uclient still does; RFC 8656 ends at 0x4FFF.
    accepts_rfc5766_channels: bool = False
    # Answers to unauthenticated requests, a second and source. A client needs one or two to begin; ten stop reflection,
    # and the guessing of passwords. Ports count apart: a server sees a whole firm as one address.
    unauthenticated_answers_per_s: float = 10.0


class TurnServer:
    """One server address; clients are told apart by their transport address.

    ``drops`` counts datagrams that were neither passed on nor answered. ``observer`` is told what is granted, before
    the answer is returned.
    """

    def __init__(
        self,
        settings: ServerSettings,
        credentials: CredentialStore,
        *,
        nonces: NonceMint | None = None,
        choose: random.Random | None = None,
        unix_time: Callable[[], float] = time.time,
        observer: Observer | None = None,
    ) -> None:
        self._settings = settings
        self._observer = observer or Observer()
        self.drops: Counter[Drop] = Counter()
        self._ports = RelayedPorts(choose or random.SystemRandom(), settings.first_relayed_port)
        self._authenticator = Authenticator(
            settings.realm, credentials, nonces or NonceMint(), unix_time, settings.unauthenticated_answers_per_s
        )
        self._allocations: dict[Address, Allocation] = {}
        self._by_relayed: dict[Address, Allocation] = {}
        self._openings = Openings(self._ports, settings.relayed_hosts, self._allocated)
        self._per_user: Counter[str] = Counter()
        self._answers = Answers()
        self._expiries: list[tuple[float, Address]] = []

    @property
    def allocations(self) -> int:
        """How many allocations live."""
        return len(self._allocations)

    @property
    def relayed(self) -> int:
        """How many relayed addresses they have."""
        return len(self._by_relayed)

    def relays(self, address: Address) -> bool:
        """True for the relayed address of an allocation."""
        return address in self._by_relayed

    def serves(self, now: float, client: Address) -> bool:
        """True while the client has an allocation."""
        return self._live(now, client) is not None

    # Time

    def next_deadline(self) -> float | None:
        """When on_deadline wants to be called, or None."""
        ends = (self._expiries[0][0] if self._expiries else None, self._ports.first_expiry())
        return min((end for end in ends if end is not None), default=None)

    def on_deadline(self, now: float) -> list[Command]:
        """Let go of the relayed addresses whose lifetime is over, and of the reserved ones."""
        commands: list[Command] = [CloseRelayed(address) for address in self._ports.expire(now)]
        while self._expiries and self._expiries[0][0] <= now:
            deadline, client = heapq.heappop(self._expiries)
            allocation = self._allocations.get(client)
            if allocation is None or allocation.deadline != deadline:
                continue
            expired = [family for family, relayed in allocation.relayed.items() if relayed.expires <= now]
            commands += self._delete(allocation, expired)
            if allocation.relayed:
                self._look_at(allocation, allocation.first_expiry)
        return commands

    def _look_at(self, allocation: Allocation, deadline: float) -> None:
        allocation.deadline = deadline
        heapq.heappush(self._expiries, (deadline, allocation.client))

    def on_client_closed(self, client: Address) -> list[Command]:
        """The client's TCP control connection ended: its allocation ends too (RFC 8656 section 3.1)."""
        if (opening := self._openings.of_client(client)) is not None:
            opening.client_closed = True
        allocation = self._allocations.get(client)
        return [] if allocation is None else self._delete(allocation, list(allocation.relayed))

    def _delete(self, allocation: Allocation, families: Iterable[int]) -> list[Command]:
        """End these relayed addresses, and the allocation with the last of them."""
        addresses = [allocation.relayed.pop(family).address for family in families]
        for address in addresses:
            del self._by_relayed[address]
            self._ports.release(address)
        if not allocation.relayed:
            del self._allocations[allocation.client]
            user = self._settings.quota_name(allocation.username)
            self._per_user[user] -= 1
            if not self._per_user[user]:
                del self._per_user[user]
            self._drop_spare_deadlines()
        return [CloseRelayed(address) for address in addresses]

    def _drop_spare_deadlines(self) -> None:
        if len(self._expiries) > 2 * len(self._allocations) + MAX_SPARE_DEADLINES:
            self._expiries = [(allocation.deadline, client) for client, allocation in self._allocations.items()]
            heapq.heapify(self._expiries)

    # Data

    def receive(self, now: float, client: Address, data: bytes) -> list[Command]:
        """Take a datagram from a client. What is malformed is dropped (RFC 8489 section 6.3).

        A request whose attributes have the wrong length is answered with 400.
        """
        if is_channel_data(data):
            return self._on_channel_data(now, client, data)
        if not is_stun(data):
            return self._drop(Drop.MALFORMED)
        try:
            message = parse_message(data, allow_faults=True)
        except StunError:
            return self._drop(Drop.MALFORMED)
        if message.message_class is MessageClass.INDICATION:
            return self._on_indication(now, client, message)
        if message.message_class is MessageClass.REQUEST:
            return self._on_request(now, client, message)
        return self._drop(Drop.MALFORMED)

    def receive_from_peer(self, now: float, relayed_address: Address, peer: Address, data: bytes) -> list[Command]:
        """Take a datagram that came to a relayed address (RFC 8656 sections 11.3 and 12.7)."""
        allocation = self._by_relayed.get(relayed_address)
        if allocation is None or allocation.source_for(now, relayed_address.host) != relayed_address:
            return self._drop(Drop.NO_ALLOCATION)
        if not allocation.permits(now, peer.host):
            return self._drop(Drop.NOT_PERMITTED)
        if len(data) > MAX_RELAYED_BYTES:
            return self._drop(Drop.OVERSIZE)
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
        if allocation is None:
            return self._drop(Drop.NO_ALLOCATION)
        channel = allocation.channel_to(now, data[0] << 8 | data[1])
        if channel is None:
            return self._drop(Drop.NO_CHANNEL)
        length = data[2] << 8 | data[3]
        if 4 + length > len(data):
            return self._drop(Drop.MALFORMED)
        return self._send_to_peer(now, allocation, channel.peer, data[4 : 4 + length])

    def _on_indication(self, now: float, client: Address, message: Message) -> list[Command]:
        allocation = self._live(now, client)
        if message.fault or message.method != Method.SEND or message.unknown_required(_UNDERSTOOD):
            return self._drop(Drop.MALFORMED)
        try:
            peer = message.address(AttributeType.XOR_PEER_ADDRESS)
        except StunError:
            return self._drop(Drop.MALFORMED)
        data = message.get(AttributeType.DATA)
        if peer is None or data is None:
            return self._drop(Drop.MALFORMED)
        if allocation is None:
            return self._drop(Drop.NO_ALLOCATION)
        if not allocation.permits(now, peer.host) or not self._may_reach(peer):
            return self._drop(Drop.NOT_PERMITTED)
        return self._send_to_peer(now, allocation, peer, data)

    def _send_to_peer(self, now: float, allocation: Allocation, peer: Address, data: bytes) -> list[Command]:
        source = allocation.source_for(now, peer.host)
        return self._drop(Drop.NO_ALLOCATION) if source is None else [SendToPeer(source, peer, data)]

    def _drop(self, reason: Drop) -> list[Command]:
        self.drops[reason] += 1
        return []

    def _live(self, now: float, client: Address) -> Allocation | None:
        allocation = self._allocations.get(client)
        return allocation if allocation is not None and allocation.lives(now) else None

    # Requests

    def _on_request(self, now: float, client: Address, message: Message) -> list[Command]:
        if message.method == Method.BINDING:
            return self._on_binding(now, client, message)
        if message.method not in _METHODS:
            return self._drop(Drop.MALFORMED)
        if (known := self._answers.known(now, client, message)) is not None:
            return [SendToClient(client, known)]
        # Before any work: a flood of wrong passwords must not cost an HMAC each.
        if not self._authenticator.may_answer(now, client):
            return self._drop(Drop.RATE_LIMITED)
        request: AuthenticRequest | None = None
        try:
            request = self._authenticator.authenticate(now, client, message, self._live(now, client))
            _check_form(message)
            return self._on_authentic(now, request)
        except StunError as malformed:
            refused = TurnError(400, str(malformed))
        except TurnError as error:
            # What is malformed will not be better with the credentials that a 401 asks for.
            refused = TurnError(400, message.fault) if message.fault else error
        return _refuse(client, message, request, refused)

    def _on_binding(self, now: float, client: Address, message: Message) -> list[Command]:
        if not self._authenticator.may_answer(now, client):
            return self._drop(Drop.RATE_LIMITED)
        if message.fault:
            return _refuse(client, message, None, TurnError(400, message.fault))
        if unknown := message.unknown_required(_UNDERSTOOD_IN_BINDING):
            return _refuse(client, message, None, unknown_attributes(unknown))
        mapped = (AttributeType.XOR_MAPPED_ADDRESS, build_xor_address(client, message.transaction_id))
        answer = build_message(Method.BINDING, MessageClass.SUCCESS, message.transaction_id, [mapped])
        return [SendToClient(client, answer)]

    def _on_authentic(self, now: float, request: AuthenticRequest) -> list[Command]:
        if unknown := request.message.unknown_required(_UNDERSTOOD):
            raise unknown_attributes(unknown)
        allocation = self._live(now, request.client)
        if request.message.method == Method.ALLOCATE:
            return self._on_allocate(now, request, allocation)
        if allocation is None:
            raise TurnError(437, "no allocation")
        if allocation.username != prepared(request.username):
            raise TurnError(441, "another user's allocation")
        if request.message.method == Method.REFRESH:
            return self._on_refresh(now, request, allocation)
        if request.message.method == Method.CREATE_PERMISSION:
            return self._on_create_permission(now, request, allocation)
        return self._on_channel_bind(now, request, allocation)

    # Allocate (RFC 8656 section 7.2)

    def _on_allocate(self, now: float, request: AuthenticRequest, allocation: Allocation | None) -> list[Command]:
        under_way = self._openings.of_client(request.client)
        if under_way is not None and under_way.request.message.raw == request.message.raw:
            return []
        if allocation is not None or under_way is not None:
            raise TurnError(437, "this 5-tuple has an allocation")
        wish = read_allocate(request.message)
        self._check_quota(self._user(request), wish.places)
        return self._openings.begin(now, Opening(request, wish, list(wish.families)))

    def _user(self, request: AuthenticRequest) -> str:
        return self._settings.quota_name(prepared(request.username))

    def _check_quota(self, user: str, places: int) -> None:
        opening = sum(o.wish.places for o in self._openings.all() if self._user(o.request) == user)
        of_user = self._per_user[user] + opening + self._ports.reservations(user)
        if 0 < self._settings.max_allocations_per_user < of_user + places:
            raise TurnError(486, "allocation quota reached")
        opening = sum(o.wish.places for o in self._openings.all())
        if 0 < self._settings.max_allocations < len(self._allocations) + opening + self._ports.reservations() + places:
            raise TurnError(508, "the server is full")

    def on_relayed_opened(self, now: float, relayed_address: Address) -> list[Command]:
        """The adapter has opened the socket: the next one is asked for, or the allocation begins."""
        return self._openings.on_opened(now, relayed_address)

    def on_relayed_failed(self, now: float, relayed_address: Address, lacking: str = "") -> list[Command]:
        """The adapter could not open the socket: another port is tried, in the end 508 is answered.

        ``lacking`` says what the server has run out of, such as file descriptors: another port would not help.
        """
        return self._openings.on_failed(now, relayed_address, lacking)

    def _allocated(self, now: float, opening: Opening) -> list[Command]:
        """Answer an Allocate whose sockets are open, or could not be opened."""
        request, wish = opening.request, opening.wish
        reserved = opening.opened.pop() if wish.with_sibling and opening.opened else None
        if not opening.opened:
            return _refuse(request.client, request.message, request, next(iter(opening.failed.values())))
        commands: list[Command] = []
        if (expired := self._allocations.get(request.client)) is not None:
            commands += self._delete(expired, list(expired.relayed))
        expires = now + wish.lifetime_s
        relayed = {int(family_of(address.host)): Relayed(address, expires) for address in opening.opened}
        allocation = Allocation(request.client, prepared(request.username), request.key, relayed, expires)
        self._allocations[request.client] = allocation
        self._by_relayed |= dict.fromkeys(opening.opened, allocation)
        self._per_user[self._settings.quota_name(allocation.username)] += 1
        self._look_at(allocation, expires)
        self._observer.on_allocation(allocation)
        return [*commands, *self._succeed(now, request, self._allocate_attributes(now, opening, reserved))]

    def _allocate_attributes(self, now: float, opening: Opening, reserved: Address | None) -> list[tuple[int, bytes]]:
        request, wish = opening.request, opening.wish
        transaction_id = request.message.transaction_id
        attributes: list[tuple[int, bytes]] = [
            *((AttributeType.XOR_RELAYED_ADDRESS, build_xor_address(a, transaction_id)) for a in opening.opened),
            (AttributeType.LIFETIME, build_uint32(wish.lifetime_s)),
            (AttributeType.XOR_MAPPED_ADDRESS, build_xor_address(request.client, transaction_id)),
        ]
        if reserved is not None:
            token = self._ports.reserve(now, reserved, self._user(request))
            attributes.append((AttributeType.RESERVATION_TOKEN, token))
        for family, error in opening.failed.items():
            value = build_address_error_code(family, error.code, error.reason)
            attributes.append((AttributeType.ADDRESS_ERROR_CODE, value))
        return attributes

    # Refresh (section 8.2), CreatePermission (section 10.2), ChannelBind (section 12.2)

    def _on_refresh(self, now: float, request: AuthenticRequest, allocation: Allocation) -> list[Command]:
        family = request.message.family(AttributeType.REQUESTED_ADDRESS_FAMILY)
        if family is not None and family not in allocation.relayed:
            raise TurnError(443, "the allocation has no relayed address of this family")
        families = list(allocation.relayed) if family is None else [family]
        commands: list[Command] = []
        if request.message.uint32(AttributeType.LIFETIME) == 0:
            lifetime_s = 0
            commands += self._delete(allocation, families)
        else:
            lifetime_s = granted_lifetime(request.message)
            for kind in families:
                allocation.relayed[kind].expires = now + lifetime_s
            # A later end is found out at the old deadline: a flood of Refresh requests must not pile up deadlines.
            if allocation.first_expiry < allocation.deadline:
                self._look_at(allocation, allocation.first_expiry)
            self._observer.on_refresh(allocation)
        return [*commands, *self._succeed(now, request, [(AttributeType.LIFETIME, build_uint32(lifetime_s))])]

    def _on_create_permission(self, now: float, request: AuthenticRequest, allocation: Allocation) -> list[Command]:
        message = request.message
        values = message.get_all(AttributeType.XOR_PEER_ADDRESS)
        peers = [parse_xor_address(value, message.transaction_id) for value in values]
        if not peers:
            raise TurnError(400, "XOR-PEER-ADDRESS is required")
        for peer in peers:
            self._check_peer(allocation, peer)
        hosts = {peer.host for peer in peers}
        if not allocation.has_room_for(now, hosts):
            raise TurnError(508, "too many permissions")
        for host in hosts:
            allocation.permit(now, host)
            self._observer.on_permission(allocation, host)
        return self._succeed(now, request, [])

    def _on_channel_bind(self, now: float, request: AuthenticRequest, allocation: Allocation) -> list[Command]:
        number = request.message.uint32(AttributeType.CHANNEL_NUMBER)
        peer = request.message.address(AttributeType.XOR_PEER_ADDRESS)
        if number is None or peer is None:
            raise TurnError(400, "CHANNEL-NUMBER and XOR-PEER-ADDRESS are required")
        number >>= 16
        last_channel = LAST_RFC5766_CHANNEL if self._settings.accepts_rfc5766_channels else LAST_CHANNEL
        if not FIRST_CHANNEL <= number <= last_channel:
            raise TurnError(400, f"channel numbers are 0x{FIRST_CHANNEL:04X} to 0x{last_channel:04X}")
        if not peer.port:
            raise TurnError(400, "a peer has a port from 1 to 65535")
        self._check_peer(allocation, peer)
        if not self._may_reach(peer):
            raise TurnError(403, "this peer is not relayed to")
        if allocation.conflicts(now, number, peer):
            raise TurnError(400, "the channel or the peer is bound otherwise")
        if not allocation.has_room_for(now, {peer.host}) or not allocation.bind_channel(now, number, peer):
            raise TurnError(508, "too many channels or permissions")
        self._observer.on_channel(allocation, allocation.channels[number])
        return self._succeed(now, request, [])

    def _may_reach(self, peer: Address) -> bool:
        return self._settings.may_reach is None or self._settings.may_reach(peer)

    def _check_peer(self, allocation: Allocation, peer: Address) -> None:
        if family_of(peer.host) not in allocation.relayed:
            raise TurnError(443, "the peer has another address family")
        if not self._settings.policy.permits(peer.host):
            raise TurnError(403, "this peer address is not relayed to")

    # Answers

    def _succeed(self, now: float, request: AuthenticRequest, attributes: list[tuple[int, bytes]]) -> list[Command]:
        return [SendToClient(request.client, self._answers.succeed(now, request, attributes))]


def _refuse(client: Address, message: Message, request: AuthenticRequest | None, refused: TurnError) -> list[Command]:
    return [SendToClient(client, build_refusal(message, request, refused))]


def _check_form(message: Message) -> None:
    """What can be said of a request without a look at what it asks for."""
    if message.fault:
        raise TurnError(400, message.fault)
    # Section 9.2.4: they belong together, and repeat what a nonce has offered, which ours does not.
    if {AttributeType.PASSWORD_ALGORITHM, AttributeType.PASSWORD_ALGORITHMS} & {kind for kind, _ in message.attributes}:
        raise TurnError(400, "no PASSWORD-ALGORITHMS were offered")
