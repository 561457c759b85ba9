"""Where load goes: a server, how it is reached, and the addresses that are refused.

Load goes to this machine, unless a profile lists the target by name. It never goes to the vendor's hosts.
"""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator

from loadtest.engine.plans import CARRIERS, Carrier, ClientPlan, PlanError, WebProxy
from loadtest.plan.hosts import (
    TargetError,
    addresses_of,
    canonical,
    canonical_url,
    host_of,
    is_loopback,
    refuse_if_it_leads_to_vendor,
    refuse_vendor,
    require_here,
    resolve,
)
from relay.addresses import Address, parse_address
from relay.turn.credentials import rest_password

# Longer than any test: an allocation is refreshed with the credentials that it was made with.
CREDENTIALS_LAST_S = 8 * 86_400
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
# Where the colleague is: one of these, or none.
FAR_ENDS = ("peer", "far", "sink")
# A bundle of all authorities that browsers know has a quarter of that.
MAX_AUTHORITIES_BYTES = 1024 * 1024
_MAX_PORT = 65535
_PORTS = {"http": 80, "https": 443}


def _address(value: object) -> object:
    return parse_address(value) if isinstance(value, str) else value


def _in_its_one_form(address: Address) -> Address:
    if not 0 <= address.port <= _MAX_PORT:
        raise TargetError(f"{address}: expected a port of at most {_MAX_PORT}")
    return Address(canonical(address.host), address.port)


def _server_name(name: str) -> str:
    return canonical(name) if name else name


def _carrier(value: object) -> object:
    if isinstance(value, str):
        if value not in CARRIERS:
            raise ValueError(f"expected one of {', '.join(CARRIERS)}")
        return CARRIERS[value]
    return value


Where = Annotated[Address, BeforeValidator(_address), AfterValidator(_in_its_one_form)]
Url = Annotated[str, AfterValidator(canonical_url)]
ServerName = Annotated[str, AfterValidator(_server_name)]
CarrierName = Annotated[Carrier, BeforeValidator(_carrier)]


class Place(NamedTuple):
    """Where bytes of a test may go: which value says so, the value, and its host and port."""

    what: str
    value: str
    host: str
    port: int


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
    upstream       the TURN server that CONNECT-UDP asks for; by default ``far``
    web_proxy      a web proxy before the target, for TLS and what is above it
    tunnel         what it is asked for; by default the target's name and port, so the name decides where load goes
    metrics        the URL of the relay's metrics: its CPU time and its drops go into the report
    cloud          the URL of login and signaling, for the kinds of users that log in, with ``cloud_password``
    control        the URL of the emulated cloud's own API, for faults
    lines          the line between users 2n and 2n + 1, a pattern: ``sPK-20000001-{number:06}``
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    server: Where
    carrier: CarrierName = Carrier.TLS
    server_name: ServerName = ""
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
    metrics: Url | None = None
    cloud: Url | None = None
    control: Url | None = None
    cloud_password: SecretStr = Field(default=SecretStr(""))
    lines: str = "sPK-20000001-{number:06}"

    @model_validator(mode="after")
    def _refuse(self) -> Self:
        for place in self.places():
            refuse_vendor(place.what, place.host)
            if not place.port:
                raise TargetError(f"{place.what} {place.value}: expected a port from 1 to {_MAX_PORT}")
        if self.peer is not None:
            refuse_vendor("peer", self.peer.host)
        if len(given := [name for name in FAR_ENDS if getattr(self, name) is not None]) > 1:
            raise TargetError(f"{' and '.join(given)}: a colleague is in one place; expected one of them")
        return self

    def places(self) -> Iterator[Place]:
        """Everything that bytes may go to. ``peer`` is not one: it is where they come from."""
        for what in ("server", "far", "sink", "upstream", "web_proxy", "tunnel"):
            if (address := getattr(self, what)) is not None:
                yield Place(what, str(address), address.host, address.port)
        for what in ("metrics", "cloud", "control"):
            if (url := getattr(self, what)) is not None:
                yield Place(what, url, host_of(url), urlsplit(url).port or _PORTS[urlsplit(url).scheme])
        # A web proxy looks the name up that it is asked for, so this decides where load goes, whatever ``server`` is.
        if self.web_proxy is not None and self.tunnel is None and self.server_name:
            asked = Address(self.server_name, self.server.port)
            yield Place("server_name", str(asked), asked.host, asked.port)

    def require_loopback(self, only: Collection[str] | None = None, listed: Collection[Place] = ()) -> None:
        """Raises TargetError if one of its places, or ``only`` of these, is neither on this machine nor listed."""
        for place in self.places():
            if (only is None or place.what in only) and place not in listed and not is_loopback(place.host):
                raise TargetError(
                    f"{place.what} {place.host}: not on this machine; expected a loopback address, or a target that "
                    "the profile lists by name under [targets]"
                )
        if self.peer is not None and (only is None or "peer" in only):
            require_here("peer", resolve("peer", self.peer))

    def resolved(self) -> Target:
        """The same with addresses in place of names; a vendor's address is refused, whatever its name is.

        Raises TargetError.
        """
        found = {
            what: resolve(what, address)
            for what in ("server", "peer", "far", "sink", "web_proxy")
            if (address := getattr(self, what)) is not None
        }
        for place in self.places():
            if place.what in {"metrics", "cloud", "control"}:
                addresses_of(place.what, place.host, place.port)
            elif place.what not in found:
                refuse_if_it_leads_to_vendor(place.what, place.host, place.port)
        name = self.server_name or ("" if self.server.is_literal else self.server.host)
        return self.model_copy(update={**found, "server_name": name})

    def admitted(self, listed: Mapping[str, Target]) -> Target:
        """A target that a program names, resolved, under the same rule as one of the command line. Raises TargetError.

        What is not on this machine must be listed: the same value for the same thing, in a target of the profile.
        """
        self.require_loopback(listed=[place for one in listed.values() for place in one.places()])
        found = self.resolved()
        found.require_usable()
        return found

    def require_usable(self) -> None:
        """Raises TargetError for what no user could begin with: an address that is missing, a file that is not one."""
        if self.carrier is Carrier.CONNECT_UDP and self.upstream is None and self.far is None:
            raise TargetError("carrier connect-udp: asks for a TURN server; expected an upstream, or far")
        if self.carrier is Carrier.UDP and self.web_proxy is not None:
            raise TargetError(f"web_proxy {self.web_proxy}: takes no UDP; expected a carrier over TLS, or no web proxy")
        if self.authorities is not None:
            _require_authorities(Path(self.authorities))
        if self.peer is not None:
            require_here("peer", self.peer)
        try:
            self.client_plan(0).socket_address()
            self.far_plan(0).socket_address()
        except PlanError as error:
            raise TargetError(str(error)) from None

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


def _require_authorities(path: Path) -> None:
    expected = "expected a PEM file of certificates (--ca, or authorities of a target)"
    try:
        # A device or a pipe would be read for ever.
        if path.exists() and not path.is_file():
            raise TargetError(f"{path}: not a file; {expected}")
        if path.stat().st_size > MAX_AUTHORITIES_BYTES:
            raise TargetError(f"{path}: more than {MAX_AUTHORITIES_BYTES} bytes; {expected}")
        ssl.create_default_context(cafile=path)
    except ssl.SSLError:
        raise TargetError(f"{path}: no certificate in it; {expected}") from None
    except OSError as error:
        raise TargetError(f"{path}: {error.strerror}; {expected}") from None
