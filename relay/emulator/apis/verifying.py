"""The server's side of signatures: whose a request is, and whether they may do this. Pure: ``now`` is an argument.

401 and 403 are kept apart. 401 means that the request does not prove who sent it. 403 means that its sender is known,
and may not do this, or not from here.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import email.utils
import hashlib
import hmac
import ipaddress
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from relay.addresses import IpNetwork
from relay.emulator.apis.nonces import Nonces, NoncesFull
from relay.emulator.apis.signing import ALGORITHM, SignedRequest, http_date, new_nonce, string_to_sign
from relay.emulator.apis.signing_faults import explain

# How far a client's clock may be off. Five minutes is what Kerberos and other signed APIs allow: a clock without NTP
# drifts less than that in months. A nonce must be remembered for twice as long.
MAX_SKEW_S = 300
# An Authorization header is about 190 bytes long: a key of at most 63, a nonce of 36, a signature of 88.
MAX_AUTHORIZATION_CHARACTERS = 512


class SignatureRefused(Exception):
    """A request is not taken.

    ``status`` is 401 if the request does not prove who sent it, 403 if its sender is known and may not do this, 429
    if they have asked too often.
    """

    def __init__(self, status: int, code: str, message: str, *, where: str = "Authorization", expected: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.where, self.expected = status, code, message, where, expected


@dataclass(frozen=True, slots=True)
class Credentials:
    """What an ``Authorization`` header says."""

    key: str
    nonce: str
    signature: str


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as the server knows it. Nobody may use it from outside of ``networks``."""

    key: str
    secret: str = field(repr=False)
    firm: str
    enabled: bool = True
    networks: tuple[IpNetwork, ...] = ()
    apis: Collection[str] = ()


def parse_authorization(header: str | None) -> Credentials:
    """Read an ``Authorization`` header. Raises SignatureRefused."""
    form = f"{ALGORITHM} <api key>:<nonce>:<base64 signature>"
    if not header:
        raise SignatureRefused(401, "unsigned", "the request has no Authorization header", expected=form)
    algorithm, _, rest = header.strip().partition(" ")
    parts = rest.strip().split(":")
    if algorithm != ALGORITHM:
        message = f"Authorization begins with {_shown(algorithm)}"
        raise SignatureRefused(401, "unknown_algorithm", message, expected=form)
    if len(header) > MAX_AUTHORIZATION_CHARACTERS or len(parts) != 3 or not all(parts):
        message = f"Authorization has {len(header)} characters, and after {ALGORITHM} {len(parts)} parts, not 3"
        raise SignatureRefused(401, "malformed_authorization", message, expected=form)
    return Credentials(*parts)


def check(
    request: SignedRequest,
    credentials: Credentials,
    date: str | None,
    key: ApiKey | None,
    *,
    nonces: Nonces,
    now: float,
    may_explain: Callable[[], bool] = lambda: True,
) -> ApiKey:
    """The key that a request was signed with. Raises SignatureRefused, with 401 or 429.

    ``key`` is what the server knows by this name. A nonce is used up only by a right signature: others must not be
    able to fill the memory. ``may_explain`` is asked before the mistake in a wrong signature is looked for.
    """
    known = _enabled(key, credentials)
    sent = _date(date)
    _check_nonce(credentials.nonce)
    _check_signature(request, credentials, date or "", known, may_explain)
    _check_skew(sent, now)
    _use_up(nonces, known, credentials.nonce, sent, now)
    return known


def check_allowed(key: ApiKey, address: str, api: str) -> None:
    """Whether the owner of a key, who is known by now, may do this. Raises SignatureRefused, always with 403."""
    host = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(host, ipaddress.IPv6Address) and host.ipv4_mapped:
        host = host.ipv4_mapped
    if not any(host in network for network in key.networks):
        listed = ", ".join(str(network) for network in key.networks) or "no address at all"
        message = f"the key {key.key} may not be used from {host}"
        raise SignatureRefused(403, "address_not_allowed", message, where="address", expected=listed)
    if api not in key.apis:
        message = f"the key {key.key} is not for the API {api}"
        raise SignatureRefused(403, "api_not_allowed", message, where="api key", expected=", ".join(sorted(key.apis)))


def _enabled(key: ApiKey | None, credentials: Credentials) -> ApiKey:
    if key is None:
        message = f"no key is named {_shown(credentials.key)}"
        raise SignatureRefused(401, "unknown_key", message, expected="an API key of the fixtures or the portal")
    if not key.enabled:
        message = f"the key {key.key} is disabled"
        raise SignatureRefused(401, "disabled_key", message, expected="a key that is enabled in the portal")
    return key


def _date(header: str | None) -> float:
    expected = "a date such as Fri, 27 Nov 2026 12:00:00 GMT"
    if not header:
        raise SignatureRefused(401, "no_date", "the request has no Date header", where="Date", expected=expected)
    try:
        date = email.utils.parsedate_to_datetime(header)
        # Without a zone, or with "-0000", it would be read as local time.
        return date.replace(tzinfo=date.tzinfo or datetime.UTC).timestamp()
    except (ValueError, OverflowError):
        message = f"the Date header cannot be read: {_shown(header)}"
        raise SignatureRefused(401, "malformed_date", message, where="Date", expected=expected) from None


def _check_nonce(nonce: str) -> None:
    try:
        good = uuid.UUID(nonce).version == 4 and len(nonce) == 36
    except ValueError:
        good = False
    if not good:
        message = f"the nonce is not a random UUID: {_shown(nonce)}"
        raise SignatureRefused(401, "malformed_nonce", message, expected=f"a UUID of version 4, such as {new_nonce()}")


def _check_signature(
    request: SignedRequest, credentials: Credentials, date: str, key: ApiKey, may_explain: Callable[[], bool]
) -> None:
    text = string_to_sign(request, key.key, credentials.nonce, date)
    try:
        given = base64.b64decode(credentials.signature, validate=True)
    except (binascii.Error, ValueError):
        given = b""
    if hmac.compare_digest(given, hmac.digest(key.secret.encode(), text, hashlib.sha512)):
        return
    if not may_explain():
        message = "the signature does not match, and the key has too many wrong ones now to look for the mistake"
        expected = "another attempt in a second: its answer may name the field that differs"
        raise SignatureRefused(401, "wrong_signature", message, where="signature", expected=expected)
    fault = explain(request, credentials.signature, key.secret, key=key.key, nonce=credentials.nonce, date=date)
    raise SignatureRefused(401, "wrong_signature", fault.told, where=fault.field, expected=fault.expected)


def _check_skew(sent: float, now: float) -> None:
    if abs(skew := sent - now) > MAX_SKEW_S:
        message = f"the Date header is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the server's clock"
        expected = f"at most {MAX_SKEW_S} s; the server has {http_date(now)}"
        raise SignatureRefused(401, "clock_skew", message, where="Date", expected=expected)


def _use_up(nonces: Nonces, key: ApiKey, nonce: str, sent: float, now: float) -> None:
    try:
        fresh = nonces.use(key.key, uuid.UUID(nonce), sent + MAX_SKEW_S, now)
    except NoncesFull as full:
        message = f"the key {key.key} has signed too many requests"
        raise SignatureRefused(429, "too_many_requests", message, where="nonce", expected=str(full)) from None
    if not fresh:
        message = f"the nonce {nonce} was used before: the request is a copy of an earlier one"
        raise SignatureRefused(401, "replayed_nonce", message, where="nonce", expected="a new UUID for each request")


def _shown(text: str) -> str:
    """What a client sent, short and without anything that a terminal would obey."""
    return ascii(text[:64])
