"""Who sent a request: the server's side of the long-term credential mechanism (RFC 8489 section 9.2.4), sans I/O.

``Authenticator`` returns an AuthenticRequest or raises TurnError, which carries code, words and attributes of the
refusal. It keeps no state for a client, except how many answers each source has had lately.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass

from relay.addresses import Address
from relay.rate_limit import RateLimit
from relay.turn.allocation import Allocation
from relay.turn.credentials import CredentialStore, NonceMint, long_term_keys, prepared
from relay.wire.stun import AttributeType, Message

_INTEGRITY_BY_PREFERENCE = (AttributeType.MESSAGE_INTEGRITY_SHA256, AttributeType.MESSAGE_INTEGRITY)


class TurnError(Exception):
    """A request is answered with this error."""

    def __init__(self, code: int, reason: str = "", attributes: tuple[tuple[int, bytes], ...] = ()) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason
        self.attributes = attributes


def unknown_attributes(types: tuple[int, ...]) -> TurnError:
    """420, with the types that are not understood (RFC 8489 section 6.3.1)."""
    value = b"".join(kind.to_bytes(2) for kind in types)
    return TurnError(420, "", ((AttributeType.UNKNOWN_ATTRIBUTES, value),))


@dataclass(slots=True)
class AuthenticRequest:
    """A request whose sender is known; its answer carries ``integrity_kind``, made with ``key``."""

    client: Address
    message: Message
    username: str
    key: bytes
    integrity_kind: int


class Authenticator:
    """Checks the credentials of requests to one server, and bounds its answers to unauthenticated requests.

    ``answers_per_s`` is that bound for each source (address and port); 0 means "no bound".
    """

    def __init__(
        self,
        realm: str,
        credentials: CredentialStore,
        nonces: NonceMint,
        unix_time: Callable[[], float],
        answers_per_s: float,
    ) -> None:
        self._realm = realm
        self._credentials = credentials
        self._nonces = nonces
        self._unix_time = unix_time
        self._limit = RateLimit(answers_per_s)
        self._decoy_password = secrets.token_hex(16)

    def may_answer(self, now: float, client: Address) -> bool:
        """Take one answer from the client's share. Asked before any work is done for a request."""
        return self._limit.allows(now, str(client))

    def authenticate(
        self, now: float, client: Address, message: Message, allocation: Allocation | None = None
    ) -> AuthenticRequest:
        """The branches of section 9.2.4, in its order. Raises TurnError. A success costs the client nothing.

        ``allocation`` is the client's own, if it lives. What proved its user then does so now, even if the credentials
        have expired: a call may last longer than they do. coturn does the same.
        """
        kind = next((kind for kind in _INTEGRITY_BY_PREFERENCE if kind in message.integrity_offsets), None)
        if kind is None:
            raise self._challenge(401, client, now)
        username = message.text(AttributeType.USERNAME)
        nonce = message.get(AttributeType.NONCE)
        if username is None and message.get(AttributeType.USERHASH) is not None:
            # No nonce of ours offers user name anonymity, so the client cannot expect it.
            raise unknown_attributes((AttributeType.USERHASH,))
        if username is None or nonce is None or message.get(AttributeType.REALM) is None:
            raise TurnError(400, "USERNAME, REALM and NONCE are required")
        if not self._nonces.accepts(nonce.decode(errors="replace"), client, now):
            raise self._challenge(438, client, now)
        key = self._proven_key(username, message, kind, allocation)
        if key is None:
            raise self._challenge(401, client, now)
        self._limit.give_back(str(client))
        return AuthenticRequest(client, message, username, key, kind)

    def _proven_key(self, username: str, message: Message, kind: int, allocation: Allocation | None) -> bytes | None:
        keys = self._credentials.keys(username, self._realm, self._unix_time())
        if not keys and allocation is not None and allocation.username == prepared(username):
            keys = (allocation.key,)
        # An unknown user costs the same work and gets the same answer as a wrong password: all keys are tried.
        tried = keys or long_term_keys(username, self._realm, self._decoy_password)
        proven = [key for key in tried if message.has_integrity(key, kind)]
        return proven[0] if keys and proven else None

    def _challenge(self, code: int, client: Address, now: float) -> TurnError:
        realm = (AttributeType.REALM, self._realm.encode())
        nonce = (AttributeType.NONCE, self._nonces.mint(client, now).encode())
        return TurnError(code, "", (realm, nonce))
