"""Voice: the TURN servers that it goes on to, over UDP, how they are chosen and watched, and how calls are judged."""

from __future__ import annotations

import ipaddress
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from relay.config.values import (
    ClockRate,
    Count,
    FilePath,
    Flag,
    LiteralHost,
    Name,
    Network,
    Origin,
    PayloadType,
    Seconds,
    Secret,
    Section,
    ServerAddress,
    ServerName,
    VoiceMilliseconds,
)

# What an upstream is asked: see HealthSettings.probe.
Probe = Literal["auto", "binding", "allocate", "none"]


class UpstreamServer(Section):
    """One of ``[[upstreams]]``: a UDP TURN server."""

    name: Name
    region: Name = "default"
    # A literal address, or a name that is looked up every minute.
    address: ServerAddress
    # With credentials the health probe makes an allocation as well.
    username: str | None = Field(default=None, min_length=1, max_length=128)
    password: Secret | None = None
    # Instead of those two: a shared secret, with which the relay can also release the allocations of clients that
    # vanished.
    secret: Secret | None = None
    # For this upstream instead of health.probe.
    probe: Probe | None = None

    @model_validator(mode="after")
    def _credentials(self) -> Self:
        if (self.username is None) != (self.password is None):
            raise ValueError("username and password belong together")
        if self.username is not None and self.secret is not None:
            raise ValueError("expected either username and password, or secret")
        return self


class Route(Section):
    """One of ``[[routes]]``: clients that ask for a matching name go to upstreams of the region, and to no others."""

    # *. is one label or more.
    server_name: ServerName
    region: Name
    # For these clients instead of media.max_media_age_ms.
    max_media_age_ms: VoiceMilliseconds | None = None


class HealthSettings(Section):
    """``[health]``: how upstreams are watched.

    The defaults find a dead one within 4.5 s: three probes, a second apart. One that is down is asked four times a
    second, so it is up within a second of its return. Servers of signaling are judged by the same ``fall`` and
    ``rise``.
    """

    interval_s: Seconds = 1.0
    # How an upstream proves that it lives. Any well-formed answer does, also an error. "binding" and "allocate" ask
    # with that request alone. "auto" asks with either, because some servers do not answer a Binding. "none" asks
    # nothing, and takes the upstream to be up. "auto" and "allocate" also make a whole allocation where credentials are
    # known.
    probe: Probe = "auto"
    # A probe that takes longer is lost. G.114 allows at most 400 ms one way.
    timeout_s: Seconds = 1.0
    # This many failures in a row make an upstream down, and this many successes in a row make it up again.
    fall: Count = Field(default=3, ge=1, le=100)
    rise: Count = Field(default=2, ge=1, le=100)
    # Probes are spread by this share of the interval, so that relays do not all probe at the same moment.
    jitter: float = Field(default=0.1, strict=True, ge=0, le=0.5)
    # A whole Allocate and Refresh(0) costs the upstream more than a Binding, or than an Allocate that it answers 401.
    allocate_interval_s: Seconds = 30.0
    # Names are looked up again this often. TTLs of cloud load balancers are 60 s.
    resolve_interval_s: Seconds = 60.0


class MediaSettings(Section):
    """``[media]``: how voice travels between clients and upstreams, and who may send it."""

    # The routable source address towards upstreams, one for each family; the kernel's choice unless given.
    source_addresses: tuple[LiteralHost, ...] = ()
    # An upstream given by name must not resolve to a private or special address, and no upstream may send clients on to
    # one (300 Try Alternate), unless the address is in one of these.
    allowed_networks: tuple[Network, ...] = ()
    # Voice and RTCP that have waited longer for a slow client are dropped, the oldest first. A jitter buffer takes no
    # older voice.
    max_media_age_ms: VoiceMilliseconds = 200.0
    # Pages that may open /turn and /media, such as "https://desk.firm.example". Nothing there depends on cookies, so by
    # default all pages may. A client that sends no Origin is not a browser, and always may.
    origins: tuple[Origin, ...] = ()
    # Whether a session (/media) that brings no credentials gets those configured for the upstream. Then anyone who
    # reaches the relay can place calls, so only the operator can decide it.
    own_credentials: Flag = False

    @field_validator("source_addresses")
    @classmethod
    def _one_for_each_family(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        families = [ipaddress.ip_address(host).version for host in hosts]
        if len(families) != len(set(families)):
            raise ValueError("expected at most one IPv4 and one IPv6 address")
        return hosts

    def source_of_version(self, version: int) -> str | None:
        """The source address of IP version 4 or 6, or None."""
        return next((host for host in self.source_addresses if ipaddress.ip_address(host).version == version), None)


class QualitySettings(Section):
    """``[quality]``: how calls are judged, and where their records go."""

    # A packet that arrives later than this after the fastest of its stream came too late to be played.
    playout_deadline_ms: VoiceMilliseconds = 60.0
    # RTP payload type to clock rate in Hz, for the dynamic types that clients use. Types not named here are guessed.
    payload_types: dict[PayloadType, ClockRate] = Field(default={})
    # One JSON line for each call that ended is appended to this file; none unless given.
    records: FilePath | None = None
    # The file (SQLite) in which ended calls are kept for a search. Unless given: calls.sqlite3, in the folder that
    # systemd gives the service for its state, or else next to the configuration file.
    calls: FilePath | None = None
    # People complain within days, and ask for a month in retrospect. 0 keeps none.
    calls_kept_days: Count = Field(default=30, ge=0, le=3650)
    # A call of ten minutes takes some 5 KB, so this holds 200,000 of them. Beyond it the oldest go.
    calls_max_bytes: Count = Field(default=1024**3, ge=1024**2, le=1024**4)
