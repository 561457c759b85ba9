"""The security of the signed APIs: from an HTTP request to the key it was signed with."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web

from relay.emulator.apis.nonces import Nonces
from relay.emulator.apis.signing import ALGORITHM, DEFAULT_PORTS, SignedRequest
from relay.emulator.apis.verifying import ApiKey, SignatureRefused, check, check_allowed, parse_authorization
from relay.emulator.http.errors import ApiError
from relay.emulator.names import Api
from relay.emulator.store import Store, tables
from relay.rate_limit import RateLimit

MAX_ADDRESS_CHARACTERS = 64
# To look for the mistake in a wrong signature takes some 10 ms, in which the loop does nothing else. A developer who
# tries things sends one a second. All others of a key are refused without a reason.
EXPLAINED_PER_S = 5.0


class Keys:
    """The API keys of the database, and the nonces that each has used up."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._nonces = Nonces()
        self._explained = RateLimit(EXPLAINED_PER_S)

    async def find(self, name: str) -> ApiKey | None:
        """The key of this name, as it is now."""
        async with self._store.reading() as session:
            row = await session.get(tables.ApiKey, name)
        if row is None:
            return None
        networks = tuple(ipaddress.ip_network(each) for each in row.networks)
        return ApiKey(row.api_key, row.secret, row.firm_id, row.enabled, networks, frozenset(row.apis))

    async def check(
        self, signed: SignedRequest, authorization: str | None, date: str | None, *, address: str, api: Api
    ) -> ApiKey:
        """The key that a request was signed with, if it may be used for this. Raises SignatureRefused."""
        credentials = parse_authorization(authorization)
        # PostgreSQL does not take a NUL. No name of a key has one.
        found = await self.find(credentials.key) if credentials.key.isprintable() else None
        key = check(
            signed,
            credentials,
            date,
            found,
            nonces=self._nonces,
            now=self._clock(),
            may_explain=lambda: self._explained.allows(time.monotonic(), credentials.key),
        )
        check_allowed(key, address, api)
        return key


class Signed:
    """The security of an endpoint that takes signed requests. Returns the ApiKey."""

    name = "signature"
    scheme: Mapping[str, Any] = {
        "type": "apiKey",
        "in": "header",
        "name": "Authorization",
        "description": f"{ALGORITHM} <api key>:<nonce>:<base64 signature>, with a Date header. See docs/emulator.md.",
    }

    def __init__(self, keys: Keys, api: Api) -> None:
        self._keys = keys
        self._api = api

    async def check(self, request: web.Request, body: bytes) -> ApiKey:
        """Who asks. Raises ApiError 401 if the signature does not say, 403 if they may not ask."""
        try:
            return await self._keys.check(
                signed_request(request, body),
                request.headers.get("Authorization"),
                request.headers.get("Date"),
                address=client_address(request),
                api=self._api,
            )
        except SignatureRefused as refused:
            raise api_error(refused) from None


def api_error(refused: SignatureRefused) -> ApiError:
    """A refusal as an answer over HTTP."""
    headers = {"WWW-Authenticate": ALGORITHM} if refused.status == 401 else {}
    return ApiError(
        refused.status, refused.code, refused.message, where=refused.where, expected=refused.expected, headers=headers
    )


def signed_request(request: web.Request, body: bytes, *, schemes: Mapping[str, str] | None = None) -> SignedRequest:
    """What of a request was signed. ``schemes`` gives the client's name of a scheme, such as wss for https.

    Raises ApiError 400 if a proxy on this machine gives a scheme that does not exist.
    """
    scheme = _forwarded(request, "X-Forwarded-Proto")
    if scheme is None:
        scheme = request.scheme
    elif scheme not in DEFAULT_PORTS:
        raise _wrong_header("X-Forwarded-Proto", scheme, f"one of {', '.join(DEFAULT_PORTS)}")
    path, _, query = request.raw_path.partition("?")
    return SignedRequest(
        request.method,
        (schemes or {}).get(scheme, scheme),
        request.host,
        path,
        request.headers.get("Content-Type", ""),
        body,
        query,
    )


def client_address(request: web.Request) -> str:
    """The address that the request came from. A proxy on this machine, such as the relay, says who its client is.

    Raises ApiError 400 if what it says is not an address: the request must not pass as one of this machine.
    """
    named = _forwarded(request, "X-Forwarded-For")
    if named is None:
        return request.remote or "0.0.0.0"  # noqa: S104 - nobody's address, which no list has
    try:
        return str(ipaddress.ip_address(named))
    except ValueError:
        raise _wrong_header("X-Forwarded-For", named, "an IP address at its end, without a port") from None


def _wrong_header(name: str, value: str, expected: str) -> ApiError:
    return ApiError(400, "wrong_header", f"The header {name} ends with {value!a}.", where=name, expected=expected)


def _forwarded(request: web.Request, header: str) -> str | None:
    """What a proxy on this machine has added last to a header, or None if none has. Others are not believed."""
    try:
        peer = ipaddress.ip_address((request.remote or "").partition("%")[0])
    except ValueError:
        return None
    values = request.headers.getall(header, [])
    if not peer.is_loopback or not values:
        return None
    return values[-1].rpartition(",")[2].strip().lower()[:MAX_ADDRESS_CHARACTERS]
