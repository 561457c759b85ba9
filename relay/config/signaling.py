"""Signaling: which servers get the requests of socket.io and REST, and what the proxy on the way to them allows."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from relay.config.values import (
    AtLeastOne,
    Count,
    FilePath,
    HostPattern,
    HttpOrigin,
    KeyedError,
    Network,
    PathPrefix,
    Seconds,
    Section,
)


class SignalingRoute(Section):
    """One of ``[[signaling.routes]]``: requests that match go to these servers.

    An exact host goes before a wildcard. Among routes of one host the longest path wins.
    """

    # The Host that clients ask for. *. is one label or more; * alone is every host.
    host: HostPattern = "*"
    # This path and all below it.
    path: PathPrefix = "/"
    upstreams: AtLeastOne[HttpOrigin]


class SignalingSettings(Section):
    """``[signaling]``: the socket.io and REST servers that clients reach by the relay's own name."""

    # For all hosts and paths that no route of signaling.routes takes.
    upstreams: tuple[HttpOrigin, ...] = ()
    routes: tuple[SignalingRoute, ...] = ()
    # Proxies in front of the relay. Their X-Forwarded-* and Forwarded are believed and added to; what others send is
    # replaced.
    trusted_networks: tuple[Network, ...] = ()
    # An upstream given by name must not resolve to a private or special address, unless that is in one of these.
    allowed_networks: tuple[Network, ...] = ()
    # PEM file of the authorities that https:// upstreams are checked against; the system's unless given.
    ca_file: FilePath | None = None
    # For TCP and TLS to one upstream; then the next is tried. A handshake across an ocean takes half a second.
    connect_timeout_s: Seconds = 5.0
    # An upstream may say nothing for this long. Polls are held for 45 s (pingInterval + pingTimeout), and a slow server
    # or another proxy adds its own delay.
    response_timeout_s: Seconds = 75.0
    # A client may pause for this long within the body of a request.
    body_timeout_s: Seconds = 30.0
    # After the 101 of a socket.io upgrade the client speaks at once. If it does not, a middlebox swallows its frames.
    upgrade_timeout_s: Seconds = 5.0
    # Then further upgrades of that session are refused for this long, so that it stays with polling. So are all
    # upgrades of the client when several of its sessions have failed and none of its WebSockets works.
    polling_only_s: Seconds = 600.0
    # A WebSocket that carries nothing is closed. socket.io pings every 25 s, and other proxies cut after 60 s to 300 s.
    websocket_idle_timeout_s: Seconds = 300.0
    # Bodies are passed on as they come and fill no memory. socket.io's own limit is 1 MB; uploads may be larger.
    max_body_bytes: Count = Field(default=16 * 1024 * 1024, ge=0, le=1 << 40)
    # All headers of a request together. Node takes 16 KiB, and some portals' cookies need all of that.
    max_header_bytes: Count = Field(default=32 * 1024, ge=1024, le=1 << 20)
    # socket.io sessions whose upstream is remembered, some 300 bytes each. The session that has not been used for the
    # longest time is forgotten first.
    max_sessions: Count = Field(default=50_000, ge=1, le=10_000_000)
    # After this long without a request a session has ended, or goes on over its WebSocket.
    session_idle_s: Seconds = 300.0
    # How often upstreams are asked. A connection with TLS costs more than a Binding. Failed requests count as well.
    health_interval_s: Seconds = 5.0
    # A path to GET. Any answer below 500 proves health. Unless given, a connection that can be made is enough.
    health_path: Annotated[str, Field(pattern=r"^(/[!-~]*)?$")] = ""

    @model_validator(mode="after")
    def _once(self) -> Self:
        keys = [(route.host, route.path) for route in self.routes]
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            raise KeyedError("routes", f"host {twice[0][0]!r} with path {twice[0][1]!r} is given twice")
        return self

    @property
    def configured(self) -> bool:
        """True if there is anything to proxy to."""
        return bool(self.upstreams or self.routes)
