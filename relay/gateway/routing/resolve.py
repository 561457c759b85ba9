"""Names to literal addresses that may be connected to: for CONNECT, CONNECT-UDP and the names of upstreams.

Each answer is judged by the one classifier (``relay.addresses``), and what comes back is literal. Callers connect to
that and never use the name again, so it does not matter if the name answers otherwise a moment later.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from relay import deadlines
from relay.addresses import Address, RelayPolicy, canonical_host, source_of
from relay.errors import UpstreamError
from relay.gateway.routing.lookups import RESOLVE_TIMEOUT_S, Lookup

# Load balancers have about eight addresses, and no client tries more than this before it gives up.
MAX_ANSWERS = 16
# Lookups at once, by one service: CONNECT, CONNECT-UDP, the TURN servers, the servers of signaling. Slow names of one
# leave room for the others.
MAX_OF_SERVICE = 64
# Lookups at once, for one client address. Behind a web proxy a whole firm has one address. But its clients ask for the
# same few names, and lookups of the same name are shared.
MAX_OF_SOURCE = 8
# Characters of a name (RFC 1035).
MAX_NAME = 253
# Characters of a peer's text in a log line or an error.
_SHOWN = 80


class ResolveFailure(StrEnum):
    """Why a host gives no address to connect to, in the words of Proxy-Status (RFC 9209)."""

    DNS_ERROR = "dns_error"
    DNS_TIMEOUT = "dns_timeout"
    DESTINATION_IP_PROHIBITED = "destination_ip_prohibited"


_STATUS = {
    ResolveFailure.DNS_ERROR: 502,
    ResolveFailure.DNS_TIMEOUT: 504,
    ResolveFailure.DESTINATION_IP_PROHIBITED: 403,
}


class ResolveError(UpstreamError):
    """A host gives no address to connect to. The message may go into a log or a page: it is escaped and short.

    ``refused`` has the answers that may not be relayed to, if that is why.
    """

    def __init__(self, failure: ResolveFailure, detail: str, refused: Sequence[str] = ()) -> None:
        super().__init__(detail)
        self.failure = failure
        self.refused = tuple(refused)

    @property
    def status(self) -> int:
        """The HTTP status to answer with: 502, 504, or 403."""
        return _STATUS[self.failure]

    @property
    def proxy_status(self) -> str:
        """The value of the Proxy-Status field to answer with."""
        return f"relay; error={self.failure}"


def shown(text: str) -> str:
    """A peer's text for a log line or an error: escaped, and cut."""
    escaped = text.encode("unicode_escape").decode("ascii")
    return escaped if len(escaped) <= _SHOWN else escaped[:_SHOWN] + "..."


@dataclass
class _Source:
    """A client address that has lookups. It is forgotten when it has none."""

    lookups: int = 0
    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_OF_SOURCE))


class Resolver:
    """Resolves and judges for one service. ``policy`` may be replaced at any time, and judges from then on."""

    def __init__(self, policy: RelayPolicy, lookup: Lookup) -> None:
        self.policy = policy
        self._lookup = lookup
        self._slots = asyncio.Semaphore(MAX_OF_SERVICE)
        self._sources: dict[str, _Source] = {}
        # Names that are being looked up, each with what was answered, or why nothing was.
        self._asked: dict[str, asyncio.Future[Sequence[str] | ResolveError]] = {}

    async def resolve(self, host: str, port: int, source: str = "") -> list[Address]:
        """The literal addresses of a name, or of a literal without brackets, that may be connected to: at least one.

        Addresses that may not are left out, wherever they were in the answer. There are at most ``MAX_ANSWERS``, within
        ``RESOLVE_TIMEOUT_S`` seconds. ``source`` is the address of the client that asks. Raises ResolveError.
        """
        if (literal := _parse_literal(host)) is not None:
            answers: Sequence[str] = [literal]
        elif _looks_like_a_number(host):
            # 2130706433, 0x7f.1, 0177.0.0.1: the system would read them as IPv4, and so hide what is asked for.
            detail = f"{shown(host)}: expected a host name, or an IP address in its usual spelling"
            raise ResolveError(ResolveFailure.DESTINATION_IP_PROHIBITED, detail, [shown(host)])
        else:
            answers = await self._ask(host, source_of(source))
        answers = answers[:MAX_ANSWERS]
        permitted = [_canonical(answer) for answer in answers if self.policy.permits(answer)]
        if not permitted:
            refused = [shown(answer) for answer in answers]
            detail = f"{', '.join(refused)} may not be relayed to (allowed_networks)"
            if refused != [shown(host)]:
                detail = f"{shown(host)}: {detail}"
            raise ResolveError(ResolveFailure.DESTINATION_IP_PROHIBITED, detail, refused)
        return [Address(one, port) for one in dict.fromkeys(permitted)]

    async def _ask(self, host: str, source: str) -> Sequence[str]:
        if not _could_be_a_name(host):
            raise ResolveError(ResolveFailure.DNS_ERROR, f"{shown(host)}: not a host name")
        try:
            async with deadlines.timeout(RESOLVE_TIMEOUT_S):
                answer = await self._share(host, source)
        except TimeoutError:
            answer = _timed_out(host)
        if isinstance(answer, ResolveError):
            raise answer
        return answer

    async def _share(self, host: str, source: str) -> Sequence[str] | ResolveError:
        """Wait for a lookup of this name that is under way already, or look it up when there is room."""
        while True:
            if (asked := self._asked.get(host)) is not None:
                await asyncio.wait([asked])
                if not asked.cancelled():
                    return asked.result()
                continue  # the client that had asked has gone
            async with self._slot(source):
                if host not in self._asked:
                    return await self._lead(host)

    @contextlib.asynccontextmanager
    async def _slot(self, source: str) -> AsyncIterator[None]:
        """Room for one lookup of this source. Its own bound comes first, so that it takes few of the common places."""
        known = self._sources.setdefault(source, _Source())
        known.lookups += 1
        try:
            async with known.slots, self._slots:
                yield
        finally:
            known.lookups -= 1
            if not known.lookups:
                del self._sources[source]

    async def _lead(self, host: str) -> Sequence[str] | ResolveError:
        asked = self._asked[host] = asyncio.get_running_loop().create_future()
        try:
            answer = await self._look_up(host)
            asked.set_result(answer)
            return answer
        finally:
            asked.cancel()
            del self._asked[host]

    async def _look_up(self, host: str) -> Sequence[str] | ResolveError:
        try:
            answers = await self._lookup(host)
        except TimeoutError:
            return _timed_out(host)
        except (OSError, UnicodeError) as error:
            return ResolveError(ResolveFailure.DNS_ERROR, f"{shown(host)}: {error}")
        return answers or ResolveError(ResolveFailure.DNS_ERROR, f"{shown(host)}: the name has no address")


def _timed_out(host: str) -> ResolveError:
    return ResolveError(ResolveFailure.DNS_TIMEOUT, f"{shown(host)}: no answer within {RESOLVE_TIMEOUT_S:g} s")


def _parse_literal(host: str) -> str | None:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return None
    return host


def _canonical(answer: str) -> str:
    return canonical_host(ipaddress.ip_address(answer))


def _looks_like_a_number(host: str) -> bool:
    """True if the last label is a number: no top-level domain is one, and inet_aton reads many such texts."""
    last = host.rstrip(".").rpartition(".")[2].lower()
    return last.isdigit() or last.startswith("0x")


def _could_be_a_name(host: str) -> bool:
    labels = host.removesuffix(".").split(".")
    return (
        len(host) <= MAX_NAME
        and host.isascii()
        and all(0 < len(label) <= 63 and label.replace("-", "").replace("_", "").isalnum() for label in labels)
    )
