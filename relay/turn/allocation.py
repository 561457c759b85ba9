"""What a TURN server holds for one client: the allocation, its permissions and its channels (RFC 8656 section 3)."""

from __future__ import annotations

from dataclasses import dataclass, field

from relay.addresses import Address
from relay.wire.stun import family_of

# Fixed by RFC 8656 sections 9 and 12.
PERMISSION_LIFETIME_S = 300
CHANNEL_LIFETIME_S = 600
# Our bounds. A trader has tens of lines, and a hoot has hundreds of peers that share one address of an SFU. 1024 is
# more than any of them need, and keeps an allocation below 200 KB.
MAX_PERMISSIONS = 1024
MAX_CHANNELS = 1024


@dataclass(slots=True)
class Channel:
    """A channel number bound to a peer until ``expires``."""

    number: int
    peer: Address
    expires: float


@dataclass(slots=True)
class Relayed:
    """One relayed address until ``expires``."""

    address: Address
    expires: float


@dataclass(slots=True)
class Allocation:
    """A relayed address, or one of each address family; the client that owns them, and who may reach them."""

    client: Address
    username: str
    # What proved the user when it was made. It proves them for as long as the allocation lives.
    key: bytes = field(repr=False)
    # By address family (RFC 8656 section 2.5.4): each may be refreshed and deleted alone.
    relayed: dict[int, Relayed]
    # When the server looks at it next; not later than the first of its addresses expires.
    deadline: float
    permissions: dict[str, float] = field(default_factory=dict)
    channels: dict[int, Channel] = field(default_factory=dict)
    channels_by_peer: dict[Address, Channel] = field(default_factory=dict)

    @property
    def first_expiry(self) -> float:
        """When the first of its relayed addresses expires."""
        return min(relayed.expires for relayed in self.relayed.values())

    def lives(self, now: float) -> bool:
        """True while one of its relayed addresses lives."""
        return any(relayed.expires > now for relayed in self.relayed.values())

    def source_for(self, now: float, host: str) -> Address | None:
        """The relayed address that reaches peers of this host's family, while it lives."""
        relayed = self.relayed.get(family_of(host))
        return None if relayed is None or relayed.expires <= now else relayed.address

    def permits(self, now: float, host: str) -> bool:
        """True while a permission for the peer's address lives (ports do not count, section 9)."""
        return self.permissions.get(host, 0.0) > now

    def has_room_for(self, now: float, hosts: set[str]) -> bool:
        """True if permissions for these addresses would fit. Expired ones are removed first."""
        new = len(hosts - self.permissions.keys())
        if len(self.permissions) + new > MAX_PERMISSIONS:
            for host in [host for host, expires in self.permissions.items() if expires <= now]:
                del self.permissions[host]
            new = len(hosts - self.permissions.keys())
        return len(self.permissions) + new <= MAX_PERMISSIONS

    def permit(self, now: float, host: str) -> None:
        """Create or renew the permission for an address."""
        self.permissions[host] = now + PERMISSION_LIFETIME_S

    def channel_to(self, now: float, number: int) -> Channel | None:
        """The channel of this number while it lives and its peer is permitted."""
        channel = self.channels.get(number)
        if channel is None or channel.expires <= now or not self.permits(now, channel.peer.host):
            return None
        return channel

    def channel_from(self, now: float, peer: Address) -> Channel | None:
        """The channel that is bound to a peer, while it lives."""
        channel = self.channels_by_peer.get(peer)
        return None if channel is None or channel.expires <= now else channel

    def conflicts(self, now: float, number: int, peer: Address) -> bool:
        """True if the number has another peer, or the peer another number (section 12.2)."""
        by_number, by_peer = self.channels.get(number), self.channel_from(now, peer)
        taken = by_number is not None and by_number.expires > now and by_number.peer != peer
        return taken or (by_peer is not None and by_peer.number != number)

    def bind_channel(self, now: float, number: int, peer: Address) -> bool:
        """Bind or renew a channel, and with it the permission. Returns False if there is no room."""
        if number not in self.channels and len(self.channels) >= MAX_CHANNELS:
            for old in [channel for channel in self.channels.values() if channel.expires <= now]:
                self._forget(old)
            if len(self.channels) >= MAX_CHANNELS:
                return False
        if (old_channel := self.channels.get(number)) is not None:
            self._forget(old_channel)
        if (old_channel := self.channels_by_peer.get(peer)) is not None:
            self._forget(old_channel)
        channel = Channel(number, peer, now + CHANNEL_LIFETIME_S)
        self.channels[number] = self.channels_by_peer[peer] = channel
        self.permit(now, peer.host)
        return True

    def _forget(self, channel: Channel) -> None:
        del self.channels[channel.number]
        del self.channels_by_peer[channel.peer]
