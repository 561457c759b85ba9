"""The SRTP master key that all who are in a hoot share, and SRTP with it while it changes.

A change in three steps, so that no packet is lost: signaling tells everyone the new key; listeners take it at once and
keep the one before for a while; talkers begin to use it a moment later. RFC 8870 has its senders wait likewise.
"""

from __future__ import annotations

import base64
import secrets
from dataclasses import dataclass, field

import pylibsrtp

from relay.wire.stun import MessageClass, Method, build_message

# AES-128 key and salt (RFC 3711 section 8.2).
MASTER_KEY_BYTES = 30
# SRTP with a 48-bit index needs 34 years for a key to wear out. The bound is the 16-bit sequence number: it must not
# wrap under one key, or else those who join later would guess the wrong index (RFC 3711 section 3.3.1). In 10 minutes
# there are 30,000 packets of 20 ms. A talker begins each key with a number below 2^15, and so ends below 2^16.
KEY_LIFETIME_S = 600
MAX_FIRST_SEQUENCE_NUMBER = (1 << 15) - 1
# Signaling reaches every softphone well within this time. A talker who waits longer is heard by those who have left.
TALKER_WAITS_S = 0.25
# Packets with the key before are on their way at most this long: a stalled connection delivers 2 s of them at once.
LISTENER_KEEPS_S = 5.0
# A listener shows the SFU this often that it is there: six times before the SFU takes it for gone.
KEEPALIVE_S = 5.0


def keepalive() -> bytes:
    """A sign of life for the SFU, to be sent from the address that is subscribed: a STUN Binding indication.

    RFC 8445 section 11 uses it for the same purpose. Nothing answers it.
    """
    return build_message(Method.BINDING, MessageClass.INDICATION, secrets.token_bytes(12))


@dataclass(frozen=True)
class GroupKey:
    """A master key. ``number`` grows by one with each key of a hoot."""

    number: int
    master_key: bytes = field(repr=False)

    @classmethod
    def new(cls, number: int) -> GroupKey:
        """A random key."""
        return cls(number, secrets.token_bytes(MASTER_KEY_BYTES))

    @property
    def crypto(self) -> str:
        """The key as a value of ``a=crypto`` (RFC 4568). The tag is the key's number."""
        inline = base64.b64encode(self.master_key).decode()
        return f"{self.number} AES_CM_128_HMAC_SHA1_80 inline:{inline}"

    @classmethod
    def parse(cls, crypto: str) -> GroupKey:
        """Read a value of ``a=crypto``. Raises ValueError."""
        tag, _, rest = crypto.strip().partition(" ")
        suite, _, inline = rest.partition(" ")
        if not (tag.isascii() and tag.isdigit() and len(tag) <= 9) or suite != "AES_CM_128_HMAC_SHA1_80":
            raise ValueError("a=crypto: expected a tag of up to 9 digits and AES_CM_128_HMAC_SHA1_80")
        method, _, text = inline.partition(":")
        # A lifetime or an MKI may follow after "|" (RFC 4568 section 6.1). Neither is in use here.
        master_key = base64.b64decode(text.partition("|")[0], validate=True)
        if method != "inline" or len(master_key) != MASTER_KEY_BYTES:
            raise ValueError(f"a=crypto: expected inline: and {MASTER_KEY_BYTES} bytes in Base64")
        return cls(int(tag), master_key)


class GroupCipher:
    """A softphone's SRTP in a hoot. ``now`` is any clock in seconds that only grows.

    A new key begins a new SRTP stream: the caller chooses a new first sequence number when ``talks_with`` changes.
    """

    def __init__(self, key: GroupKey) -> None:
        self._newest = self._speaking = key
        self._speaks_from = self._keeps_until = float("-inf")
        self._outbound = _session(key, pylibsrtp.Policy.SSRC_ANY_OUTBOUND)
        self._inbound = _session(key, pylibsrtp.Policy.SSRC_ANY_INBOUND)
        self._inbound_before: pylibsrtp.Session | None = None

    def use(self, key: GroupKey, now: float) -> None:
        """Take a new key. One that is not newer, such as the same again, changes nothing."""
        if key.number <= self._newest.number:
            return
        self._newest = key
        self._speaks_from, self._keeps_until = now + TALKER_WAITS_S, now + LISTENER_KEEPS_S
        self._inbound_before = self._inbound
        self._inbound = _session(key, pylibsrtp.Policy.SSRC_ANY_INBOUND)

    def talks_with(self, now: float) -> int:
        """The number of the key that a packet would be protected with."""
        if self._speaking is not self._newest and now >= self._speaks_from:
            self._speaking = self._newest
            self._outbound = _session(self._newest, pylibsrtp.Policy.SSRC_ANY_OUTBOUND)
        return self._speaking.number

    def protect(self, packet: bytes, now: float) -> bytes:
        """An RTP packet as SRTP."""
        self.talks_with(now)
        return self._outbound.protect(packet)

    def unprotect(self, packet: bytes, now: float) -> bytes:
        """An SRTP packet as RTP. Raises pylibsrtp.Error if it is neither under this key nor the one before."""
        if now >= self._keeps_until:
            self._inbound_before = None
        try:
            return self._inbound.unprotect(packet)
        except pylibsrtp.Error:
            if self._inbound_before is None:
                raise
        return self._inbound_before.unprotect(packet)


def _session(key: GroupKey, direction: int) -> pylibsrtp.Session:
    return pylibsrtp.Session(pylibsrtp.Policy(key=key.master_key, ssrc_type=direction))
