"""What can go wrong, at which hop, and with which figures. Pure: no clock, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from relay.catalog import Catalog
from relay.emulator.marks import Mark

# A fault that is forgotten over a weekend is a day's work lost on Monday: none lasts longer, unless it has no end.
MAX_SECONDS = 86_400
USERNAME = "1 to 64 printable ASCII characters, without spaces and colons"
PASSWORD = "1 to 64 printable ASCII characters, without spaces"  # noqa: S105 - what a client reads of it


class Hop(StrEnum):
    """Where it goes wrong, from the desk on."""

    WEB_PROXY = "web_proxy"
    DESK_UDP = "desk_udp"
    CLOUD = "cloud"

    @property
    def sentence(self) -> str:
        """What the hop is."""
        return _HOPS[self]


_HOPS = {
    Hop.WEB_PROXY: "The firm's web proxy, which desks reach everything by TCP through.",
    Hop.DESK_UDP: "The line from desks to the TURN hosts, over UDP. The relay has a line of its own.",
    Hop.CLOUD: "The vendor's hosts themselves, for everyone who asks them.",
}


class Kind(StrEnum):
    """What goes wrong."""

    UDP_BLOCKED = "udp_blocked"
    LOSS = "loss"
    DELAY = "delay"
    STALL = "stall"
    UPGRADE_STRIPPED = "upgrade_stripped"
    PROXY_AUTHENTICATION = "proxy_authentication"
    FOREIGN_CERTIFICATE = "foreign_certificate"
    IDLE_CUT = "idle_cut"
    REGION_DOWN = "region_down"
    NAME_NOT_FOUND = "name_not_found"
    EXPIRED_CREDENTIALS = "expired_credentials"
    SLOW_RECORDER = "slow_recorder"


class FaultSetting(BaseModel):
    """How a fault is. Each kind takes some of these; what is left out has the kind's default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds: float | None = Field(
        default=None, gt=0, le=MAX_SECONDS, description="how long; None: until it is taken off"
    )
    target: str | None = Field(default=None, min_length=1, max_length=253, description="a region, or a host's name")
    percent: float | None = Field(default=None, gt=0, le=100, description="of the packets")
    delay_ms: int | None = Field(default=None, ge=1, le=5000, description="in each direction")
    idle_s: float | None = Field(default=None, ge=0.1, le=3600, description="without a byte in either direction")
    answer_after_s: float | None = Field(
        default=None, ge=0.1, le=120, description="before the recorder looks at a request"
    )
    username: str | None = Field(
        default=None, min_length=1, max_length=64, pattern=r"^[\x21-\x39\x3b-\x7e]+$", description=USERNAME
    )
    password: str | None = Field(
        default=None, min_length=1, max_length=64, pattern=r"^[\x21-\x7e]+$", description=PASSWORD, repr=False
    )


class Target(StrEnum):
    """What the ``target`` of a kind may be."""

    NONE = "nothing"
    REGION_OR_HOST = "a region or a host of the catalog; without it, all"
    REGION = "a region of the catalog"
    HOST = "a host of the catalog"


@dataclass(frozen=True)
class KindSpec:
    """What a kind is. ``defaults`` has every figure that it takes; a ``seconds`` there means that it must end."""

    hops: tuple[Hop, ...]
    mark: Mark
    description: str
    symptom: str
    target: Target = Target.NONE
    defaults: Mapping[str, Any] = field(default_factory=dict)


KINDS: dict[Kind, KindSpec] = {
    Kind.UDP_BLOCKED: KindSpec(
        (Hop.DESK_UDP,),
        Mark.DOCUMENTED,
        "No datagram passes in either direction.",
        "Calls connect without audio, unless Voice via Web Proxy is on.",
        Target.REGION_OR_HOST,
    ),
    Kind.LOSS: KindSpec(
        (Hop.DESK_UDP,),
        Mark.INVENTED,
        "A share of the datagrams is lost, at random, in each direction.",
        "Choppy audio: loss counts, and MOS falls.",
        Target.REGION_OR_HOST,
        {"percent": 5.0},
    ),
    Kind.DELAY: KindSpec(
        (Hop.DESK_UDP, Hop.WEB_PROXY),
        Mark.INVENTED,
        "Everything comes later.",
        "Users interrupt each other: delay counts, and MOS falls.",
        Target.REGION_OR_HOST,
        {"delay_ms": 200},
    ),
    Kind.STALL: KindSpec(
        (Hop.DESK_UDP, Hop.WEB_PROXY),
        Mark.INVENTED,
        "Nothing passes for a while; then all that has waited passes at once.",
        "Silence, then a burst that is too old to be played.",
        Target.REGION_OR_HOST,
        {"seconds": 2.0},
    ),
    Kind.UPGRADE_STRIPPED: KindSpec(
        (Hop.WEB_PROXY,),
        Mark.INVENTED,
        "The proxy ends TLS with a certificate that desks trust, and removes Upgrade and Connection from requests.",
        "WebSocket and CONNECT-UDP fail, and the client names the proxy; socket.io goes on by polling.",
    ),
    Kind.PROXY_AUTHENTICATION: KindSpec(
        (Hop.WEB_PROXY,),
        Mark.INVENTED,
        "The proxy answers 407 to everyone who does not give this name and password.",
        "No connection at all, and the client shows the 407.",
        defaults={"username": "desk", "password": "voice"},
    ),
    Kind.FOREIGN_CERTIFICATE: KindSpec(
        (Hop.WEB_PROXY,),
        Mark.INVENTED,
        "The proxy ends TLS with a certificate of an authority that desks do not know.",
        "The client refuses the certificate.",
    ),
    Kind.IDLE_CUT: KindSpec(
        (Hop.WEB_PROXY,),
        Mark.INVENTED,
        "The proxy resets connections on which nothing passes.",
        "A line that is on hold is dead when it is needed, unless the client sends pings.",
        defaults={"idle_s": 60.0},
    ),
    Kind.REGION_DOWN: KindSpec(
        (Hop.CLOUD,),
        Mark.INVENTED,
        "The TURN hosts of a region are silent, and its other hosts answer 503.",
        "Calls in this region lose their audio, and within seconds the relay sees that its upstreams are down.",
        Target.REGION,
    ),
    Kind.NAME_NOT_FOUND: KindSpec(
        (Hop.CLOUD,),
        Mark.INVENTED,
        "A host does not exist: the web proxy cannot find it, and the TLS and HTTP ports refuse its name.",
        "Whatever needs this host fails, and the error names the host.",
        Target.HOST,
    ),
    Kind.EXPIRED_CREDENTIALS: KindSpec(
        (Hop.CLOUD,),
        Mark.INVENTED,
        "The login gives TURN credentials that have ended a minute ago.",
        "TURN answers 401 to every Allocate, though the login went well.",
    ),
    Kind.SLOW_RECORDER: KindSpec(
        (Hop.CLOUD,),
        Mark.INVENTED,
        "The recording host waits before it looks at a request.",
        "Uploads pile up in the clients, or time out and are resumed.",
        defaults={"answer_after_s": 10.0},
    ),
}


class BadSetting(Exception):
    """A setting that does not match its kind: which field, what is wrong, what was expected."""

    def __init__(self, where: str, message: str, expected: str) -> None:
        super().__init__(message)
        self.where = where
        self.message = message
        self.expected = expected


def complete(hop: Hop, kind: Kind, setting: FaultSetting) -> FaultSetting:
    """The setting with the kind's defaults. Raises BadSetting for a hop or a field that the kind does not have."""
    spec = KINDS[kind]
    if hop not in spec.hops:
        raise BadSetting("path.hop", f"{kind} does not happen at {hop}.", " or ".join(spec.hops))
    given = {name for name, value in setting if value is not None}
    allowed = {"seconds", *spec.defaults} | (set() if not takes_target(hop, spec) else {"target"})
    for name in sorted(given - allowed):
        raise BadSetting(f"body.{name}", f"{kind} at {hop} has no {name}.", ", ".join(sorted(allowed)))
    if spec.target in {Target.REGION, Target.HOST} and setting.target is None:
        raise BadSetting("body.target", f"{kind} needs a target.", spec.target)
    missing = {name: value for name, value in spec.defaults.items() if name not in given}
    return setting.model_copy(update=missing)


def with_known_target(catalog: Catalog, kind: Kind, setting: FaultSetting) -> FaultSetting:
    """The setting with its target as the catalog has it. Raises BadSetting for one that it does not have."""
    wanted, target = KINDS[kind].target, setting.target
    if target is None:
        return setting
    host, regions = catalog.find(target), regions_of(catalog)
    if wanted is not Target.REGION and host is not None:
        return setting.model_copy(update={"target": host.name})
    if wanted is not Target.HOST and target in regions:
        return setting
    expected = "a host of `relay catalog show`" if wanted is Target.HOST else ", ".join(regions)
    raise BadSetting("body.target", f"The catalog does not have {target!r}.", expected)


def regions_of(catalog: Catalog) -> list[str]:
    """The regions that a fault may be limited to."""
    return sorted({host.region for host in catalog.hosts if host.region is not None})


def takes_target(hop: Hop, spec: KindSpec) -> bool:
    """Whether a fault may be limited to a region or a host. The web proxy is one for all."""
    return spec.target is not Target.NONE and hop is not Hop.WEB_PROXY
