"""Where load goes: a server, how it is reached, and the addresses that are refused.

Load goes to this machine, unless a profile lists the target by name. It never goes to the vendor's hosts.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import time
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator

from loadtest.engine.plans import CARRIERS, Carrier, ClientPlan, WebProxy
from relay import catalog
from relay.addresses import Address, parse_address
from relay.turn.credentials import rest_password

# Longer than any test: an allocation is refreshed with the credentials that it was made with.
CREDENTIALS_LAST_S = 8 * 86_400
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")


class TargetError(ValueError):
    """A target that load must not go to, or that is not whole: what, and what was expected."""


def _address(value: object) -> object:
    return parse_address(value) if isinstance(value, str) else value


def _carrier(value: object) -> object:
    if isinstance(value, str):
        if value not in CARRIERS:
            raise ValueError(f"expected one of {', '.join(CARRIERS)}")
        return CARRIERS[value]
    return value


Where = Annotated[Address, BeforeValidator(_address)]
CarrierName = Annotated[Carrier, BeforeValidator(_carrier)]


class Target(BaseModel):
    """A TURN server or a relay, and how to be its client.

    server         its address: of the relay's TLS port, or of a TURN server's UDP port
    carrier        tls, websocket, session, connect-udp or udp
    server_name    the name for TLS and HTTP; by default the address
    authorities    a PEM file: with it, certificates are verified
    secret         of time-limited credentials (TURN REST), for users named after ``username``
    users          how many users the server knows: beyond them the first ones come again; 0 for any number
    username       of all users, with ``password``; or with ``secret`` a pattern: ``load-{number}``
    peer           an address of this machine on which colleagues are, by plain UDP, without TURN; port 0 is any port
    far            or a TURN server that they are on, by UDP, past the target. Without both they are on the target, too
    sink           or a `relay loadtest sink` that sends back what comes: then there are no colleagues
    upstream       the TURN server that CONNECT-UDP asks for
    web_proxy      a web proxy before the target, for TLS and what is above it
    tunnel         what it is asked for; by default the target's name and port
    metrics        the URL of the relay's metrics: its CPU time and its drops go into the report
    cloud          the URL of login and signaling, for the kinds of users that log in, with ``cloud_password``
    control        the URL of the emulated cloud's own API, for faults
    lines          the line between users 2n and 2n + 1, a pattern: ``sPK-20000001-{number:06}``
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    server: Where
    carrier: CarrierName = Carrier.TLS
    server_name: str = ""
    authorities: str | None = None
    users: int = Field(default=0, ge=0)
    username: str = "load-{number}"
    password: SecretStr = SecretStr("")
    secret: SecretStr = SecretStr("")
    peer: Where | None = None
    far: Where | None = None
    sink: Where | None = None
    upstream: Where | None = None
    web_proxy: Where | None = None
    tunnel: Where | None = None
    web_proxy_username: str = ""
    web_proxy_password: SecretStr = SecretStr("")
    metrics: str | None = None
    cloud: str | None = None
    control: str | None = None
    cloud_password: SecretStr = Field(default=SecretStr(""))
    lines: str = "sPK-20000001-{number:06}"

    @model_validator(mode="after")
    def _refuse(self) -> Self:
        for what, name in self._names():
            refuse_vendor(what, name)
        return self

    def _names(self) -> list[tuple[str, str]]:
        found = [
            (what, address.host)
            for what in ("server", "far", "sink", "upstream", "web_proxy", "tunnel")
            if (address := getattr(self, what)) is not None
        ]
        return found + [
            (what, _host_of(url)) for what in ("metrics", "cloud", "control") if (url := getattr(self, what))
        ]

    def require_loopback(self) -> None:
        """Raises TargetError if something of it is not on this machine."""
        for what, host in self._names():
            if not _is_loopback(host):
                raise TargetError(
                    f"{what} {host}: not on this machine; expected a loopback address, or a target that the profile "
                    "lists by name under [targets]"
                )

    def resolved(self) -> Target:
        """The same with addresses in place of names; a vendor's address is refused, whatever its name is.

        Raises TargetError.
        """
        found = {
            what: _resolve(what, address)
            for what in ("server", "far", "sink", "web_proxy")
            if (address := getattr(self, what)) is not None
        }
        name = self.server_name or ("" if self.server.is_literal else self.server.host)
        return self.model_copy(update={**found, "server_name": name})

    def client_plan(self, user: int, **more: Any) -> ClientPlan:
        """A client of the target, as this user. Raises PlanError."""
        username, password = self.credentials(user)
        proxy = self.web_proxy and WebProxy(
            self.web_proxy, self.web_proxy_username, self.web_proxy_password.get_secret_value()
        )
        upstream = self.upstream or self.far
        return ClientPlan(
            self.server,
            self.carrier,
            username,
            password,
            server_name=self.server_name,
            authorities=self.authorities,
            web_proxy=proxy,
            tunnel=self.tunnel if proxy else None,
            upstream=upstream if self.carrier is Carrier.CONNECT_UDP else None,
            **more,
        )

    def far_plan(self, user: int, **more: Any) -> ClientPlan:
        """A colleague of this user: on this machine, on the TURN server past the target, or on the target itself."""
        if self.peer is not None:
            return ClientPlan(self.peer, Carrier.PEER, **more)
        if self.far is None:
            return self.client_plan(user, **more)
        username, password = self.credentials(user)
        return ClientPlan(self.far, Carrier.UDP, username, password, **more)

    def user_name(self, user: int) -> str:
        """What a user is called."""
        return self.username.replace("{number}", str(user % self.users if self.users else user))

    def line_of(self, number: int) -> str:
        """The line between two users."""
        return self.lines.replace("{number:06}", f"{number:06}").replace("{number}", str(number))

    def credentials(self, user: int) -> tuple[str, str]:
        """Username and password of a user for TURN."""
        name, secret = self.user_name(user), self.secret.get_secret_value()
        if not secret:
            return name, self.password.get_secret_value()
        username = f"{int(time.time()) + CREDENTIALS_LAST_S}:{name}"
        return username, rest_password(secret, username)


def carrier_name(target: Target) -> str:
    """How a target is reached, as profiles and the command line call it."""
    return next(name for name, carrier in CARRIERS.items() if carrier is target.carrier)


def refuse_vendor(what: str, name: str) -> None:
    """Raises TargetError for a host or an address of the vendor's: load never goes there."""
    known, bare = catalog.load(), name.rstrip(".").lower()
    within = any(bare == apex or bare.endswith(f".{apex}") for apex in known.apexes)
    if within or known.covers(bare) or _is_vendor_address(bare):
        raise TargetError(f"{what} {name}: belongs to the vendor; expected a host of your own")


def _is_vendor_address(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return any(address in network.network for network in catalog.load().networks)


def _resolve(what: str, address: Address) -> Address:
    if address.is_literal:
        return address
    try:
        found = socket.getaddrinfo(address.host, address.port, family=socket.AF_INET, type=socket.SOCK_STREAM)
    except OSError as error:
        raise TargetError(f"{what} {address.host}: {error.strerror}; expected a name that can be resolved") from None
    host = str(found[0][4][0])
    refuse_vendor(what, host)
    return Address(host, address.port)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _host_of(url: str) -> str:
    match = re.fullmatch(r"https?://(\[[0-9A-Fa-f:.]+\]|[^/:@?#]+)(:\d+)?(/.*)?", url)
    if match is None:
        raise TargetError(f"{url!r}: expected a URL such as http://127.0.0.1:9443")
    return match[1].strip("[]")
