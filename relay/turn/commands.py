"""What a TURN server asks of the adapter that owns its sockets."""

from __future__ import annotations

from dataclasses import dataclass

from relay.addresses import Address


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
