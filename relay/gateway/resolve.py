"""Names to literal addresses that may be connected to: for CONNECT, CONNECT-UDP and the names of upstreams.

Each answer is judged by the one classifier (``relay.addresses``), and what comes back is literal. Whoever connects
uses that and never the name again, so it does not matter if the name answers otherwise a moment later.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum

from relay.addresses import Address, RelayPolicy, canonical_host
from relay.errors import UpstreamError

# A resolver that takes longer is as good as none.
RESOLVE_TIMEOUT_S = 5.0
# Load balancers have some eight addresses; nobody tries more before giving up.
MAX_ANSWERS = 16
# Names that clients ask for are looked up on so many threads of their own. The loop's are few (uvloop has four), and
# slow names must not take them from those of upstreams: a lookup that nobody waits for any more holds its thread still.
MAX_LOOKUPS = 16
# RFC 1035; getaddrinfo would refuse a longer one with less to say.
MAX_NAME = 253
# Of a peer's text in a log line or an error.
_SHOWN = 80

Lookup = Callable[[str], Awaitable[Sequence[str]]]


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

    ``refused`` are the answers that may not be relayed to, if it is for them.
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


async def system_lookup(host: str) -> list[str]:
    """What the system's resolver answers, as literal addresses. Raises OSError or UnicodeError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(answer[4][0]) for answer in found]


_client_threads = ThreadPoolExecutor(MAX_LOOKUPS, "client lookup")


async def client_lookup(host: str) -> list[str]:
    """The same for names that clients choose, on threads of their own. Raises OSError or UnicodeError."""
    lookup = functools.partial(socket.getaddrinfo, host, None, type=socket.SOCK_STREAM)
    found = await asyncio.get_running_loop().run_in_executor(_client_threads, lookup)
    return [str(answer[4][0]) for answer in found]


def shown(text: str) -> str:
    """A peer's text for a log line or an error: escaped, and cut."""
    escaped = text.encode("unicode_escape").decode("ascii")
    return escaped if len(escaped) <= _SHOWN else escaped[:_SHOWN] + "..."


class Resolver:
    """Resolves and judges. ``policy`` may be replaced at any time; it counts from the next answer on."""

    def __init__(self, policy: RelayPolicy, lookup: Lookup = client_lookup) -> None:
        self.policy = policy
        self._lookup = lookup
        self._slots = asyncio.Semaphore(MAX_LOOKUPS)

    async def resolve(self, host: str, port: int) -> list[Address]:
        """The literal addresses of a name, or of a literal without brackets, that may be connected to: at least one.

        Those that may not are left out, in whatever order they came. At most ``MAX_ANSWERS``, within
        ``RESOLVE_TIMEOUT_S`` seconds. Raises ResolveError.
        """
        if (literal := _parse_literal(host)) is not None:
            answers: Sequence[str] = [literal]
        elif _looks_like_a_number(host):
            # 2130706433, 0x7f.1, 0177.0.0.1: the system would read them as IPv4, and so hide what is asked for.
            detail = f"{shown(host)}: no name, nor an address as it is written"
            raise ResolveError(ResolveFailure.DESTINATION_IP_PROHIBITED, detail, [shown(host)])
        else:
            answers = await self._ask(host)
        answers = answers[:MAX_ANSWERS]
        permitted = [_canonical(answer) for answer in answers if self.policy.permits(answer)]
        if not permitted:
            refused = [shown(answer) for answer in answers]
            detail = f"{shown(host)}: {', '.join(refused)} may not be relayed to (allowed_networks)"
            raise ResolveError(ResolveFailure.DESTINATION_IP_PROHIBITED, detail, refused)
        return [Address(one, port) for one in dict.fromkeys(permitted)]

    async def _ask(self, host: str) -> Sequence[str]:
        if not _could_be_a_name(host):
            raise ResolveError(ResolveFailure.DNS_ERROR, f"{shown(host)}: no host name")
        try:
            async with asyncio.timeout(RESOLVE_TIMEOUT_S), self._slots:
                answers = await self._lookup(host)
        except TimeoutError:
            raise ResolveError(
                ResolveFailure.DNS_TIMEOUT, f"{shown(host)}: no answer within {RESOLVE_TIMEOUT_S:g} s"
            ) from None
        except (OSError, UnicodeError) as error:
            raise ResolveError(ResolveFailure.DNS_ERROR, f"{shown(host)}: {error}") from error
        if not answers:
            raise ResolveError(ResolveFailure.DNS_ERROR, f"{shown(host)}: the name has no address")
        return answers


def _parse_literal(host: str) -> str | None:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return None
    return host


def _canonical(answer: str) -> str:
    return canonical_host(ipaddress.ip_address(answer))


def _looks_like_a_number(host: str) -> bool:
    """True if the last label is a number: no top-level domain is, and inet_aton reads many such texts."""
    last = host.rstrip(".").rpartition(".")[2].lower()
    return last.isdigit() or last.startswith("0x")


def _could_be_a_name(host: str) -> bool:
    labels = host.removesuffix(".").split(".")
    return (
        len(host) <= MAX_NAME
        and host.isascii()
        and all(0 < len(label) <= 63 and label.replace("-", "").replace("_", "").isalnum() for label in labels)
    )
