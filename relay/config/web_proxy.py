"""The web proxy: who may use it, and where to."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from relay.addresses import RelayPolicy
from relay.config.values import (
    MAX_COUNT,
    Count,
    Destination,
    KeyedError,
    Network,
    Seconds,
    Secret,
    Section,
    ServerAddress,
    UserName,
)


class WebProxySettings(Section):
    """``[web_proxy]``: who may use ``listen.web_proxy``, and where to. Hosts of the catalog need not be listed."""

    # Further hosts, with a port where it is not 443. *. is one label or more.
    allow: tuple[Destination, ...] = ()
    # A host must not resolve to a private or special address, unless the address is in one of these.
    allowed_networks: tuple[Network, ...] = ()
    # Name and password (Basic authentication, RFC 7617). With at least one user, CONNECT asks everyone for them.
    users: dict[UserName, Secret] = Field(default={})
    # What proxy.pac names as the proxy; unless given, the name by which the client asked for proxy.pac.
    advertise: ServerAddress | None = None
    # A tunnel that carries nothing is closed. socket.io pings every 25 s, and other proxies cut after 60 s to 300 s.
    idle_timeout_s: Seconds = 300.0
    # Connections to the proxy's port: tunnels, and those that still ask. 0 is "no bound". A tunnel takes two
    # descriptors.
    connections: Count = Field(default=2000, ge=0, le=MAX_COUNT)
    # A browser opens at most 32 to a proxy, and several may run on a desktop.
    connections_per_source: Count = Field(default=128, ge=0, le=MAX_COUNT)

    @model_validator(mode="after")
    def _literals(self) -> Self:
        policy = RelayPolicy(self.allowed_networks)
        for number, one in enumerate(self.allow):
            if one.is_literal and not policy.permits(one.host):
                why = f"{one.host} is a special address: add it to allowed_networks, too"
                raise KeyedError(f"allow.{number}", why)
        return self
