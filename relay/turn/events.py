"""What a TURN client reports of its server."""

from __future__ import annotations

from dataclasses import dataclass

from relay.addresses import Address
from relay.wire.stun import Method


@dataclass(frozen=True, slots=True)
class BindingDone:
    """A Binding request was answered. The address is None if the server is so old that it does not XOR it."""

    mapped_address: Address | None


@dataclass(frozen=True, slots=True)
class AllocationCreated:
    """The allocation is there. ``additional_address`` is the IPv6 one, if the first one is IPv4."""

    relayed_address: Address
    mapped_address: Address | None
    lifetime_s: int
    additional_address: Address | None = None


@dataclass(frozen=True, slots=True)
class AllocationRefreshed:
    """The allocation lives on; a lifetime of 0 s says that it was released."""

    lifetime_s: int


@dataclass(frozen=True, slots=True)
class PermissionsCreated:
    """These peers may send to the relayed address."""

    peers: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class ChannelBound:
    """Data to and from the peer now travels as ChannelData."""

    peer: Address
    channel_number: int


@dataclass(frozen=True, slots=True)
class DataReceived:
    """A datagram that the peer sent to the relayed address."""

    peer: Address
    data: bytes


@dataclass(frozen=True, slots=True)
class RequestFailed:
    """A request was refused; ``peers`` are the ones that it named.

    ``code`` is from ERROR-CODE. It is 0 if there was no answer (``answered`` is false), or a malformed one.
    ``alternate`` is where a 300 (Try Alternate) sends the client.
    """

    method: Method
    code: int
    reason: str
    peers: tuple[Address, ...] = ()
    answered: bool = True
    alternate: Address | None = None


Event = (
    BindingDone
    | AllocationCreated
    | AllocationRefreshed
    | PermissionsCreated
    | ChannelBound
    | DataReceived
    | RequestFailed
)
