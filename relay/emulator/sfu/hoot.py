"""One hoot: who is in it, who has the floor, and the key that they share. The fan-out thread does what it decides.

A user is in the hoot while they are subscribed or have the floor. Whoever leaves knows the key, so it changes then.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import struct
from dataclasses import dataclass
from typing import Protocol

from relay.addresses import Address
from relay.emulator.sfu import _fanout
from relay.emulator.sfu.group_key import KEY_LIFETIME_S, LISTENER_KEEPS_S, GroupKey
from relay.errors import PeerError
from relay.timer import DeadlineTimer

# A floor that empties within a second makes one new key, not 800, each of which would be told to all the others. Those
# who left get no packets meanwhile.
MIN_KEY_AGE_S = 1.0
# SSRCs that have spoken under one key, by user. Each grant of the floor may add one; then the key changes early.
MAX_SSRCS = 4096
# The key changes at most once a second, so one user fills no more of the table than this before it does. A softphone
# has one SSRC, and takes another when it starts again.
MAX_SSRCS_OF_ONE = 16
# The option, its words, and the word that counts dropped datagrams (asm-generic/socket.h, linux/sock_diag.h).
_SO_MEMINFO, _MEMINFO, _MEMINFO_DROPS = 55, struct.Struct("@9I"), 8


class HootError(PeerError):
    """What was asked of the hoot cannot be."""


class FloorFull(HootError):
    """As many talk as may."""


class SsrcRefused(HootError):
    """The SSRC cannot be this user's."""


@dataclass(frozen=True)
class HootFigures:
    """What became of the packets of a hoot since it was opened; all but the last as the thread counts."""

    received: int  # datagrams from anyone
    forwarded: int  # packets of talkers that were passed on
    copies: int  # of these, as they were sent
    keepalives: int  # STUN and SRTCP of members
    strangers: int  # from an address that nobody has registered
    no_floor: int  # from a subscriber who may not talk
    wrong_ssrc: int  # from a talker, with another SSRC than the one that was allowed
    malformed: int  # not SRTP, SRTCP or STUN
    too_long: int  # more than an Ethernet carries
    too_fast: int  # beyond 200 packets a second, and a burst of 100
    copies_no_room: int  # copies that the full socket did not take
    copies_unreachable: int  # copies that the kernel refused
    kernel_drops: int  # datagrams that came faster than they were read

    @property
    def refused(self) -> int:
        """Datagrams that were dropped on purpose."""
        return self.strangers + self.no_floor + self.wrong_ssrc + self.malformed + self.too_long + self.too_fast


class Thread(Protocol):
    """What a hoot has done by the fan-out thread, and whom it tells of its key."""

    def require_room(self) -> None:
        """Raise HootError if the thread does not keep up with its commands."""

    def tell(self, hoot: Hoot, verb: str, *arguments: int) -> None:
        """Call a method of ``Fanout`` for the hoot's room, now or as soon as the thread can take it."""

    def counters(self, hoot: Hoot) -> tuple[int, ...]:
        """What the thread has counted."""

    def on_key(self, hoot: Hoot) -> None:
        """The key has changed."""


@dataclass
class _Member:
    """A user, and their number in the thread. One who comes back has a new number: old events are not theirs."""

    user_id: str
    number: int
    listens_at: Address | None = None
    talks_at: Address | None = None
    # The one of their latest grant. It stays theirs while they are in the hoot, under each key.
    ssrc: int | None = None

    @property
    def addresses(self) -> set[Address]:
        return {address for address in (self.listens_at, self.talks_at) if address is not None}


class Hoot:
    """A hoot that ``Sfu.open`` has opened. ``key`` is the one to hand out now.

    Its methods raise HootError for what cannot be, such as an address that another user has. They change nothing then.
    """

    def __init__(self, line: str, opened: socket.socket, thread: Thread) -> None:
        self.line = line
        self.address = Address(*opened.getsockname())
        self.key = GroupKey.new(1)
        self._socket = opened
        self._thread = thread
        self._members: dict[str, _Member] = {}
        self._by_number: dict[int, _Member] = {}
        self._owners: dict[Address, str] = {}
        self._last_number = 0
        # Whose an SSRC is: under this key, and, until a time, under the keys before, which some still talk with.
        self._ssrcs: dict[int, str] = {}
        self._ssrcs_before: dict[int, tuple[str, float]] = {}
        self._closed_with: HootFigures | None = None
        self._loop = asyncio.get_running_loop()
        self._key_timer = DeadlineTimer(self._change_key)
        self._changed_at = float("-inf")
        self._key_timer.set(self._loop.time() + KEY_LIFETIME_S)

    @property
    def closed(self) -> bool:
        """Whether the hoot has ended."""
        return self._closed_with is not None

    @property
    def subscribers(self) -> list[str]:
        """Who is subscribed, heard or not yet."""
        return [member.user_id for member in self._members.values() if member.listens_at]

    @property
    def talkers(self) -> list[str]:
        """Who has the floor."""
        return [member.user_id for member in self._members.values() if member.talks_at]

    @property
    def sdp(self) -> str:
        """How softphones reach the hoot now, as an SDP answer: address, codec and key (RFC 4568)."""
        host, port = self.address
        lines = [
            "v=0",
            f"o=- {port} {self.key.number} IN IP4 {host}",
            "s=-",
            f"c=IN IP4 {host}",
            "t=0 0",
            f"m=audio {port} RTP/SAVP 0",
            "a=rtpmap:0 PCMU/8000",
            f"a=crypto:{self.key.crypto}",
            f"a=candidate:1 1 UDP 2130706431 {host} {port} typ host",
            "a=rtcp-mux",
            "a=sendrecv",
        ]
        return "".join(line + "\r\n" for line in lines)

    def figures(self) -> HootFigures:
        """What became of its packets."""
        if self._closed_with is not None:
            return self._closed_with
        words = _MEMINFO.unpack(self._socket.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))
        return HootFigures(*(*self._thread.counters(self), words[_MEMINFO_DROPS]))

    # Listeners

    def subscribe(self, user_id: str, address: Address) -> None:
        """Send a user the voice of the others, once a first ``keepalive`` has come from this address.

        Subscribing again moves the user to another address.
        """
        key = self._check(user_id, address)
        known = self._members.get(user_id)
        if known is not None and known.listens_at == address:
            return
        is_new = known is None or known.listens_at is None
        if is_new and len(self.subscribers) >= _fanout.MAX_SUBSCRIBERS:
            raise HootError(f"{self.line}: has {_fanout.MAX_SUBSCRIBERS} subscribers already, which is the limit")
        member = self._member(user_id)
        before, member.listens_at = member.listens_at, address
        self._move(member, before, address)
        self._thread.tell(self, "subscribe", member.number, key)

    def unsubscribe(self, user_id: str) -> None:
        """A user leaves, and gives up the floor. The key changes."""
        member = self._members.get(user_id)
        if member is None or self.closed:
            return
        if member.listens_at is not None:
            self._thread.tell(self, "unsubscribe", member.number)
        if member.talks_at is not None:
            self._thread.tell(self, "revoke", member.number)
        self._remove(member)

    def on_vanished(self, number: int) -> str | None:
        """The thread has ended a silent subscription. Returns the user, or None if they have left meanwhile."""
        member = self._by_number.get(number)
        if member is None or self.closed:
            return None
        self.unsubscribe(member.user_id)
        return member.user_id

    # Talkers

    def allow(self, user_id: str, ssrc: int, address: Address) -> None:
        """Give a user the floor: pass on what comes from this address with this SSRC.

        Raises SsrcRefused as ``require_ssrc`` does, and FloorFull if too many talk already.
        """
        key = self._check(user_id, address)
        self.require_ssrc(user_id, ssrc)
        talkers = self.talkers
        if user_id not in talkers and len(talkers) >= _fanout.MAX_TALKERS:
            raise FloorFull(f"{self.line}: {_fanout.MAX_TALKERS} users talk already, which is the limit")
        member = self._member(user_id)
        before, member.talks_at = member.talks_at, address
        self._move(member, before, address)
        self._ssrcs[ssrc], member.ssrc = user_id, ssrc
        self._thread.tell(self, "allow", member.number, ssrc, key)
        if len(self._ssrcs) >= MAX_SSRCS:
            self._change_key_soon()

    def require_ssrc(self, user_id: str, ssrc: int) -> None:
        """Raise SsrcRefused unless a user may talk with this SSRC.

        Two who share an SSRC and a key would encrypt different voice with the same bytes (RFC 3711 section 9.1). So an
        SSRC belongs to the user who first had it under this key, or under one that somebody may still talk with.
        """
        if not 0 <= ssrc < 1 << 32:
            raise SsrcRefused(f"SSRC {ssrc}: expected 32 bits")
        before, until = self._ssrcs_before.get(ssrc, (user_id, 0.0))
        owners = {self._ssrcs.get(ssrc, user_id), before if self._loop.time() < until else user_id}
        if owners != {user_id}:
            raise SsrcRefused(f"SSRC {ssrc:#010x}: another user has it; expected one that is chosen at random")
        if ssrc not in self._ssrcs and list(self._ssrcs.values()).count(user_id) >= MAX_SSRCS_OF_ONE:
            raise SsrcRefused(
                f"SSRC {ssrc:#010x}: you had {MAX_SSRCS_OF_ONE} others under this key, which is the limit"
            )

    def revoke(self, user_id: str) -> None:
        """Take the floor from a user."""
        member = self._members.get(user_id)
        if member is None or member.talks_at is None or self.closed:
            return
        self._thread.tell(self, "revoke", member.number)
        if member.listens_at is None:
            self._remove(member)
        else:
            before, member.talks_at = member.talks_at, None
            self._move(member, before, None)

    # Members and their addresses

    def _member(self, user_id: str) -> _Member:
        member = self._members.get(user_id)
        if member is None:
            self._last_number += 1
            member = self._members[user_id] = self._by_number[self._last_number] = _Member(user_id, self._last_number)
        return member

    def _remove(self, member: _Member) -> None:
        for address in member.addresses:
            del self._owners[address]
        del self._members[member.user_id], self._by_number[member.number]
        self._change_key_soon()

    def _move(self, member: _Member, before: Address | None, after: Address | None) -> None:
        """A member has left one address for another. They may still use the first for the other purpose."""
        if before is not None and before not in member.addresses:
            del self._owners[before]
        if after is not None:
            self._owners[after] = member.user_id

    def _check(self, user_id: str, address: Address) -> int:
        """The address as the thread has it."""
        if self.closed:
            raise HootError(f"{self.line}: the hoot has ended")
        self._thread.require_room()
        try:
            host = ipaddress.IPv4Address(address.host)
        except ValueError:
            raise HootError(f"{address}: expected an IPv4 address") from None
        if host.is_multicast or host.is_unspecified or host == ipaddress.IPv4Address("255.255.255.255"):
            raise HootError(f"{address}: expected the address of one host")
        if not 0 < address.port < 1 << 16 or address == self.address:
            raise HootError(f"{address}: expected a port from 1 to 65535, and not the hoot's own address")
        if self._owners.get(address, user_id) != user_id:
            raise HootError(f"{address}: another user has this address")
        return key_of(host, address.port)

    # The key, and the end

    def _change_key_soon(self) -> None:
        due, now = self._changed_at + MIN_KEY_AGE_S, self._loop.time()
        if now >= due:
            self._change_key(now)
        else:
            self._key_timer.set(due)

    def _change_key(self, now: float) -> None:
        self.key = GroupKey.new(self.key.number + 1)
        self._keep_ssrcs(now)
        self._changed_at = now
        self._key_timer.set(now + KEY_LIFETIME_S)
        self._thread.on_key(self)

    def _keep_ssrcs(self, now: float) -> None:
        """Those in the hoot keep their SSRC under the new key. The others are free once nobody uses the keys before."""
        self._ssrcs_before = {ssrc: held for ssrc, held in self._ssrcs_before.items() if now < held[1]}
        for ssrc, user_id in self._ssrcs.items():
            self._ssrcs_before[ssrc] = (user_id, now + LISTENER_KEEPS_S)
        self._ssrcs = {member.ssrc: member.user_id for member in self._members.values() if member.ssrc is not None}

    def close(self) -> None:
        """End the hoot, at once for those in it. May be repeated."""
        if self._closed_with is None:
            self._closed_with = self.figures()
            self._key_timer.cancel()
            self._thread.tell(self, "close")

    def release(self) -> None:
        """Close the socket, which the thread no longer has."""
        self._socket.close()


def key_of(host: ipaddress.IPv4Address, port: int) -> int:
    """An address as ``key_of`` of ``room.pxd`` makes it: both parts as they lie in memory, in network byte order."""
    return int.from_bytes(host.packed, "little") << 16 | socket.htons(port)
