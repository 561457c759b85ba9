"""What probes saw. Values only: a check reads them, a test makes them up.

Wherever something may not have been tested there is an ``Untested``, with the reason, in place of the value.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from relay.addresses import Address
from relay.client.connect import Proxy

DIRECT = "direct"


@dataclass(frozen=True, slots=True)
class Untested:
    """Nobody looked. ``why`` is a whole reason, in lower case: "no credentials were given"."""

    why: str


class Step(StrEnum):
    """The steps of a connection, in their order. A failure is at one of them."""

    NAME = "name"
    TCP = "TCP"
    PROXY = "web proxy"
    TLS = "TLS"
    HTTP = "HTTP"
    UPGRADE = "upgrade"
    FRAMES = "frames"


@dataclass(frozen=True, slots=True)
class Failure:
    """At which step it failed. ``status`` is that of HTTP, 0 without one; ``logins`` what a proxy's 407 offers."""

    step: Step
    text: str
    status: int = 0
    logins: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NameSeen:
    """What DNS says. ``fault`` is empty if it has addresses."""

    addresses: tuple[str, ...] = ()
    fault: str = ""


class TlsFault(StrEnum):
    """What is wrong with a server's certificate, as this machine sees it."""

    UNTRUSTED = "untrusted"
    EXPIRED = "expired"
    WRONG_NAME = "wrong name"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class TlsSeen:
    """The certificate that a server showed. ``fault`` is None if this machine accepts it.

    ``public`` is true if it proves that it was logged (RFC 6962), as those of public authorities are. ``expected`` is
    false if it was signed by another authority than the plan expects, None if the plan expects none.
    """

    subject: str
    issuer: str
    names: tuple[str, ...]
    not_after: datetime.datetime
    fault: TlsFault | None
    fault_text: str
    public: bool
    expected: bool | None


@dataclass(frozen=True, slots=True)
class SiteSeen:
    """One site by one way. ``failure`` is None if it answered in HTTP. Times are milliseconds."""

    site: str
    way: str
    failure: Failure | None
    tls: TlsSeen | None = None
    http_status: int = 0
    tcp_ms: float | None = None


class Frames(StrEnum):
    """What became of WebSocket frames after a 101."""

    BOTH_WAYS = "pass both ways"
    BUFFERED = "pass only when a buffer is full"
    UP_SWALLOWED = "from the client are swallowed"
    SWALLOWED = "are swallowed"


@dataclass(frozen=True, slots=True)
class WebSocketSeen:
    """One WebSocket, by one way: refused (``failure``), or open, and what became of frames."""

    site: str
    way: str
    failure: Failure | None
    frames: Frames | None = None


@dataclass(frozen=True, slots=True)
class PollingSeen:
    """socket.io by polling at one site."""

    site: str
    way: str
    failure: Failure | None


@dataclass(frozen=True, slots=True)
class StunSeen:
    """A Binding. ``round_trip_ms`` is None if nobody answered, ``fault`` says what happened instead."""

    host: str
    region: str
    address: Address
    round_trip_ms: float | None
    mapped: Address | None
    fault: str = ""


@dataclass(frozen=True, slots=True)
class TurnSeen:
    """An allocation at a host, and packets between this machine and the relayed address, past the TURN client.

    ``up`` and ``down`` are of ``sent`` packets each: to the relayed address, and from it.
    """

    host: str
    region: str
    relayed: Address | None
    sent: int = 0
    up: int = 0
    down: int = 0
    fault: str = ""
    code: int = 0


@dataclass(frozen=True, slots=True)
class CarrierSeen:
    """A carrier: opened or not, and whether a question got its answer. ``certain`` is as in ``Carrier``."""

    carrier: str
    way: str
    failure: Failure | None
    answered: bool = False
    detail: str = ""
    certain: bool = True


@dataclass(frozen=True, slots=True)
class VoiceSeen:
    """Voice over a path, there and back through the TURN server: for each packet its delay in ms, None if lost."""

    path: str
    over_udp: bool
    delays_ms: tuple[float | None, ...]
    # How late our own packets left at worst: a busy machine must not be taken for a bad network.
    late_ms: float = 0.0
    fault: str = ""


class ProxySource(StrEnum):
    """Where the answer to "which proxy?" comes from."""

    SETTING = "setting"
    ENVIRONMENT = "environment"
    PAC = "PAC"
    WPAD = "WPAD"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class ProxySeen:
    """Which way each site is to be reached: the proxies to try in turn, and None for a direct connection.

    ``answers`` has the text of the answer for each site, ``faults`` what went wrong on the way to it.
    """

    source: ProxySource
    where: str = ""
    ways: Mapping[str, tuple[Proxy | None, ...]] = field(default_factory=dict)
    answers: Mapping[str, str] = field(default_factory=dict)
    faults: Sequence[str] = ()

    def way_of(self, site: str) -> Proxy | None:
        """The first way: clients of this vendor take only the first entry of an answer."""
        return (self.ways.get(site) or (None,))[0]


@dataclass(frozen=True, slots=True)
class Seen:
    """All of it. What a plan has no place for is an empty tuple or an Untested."""

    proxy: ProxySeen = ProxySeen(ProxySource.NONE)
    names: Mapping[str, NameSeen] | Untested = Untested("not asked for")
    sites: Sequence[SiteSeen] = ()
    websockets: Sequence[WebSocketSeen] = ()
    polling: Sequence[PollingSeen] = ()
    stun: Sequence[StunSeen] | Untested = Untested("not asked for")
    turn: Sequence[TurnSeen] | Untested = Untested("not asked for")
    carriers: Sequence[CarrierSeen] | Untested = Untested("no relay was named")
    voice: Sequence[VoiceSeen] | Untested = Untested("not asked for")


def way_name(proxy: Proxy | None) -> str:
    """A way as people read it."""
    return DIRECT if proxy is None else f"through {proxy.address}"
