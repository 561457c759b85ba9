"""The configuration tree: every setting with its unit, its default and the reason; loaded from TOML.

``load`` gives a Config or raises OperatorError with one line for each mistake: key, value, what was expected.
Relative paths count from the configuration file.
"""

from __future__ import annotations

import ipaddress
import json
import re
import tomllib
import unicodedata
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from relay.addresses import Address, IpNetwork, RelayPolicy, parse_address
from relay.errors import OperatorError


def _read_address(value: object) -> Address:
    if isinstance(value, Address):
        return value
    if not isinstance(value, str):
        raise ValueError(f"{value!r}: expected a text such as '192.0.2.7:3478'")
    return parse_address(value)


def _with_zone(address: Address) -> Address:
    """A link-local address needs its interface: each of them has such addresses."""
    if address.is_literal and not _has_zone_if_needed(address.host):
        example = f"[{address.host}%eth0]:{address.port}"
        raise ValueError(f"{str(address)!r}: expected the interface of a link-local address, for example {example}")
    return address


def _has_zone_if_needed(host: str) -> bool:
    ip = ipaddress.ip_address(host)
    return not (isinstance(ip, ipaddress.IPv6Address) and ip.is_link_local and ip.scope_id is None)


def _literal_only(address: Address) -> Address:
    if not address.is_literal:
        raise ValueError(f"{str(address)!r}: expected an IP address to listen on, for example 0.0.0.0:443 or [::]:443")
    return _with_zone(address)


def _server_port(address: Address) -> Address:
    if not address.port:
        raise ValueError(f"{str(address)!r}: expected a server's port, 1 to 65535")
    if not address.is_literal and not _could_be_a_host(address.host):
        example = "turn.example.com:3478, 192.0.2.7:3478 or [2001:db8::7]:3478"
        raise ValueError(f"{str(address)!r}: expected a host name or an IP address, for example {example}")
    return _with_zone(address)


def _could_be_a_host(host: str) -> bool:
    """False for a pattern, and for what was meant to be an IPv4 address: no top-level domain is a number."""
    try:
        name = _server_name(host)
    except ValueError:
        return False
    return "*" not in name and not name.rpartition(".")[2].isdigit()


def _literal_host(value: str) -> str:
    try:
        host = str(ipaddress.ip_address(value))
    except ValueError:
        raise ValueError(f"{value!r}: expected an IP address such as 192.0.2.7 or 2001:db8::7") from None
    if not _has_zone_if_needed(host):
        raise ValueError(f"{value!r}: expected the interface of a link-local address, for example {host}%eth0")
    return host


def _read_network(value: object) -> IpNetwork:
    if not isinstance(value, str):
        raise ValueError(f"{value!r}: expected a text such as '10.0.0.0/8'")
    try:
        return ipaddress.ip_network(value)
    except ValueError as error:
        raise ValueError(f"{error}: expected a network such as 10.0.0.0/8 or fd00::/8") from None


def _server_name(value: str) -> str:
    name = value.lower().rstrip(".")
    labels = name.removeprefix("*.").split(".")
    if not name.isascii() or not all(label.replace("-", "").replace("_", "").isalnum() for label in labels):
        raise ValueError(f"{value!r}: expected a host name such as relay.example.com or *.example.com")
    return name


def _host_pattern(value: str) -> str:
    return value if value == "*" else _server_name(value)


def _file_path(path: Path) -> Path:
    if "\0" in str(path):
        raise ValueError("expected a path, which has no character 0")
    return path


def _path_prefix(value: str) -> str:
    segments = value.split("/")
    if not value.startswith("/") or not {".", ".."}.isdisjoint(segments) or any(one in value for one in "?#%\\ "):
        raise ValueError(f"{value!r}: expected a path such as /socket.io/, decoded and without a query")
    return value


def _http_origin(value: str) -> str:
    expected = f"{value!r}: expected http://host:port or https://host:port, nothing behind it"
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        raise ValueError(expected) from None
    host = parts.hostname or ""
    if parts.scheme not in {"http", "https"} or parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise ValueError(expected)
    if not host or "@" in parts.netloc or port == 0 or not value.isascii() or any(one.isspace() for one in value):
        raise ValueError(expected)
    if ":" in host:
        host = f"[{ipaddress.IPv6Address(host)}]"
    else:
        _server_name(host)
    return f"{parts.scheme}://{host}" + ("" if port is None else f":{port}")


def _user_name(value: str) -> str:
    # What Basic authentication can carry (RFC 7617): no colon and no control character. Directories have names such as
    # user@firm.example, FIRM\user and "Jörg Müller".
    if not 1 <= len(value) <= 128 or any(one == ":" or unicodedata.category(one) == "Cc" for one in value):
        raise ValueError("expected a user name of 1 to 128 characters, without colons and control characters")
    return value


def _user_pattern(value: str) -> str:
    if not value or value.count("*") > 1 or any(unicodedata.category(letter) == "Cc" for letter in value):
        raise ValueError(f"{value!r}: expected a user name, or a pattern with one '*' such as *@desk.example")
    # As TURN compares user names (RFC 8265, OpaqueString): case counts, composed and decomposed letters are the same.
    return unicodedata.normalize("NFC", value)


def _endpoint_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("expected a URL such as https://entitlement.firm.example/voice")
    if "@" in parts.netloc or parts.fragment:
        raise ValueError("expected a URL without user, password and fragment")
    return value


def _token(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("expected printable ASCII without spaces")
    return value


def _origin(value: str) -> str:
    scheme, _, host = value.lower().partition("://")
    if scheme not in {"http", "https"} or not host or set(host) & set("/?#@ ") or not value.isascii():
        raise ValueError(f"{value!r}: expected an origin such as https://desk.firm.example, without a path")
    return value.lower()


def _destination(value: object) -> Address:
    """A host that clients of the web proxy may be connected to; the port is 443 unless given."""
    if isinstance(value, Address):
        return value
    if not isinstance(value, str):
        raise ValueError(f"{value!r}: expected a text such as '*.example.com' or 'www.example.com:8443'")
    if value.count(":") > 1 and not value.startswith("["):
        value = f"[{value}]"
    bare = ":" not in value or value.endswith("]")
    host, port = parse_address(f"{value}:443" if bare else value)
    if not port:
        raise ValueError(f"{value!r}: expected a server's port, 1 to 65535")
    return Address(host if Address(host, port).is_literal else _server_name(host), port)


def _at_least_one(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values:
        raise ValueError("expected at least one")
    return values


_Item = TypeVar("_Item")
Some = Annotated[tuple[_Item, ...], AfterValidator(_at_least_one)]
_as_text = PlainSerializer(str, return_type=str)
ServerAddress = Annotated[Address, BeforeValidator(_read_address), AfterValidator(_server_port), _as_text]
ListenAddress = Annotated[Address, BeforeValidator(_read_address), AfterValidator(_literal_only), _as_text]
Destination = Annotated[Address, BeforeValidator(_destination), _as_text]
LiteralHost = Annotated[str, AfterValidator(_literal_host)]
Network = Annotated[IpNetwork, BeforeValidator(_read_network)]
ServerName = Annotated[str, AfterValidator(_server_name)]
HostPattern = Annotated[str, AfterValidator(_host_pattern)]
PathPrefix = Annotated[str, AfterValidator(_path_prefix)]
HttpOrigin = Annotated[str, AfterValidator(_http_origin)]
Origin = Annotated[str, AfterValidator(_origin)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
UserName = Annotated[str, AfterValidator(_user_name)]
Secret = Annotated[SecretStr, Field(min_length=1)]
# The longest that RFC 8489 section 14.3 allows.
UserPattern = Annotated[str, Field(max_length=508), AfterValidator(_user_pattern)]
EndpointUrl = Annotated[str, AfterValidator(_endpoint_url)]
Token = Annotated[Secret, AfterValidator(_token)]
# Strict: true is no number, and "5" is a text.
Count = Annotated[int, Field(strict=True)]
# More than one machine has descriptors or memory for, and what counts it in C has room for.
MAX_COUNT = 10_000_000
FilePath = Annotated[Path, AfterValidator(_file_path)]
Seconds = Annotated[float, Field(strict=True, gt=0, le=86_400)]
# Seven bits in the RTP header. Speech codecs have clocks of 8 to 48 kHz, video has 90 kHz.
PayloadType = Annotated[int, Field(ge=0, le=127)]
ClockRate = Annotated[int, Field(strict=True, ge=1000, le=192_000)]
# Voice that is older than some seconds is worth nothing to anybody.
VoiceMilliseconds = Annotated[float, Field(strict=True, gt=0, le=10_000)]


def _folder(info: ValidationInfo) -> Path:
    """Where relative paths count from."""
    return Path((info.context or {}).get("folder", "."))


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=False)


class ListenSettings(_Section):
    """Where the relay is reached."""

    # HTTPS, WebSocket and TURN/TLS, all on this port. [::] takes IPv6 only; list both for both.
    tls: Some[ListenAddress] = (Address("0.0.0.0", 443),)  # noqa: S104
    # Explicit web proxy (CONNECT and PAC).
    web_proxy: tuple[ListenAddress, ...] = ()
    # Plain HTTP for operators: on loopback, because it has no authentication.
    admin: ListenAddress = Address("127.0.0.1", 9443)
    # Names under which operators and their tools ask for it, besides addresses, localhost and this machine's name. Any
    # other may be a page whose name resolves to this machine (DNS rebinding). * is one label or more, alone every name.
    admin_hosts: tuple[HostPattern, ...] = ()
    # Data-plane threads; 0 is one for each core. The reference plane runs on the loop and has none.
    workers: Count = Field(default=0, ge=0, le=256)
    plane: Literal["compiled", "reference"] = "compiled"


class CertificateFiles(_Section):
    """One certificate, chosen by the names in it; the first is the default."""

    certificate: FilePath
    private_key: FilePath


# What an upstream is asked: see HealthSettings.probe.
Probe = Literal["auto", "binding", "allocate", "none"]


class UpstreamServer(_Section):
    """A UDP TURN server."""

    name: Name
    region: Name = "default"
    # A literal address, or a name that is looked up every minute.
    address: ServerAddress
    # With credentials the health probe allocates as well; with the shared secret the relay can also release what
    # clients that vanished leave behind.
    username: str | None = Field(default=None, min_length=1, max_length=128)
    password: Secret | None = None
    secret: Secret | None = None
    # Instead of health.probe.
    probe: Probe | None = None

    @model_validator(mode="after")
    def _credentials(self) -> Self:
        if (self.username is None) != (self.password is None):
            raise ValueError("username and password belong together")
        if self.username is not None and self.secret is not None:
            raise ValueError("expected either username and password, or secret")
        return self


class Route(_Section):
    """Clients that ask for a name that fits are sent to upstreams of the region, and to no others."""

    server_name: ServerName
    region: Name
    # For these clients instead of media.max_media_age_ms.
    max_media_age_ms: VoiceMilliseconds | None = None


class WebProxySettings(_Section):
    """Who may use ``listen.web_proxy``, and where to; hosts of the catalog need not be listed."""

    # Further hosts, with a port where it is not 443; * stands for one label or more.
    allow: tuple[Destination, ...] = ()
    # What a host resolves to must not be a private or special address, unless it lies in one of these.
    allowed_networks: tuple[Network, ...] = ()
    # Name and password; with at least one, CONNECT takes nobody else (Basic authentication, RFC 7617).
    users: dict[UserName, Secret] = {}
    # What proxy.pac says; unless given, the name by which the client asked for it.
    advertise: ServerAddress | None = None
    # A tunnel that carries nothing is closed: socket.io pings every 25 s, and proxies cut after 60 s to 300 s.
    idle_timeout_s: Seconds = 300.0
    # Connections of this face, tunnels and those that still ask; 0 is "no bound". Each tunnel takes two descriptors.
    connections: Count = Field(default=2000, ge=0, le=MAX_COUNT)
    # A browser opens at most 32 to a proxy, and several may run on a desktop.
    connections_per_source: Count = Field(default=128, ge=0, le=MAX_COUNT)

    @model_validator(mode="after")
    def _literals(self) -> Self:
        policy = RelayPolicy(self.allowed_networks)
        for number, one in enumerate(self.allow):
            if one.is_literal and not policy.permits(one.host):
                raise ValueError(f"allow.{number}: {one.host} is special: expected it in allowed_networks, too")
        return self


class SignalingRoute(_Section):
    """Requests that fit go to these servers: an exact host goes before a wildcard, then the longer path wins."""

    # The Host that clients ask for; * stands for one label or more, and alone for every host.
    host: HostPattern = "*"
    # A path and all below it.
    path: PathPrefix = "/"
    upstreams: Some[HttpOrigin]


class SignalingSettings(_Section):
    """The socket.io and REST servers behind the same name."""

    # For all hosts and paths that no route of signaling.routes takes.
    upstreams: tuple[HttpOrigin, ...] = ()
    routes: tuple[SignalingRoute, ...] = ()
    # Proxies whose X-Forwarded-* and Forwarded are believed and added to; those of all others are replaced.
    trusted_networks: tuple[Network, ...] = ()
    # An upstream given by name must not resolve to a private or special address, unless it lies in one of these.
    allowed_networks: tuple[Network, ...] = ()
    # PEM file of the authorities that https:// upstreams are checked against; the system's unless given.
    ca_file: FilePath | None = None
    # For TCP and TLS towards an upstream: a handshake across an ocean takes half a second; then the next is tried.
    connect_timeout_s: Seconds = 5.0
    # How long an upstream may say nothing: polls are held for 45 s (pingInterval + pingTimeout), and a slow server's
    # or a proxy's delay comes on top.
    response_timeout_s: Seconds = 75.0
    # How long a client may pause within the body of a request.
    body_timeout_s: Seconds = 30.0
    # After the 101 of a socket.io upgrade the client speaks at once; if it does not, a middlebox swallows its frames.
    upgrade_timeout_s: Seconds = 5.0
    # For so long the session's further upgrades are refused, so that it stays with polling; the client's as well when
    # several of its sessions have failed and none of its WebSockets works.
    polling_only_s: Seconds = 600.0
    # A WebSocket that carries nothing is closed: socket.io pings every 25 s, and proxies cut after 60 s to 300 s.
    websocket_idle_timeout_s: Seconds = 300.0
    # Bodies are passed on as they come and fill no memory; socket.io's own limit is 1 MB, uploads may be larger.
    max_body_bytes: Count = Field(default=16 * 1024 * 1024, ge=0, le=1 << 40)
    # All headers of a request together: Node takes 16 KiB, some portals' cookies need it all.
    max_header_bytes: Count = Field(default=32 * 1024, ge=1024, le=1 << 20)
    # socket.io sessions whose upstream is remembered, some 300 bytes each; the one unused for longest is forgotten.
    max_sessions: Count = Field(default=50_000, ge=1, le=10_000_000)
    # A session without a request for so long has ended, or goes on over its WebSocket, which is no request.
    session_idle_s: Seconds = 300.0
    # How often upstreams are asked: a connection with TLS is dearer than a Binding. A failed request counts as well.
    health_interval_s: Seconds = 5.0
    # Asked with GET; any answer below 500 is health. Unless given, a connection that can be made is enough.
    health_path: Annotated[str, Field(pattern=r"^(/[!-~]*)?$")] = ""

    @field_validator("ca_file")
    @classmethod
    def _resolve_path(cls, ca_file: Path | None, info: ValidationInfo) -> Path | None:
        return None if ca_file is None else _folder(info) / ca_file

    @model_validator(mode="after")
    def _once(self) -> Self:
        fits = [(route.host, route.path) for route in self.routes]
        if twice := sorted({fit for fit in fits if fits.count(fit) > 1}):
            raise ValueError(f"routes: host {twice[0][0]!r} with path {twice[0][1]!r} is given twice")
        return self

    @property
    def configured(self) -> bool:
        """True if there is anything to proxy to."""
        return bool(self.upstreams or self.routes)


class MediaSettings(_Section):
    """The UDP side."""

    # The routable source address towards upstreams, one for each family; by default the kernel's choice.
    source_addresses: tuple[LiteralHost, ...] = ()
    # An upstream given by name must not resolve to a private or special address, and no upstream may send clients on to
    # one (300 Try Alternate), unless it lies in one of these.
    allowed_networks: tuple[Network, ...] = ()
    # Voice that has waited longer for a slow client is dropped, oldest first: a jitter buffer takes no more.
    max_media_age_ms: VoiceMilliseconds = 200.0
    # Pages that may open /turn and /media, such as "https://desk.firm.example"; nothing there rests on cookies, so by
    # default all may. What sends no Origin is no browser, and always may.
    origins: tuple[Origin, ...] = ()
    # Whether a session (/media) that brings no credentials gets those of the upstream. Then whoever reaches the relay
    # has voice, so it is the operator's to say.
    own_credentials: Annotated[bool, Field(strict=True)] = False

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


class QualitySettings(_Section):
    """How calls are judged, and where their records go."""

    # A packet that comes later than this behind the fastest of its stream was not there to be played.
    playout_deadline_ms: VoiceMilliseconds = 60.0
    # RTP payload type to clock rate in Hz, where the clients use dynamic ones; those not named here are guessed.
    payload_types: dict[PayloadType, ClockRate] = {}
    # One JSON line for each call that ended is appended to this file; none unless given.
    records: FilePath | None = None

    @field_validator("records")
    @classmethod
    def _resolve_path(cls, records: Path | None, info: ValidationInfo) -> Path | None:
        return None if records is None else _folder(info) / records


class CaptureSettings(_Section):
    """Recording of a flow's packets, as ``relay capture`` asks for it."""

    # A capture says who talks to whom and when, though not what: whether anybody may take one is the operator's to say.
    allowed: Annotated[bool, Field(strict=True)] = False
    # A call's trouble shows within minutes.
    max_seconds: Seconds = 300.0
    # Of one file: half an hour of voice both ways is 40 MB. The least holds one packet of any size.
    max_bytes: Count = Field(default=64 * 1024 * 1024, ge=128 * 1024, le=4 * 1024**3)


class EntitledUser(_Section):
    """What a user may. An exact name goes before a pattern, a longer pattern before a shorter one."""

    # As in the USERNAME of the client's Allocate; one * stands for any characters, also for none. Case counts.
    user: UserPattern
    allowed: Annotated[bool, Field(strict=True)] = True
    # At once, over all carriers; no bound unless given. Nobody needs 0: that is allowed = false.
    calls: Count | None = Field(default=None, ge=1, le=1_000_000)
    # Of the upstreams that the calls go to; all unless given.
    regions: Some[Name] | None = None


class EntitledUsers(_Section):
    """A list of users, in the configuration or in a file of its own. Who is not on it may not."""

    users: tuple[EntitledUser, ...] = ()

    @field_validator("users")
    @classmethod
    def _each_once(cls, users: tuple[EntitledUser, ...]) -> tuple[EntitledUser, ...]:
        seen = set[str]()
        for one in users:
            if one.user in seen:
                raise ValueError(f"the user {one.user!r} is given twice")
            seen.add(one.user)
        return users


# The key that each policy of entitlement needs, and no other one may have.
_POLICY_KEYS = {"static": "users", "file": "file", "http": "url"}


class EntitlementSettings(EntitledUsers):
    """Who may have voice through this relay: "Voice via Web Proxy" per user."""

    # none asks for nobody's name; static is the list here, file a list of its own, http a service of the firm.
    policy: Literal["none", "static", "file", "http"] = "none"
    # What happens while file or service cannot be used: nobody unless said otherwise, as with any lock.
    fail: Literal["closed", "open"] = "closed"
    # Time-limited names are "expiry:user" (draft-uberti-behave-turn-rest): what is before the colon, if it is a number,
    # is no part of the user. The upstream checks the whole name, so nobody gains by writing a number before his.
    rest_usernames: Annotated[bool, Field(strict=True)] = True
    # TOML, or JSON if its name ends so; looked at every two seconds, and read when it has changed.
    file: FilePath | None = None
    # Asked with ?user=…&region=…&client=…
    url: EndpointUrl | None = None
    # Sent as "Authorization: Bearer …".
    token: Token | None = None
    # The CA of the service; those of the system unless given.
    ca: FilePath | None = None
    # From the question to the whole answer. The client waits for it, and the data plane no longer than 5 s.
    timeout_s: float = Field(default=2.0, strict=True, gt=0, le=4)
    # How long an answer is taken again: a user's calls come in bursts, and a revocation should not wait for long.
    cache_s: float = Field(default=60.0, strict=True, ge=0, le=86_400)
    # The same of refusals: who has just been entitled should not wait.
    refused_cache_s: float = Field(default=5.0, strict=True, ge=0, le=86_400)
    # So many answers are kept, the newest: 10,000 take a few megabytes.
    cache_answers: Count = Field(default=10_000, ge=1, le=1_000_000)

    @field_validator("file", "ca")
    @classmethod
    def _resolve_path(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        return None if path is None else _folder(info) / path

    @model_validator(mode="after")
    def _keys_of_policy(self) -> Self:
        for policy, key in _POLICY_KEYS.items():
            given = bool(getattr(self, key))
            if policy == self.policy and not given:
                raise ValueError(f"policy = {policy!r} needs {key}")
            # A list that nobody looks at would seem to keep people out.
            if policy != self.policy and given:
                raise ValueError(f"{key} belongs to policy = {policy!r}, but policy is {self.policy!r}")
        if self.token is not None and self.url is not None and not _keeps_secrets(self.url):
            raise ValueError("token: expected an https url, because the token would travel in clear")
        return self


def _keeps_secrets(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "https" or parts.hostname in {"localhost", "127.0.0.1", "::1"}


class HealthSettings(_Section):
    """How upstreams are watched. Defaults find a dead one within 4.5 s: three probes, a second apart."""

    interval_s: Seconds = 1.0
    # What proves that an upstream lives. Any well-formed answer does, also an error. "binding" and "allocate" ask with
    # that request alone, "auto" with either: some servers leave a Binding unanswered. "none" asks nothing, and takes
    # the upstream to be up. "auto" and "allocate" also make a whole allocation where credentials are known.
    probe: Probe = "auto"
    # A probe that takes longer is lost: G.114 ends at 400 ms one way.
    timeout_s: Seconds = 1.0
    # So many failures in a row make an upstream down, so many successes make it up again.
    fall: Count = Field(default=3, ge=1, le=100)
    rise: Count = Field(default=2, ge=1, le=100)
    # Probes are spread by this share of the interval, so that relays do not beat in time.
    jitter: float = Field(default=0.1, strict=True, ge=0, le=0.5)
    # A whole Allocate and Refresh(0) is dearer for the upstream than a Binding, or an Allocate that is answered 401.
    allocate_interval_s: Seconds = 30.0
    # Names are looked up again so often; TTLs of cloud load balancers are 60 s.
    resolve_interval_s: Seconds = 60.0


class LimitsSettings(_Section):
    """Bounds; 0 connections or sessions mean "no bound"."""

    # 20,000 connections take two to five descriptors each; the unit file allows 131,072.
    connections: Count = Field(default=20_000, ge=0, le=MAX_COUNT)
    # Off: behind a web proxy a whole firm comes from one address.
    connections_per_source: Count = Field(default=0, ge=0, le=MAX_COUNT)
    # Sessions (/media) of one source address (IPv6: of one /64), those that wait for a client that was cut included.
    # Behind a web proxy a floor of 300 desks has one address: four each, two calls and two that were cut. 0: no bound.
    sessions_per_source: Count = Field(default=1200, ge=0, le=MAX_COUNT)
    # And of one user, whom the upstream has proven, from all addresses. Where the whole floor shares one user name, one
    # session for each of its 300 desks and some to spare; where each has its own, 16 will do. 0: no bound.
    sessions_per_user: Count = Field(default=400, ge=0, le=MAX_COUNT)
    handshake_timeout_s: Seconds = 10.0
    first_bytes_timeout_s: Seconds = 10.0
    # A flow holds a UDP socket; a client that has one gets its allocation within seconds.
    allocation_timeout_s: Seconds = 30.0
    # A flow whose upstream leaves requests unanswered, and sends nothing else, is closed after this.
    upstream_silence_s: Seconds = 4.0
    # After SIGTERM running calls have this long: most calls of a trading floor are shorter.
    drain_timeout_s: float = Field(default=30.0, strict=True, ge=0, le=86_400)


class CatalogSettings(_Section):
    """The vendor's network requirements: the names that may be reached through the relay, and where media goes."""

    # A newer file than those that come with the relay; "relay catalog diff" says what is new in it.
    path: FilePath | None = None

    @field_validator("path")
    @classmethod
    def _resolve_path(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        return None if path is None else _folder(info) / path


class LogSettings(_Section):
    """What is logged on stderr."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class Config(_Section):
    """The whole tree; deploy/relay.toml has every setting of it."""

    listen: ListenSettings = ListenSettings()
    certificates: Some[CertificateFiles]
    upstreams: Some[UpstreamServer]
    routes: tuple[Route, ...] = ()
    signaling: SignalingSettings = SignalingSettings()
    web_proxy: WebProxySettings = WebProxySettings()
    media: MediaSettings = MediaSettings()
    quality: QualitySettings = QualitySettings()
    capture: CaptureSettings = CaptureSettings()
    entitlement: EntitlementSettings = EntitlementSettings()
    health: HealthSettings = HealthSettings()
    limits: LimitsSettings = LimitsSettings()
    catalog: CatalogSettings = CatalogSettings()
    log: LogSettings = LogSettings()

    @field_validator("certificates")
    @classmethod
    def _resolve_paths(
        cls, certificates: tuple[CertificateFiles, ...], info: ValidationInfo
    ) -> tuple[CertificateFiles, ...]:
        folder = _folder(info)
        return tuple(
            CertificateFiles(certificate=folder / files.certificate, private_key=folder / files.private_key)
            for files in certificates
        )

    @model_validator(mode="after")
    def _references(self) -> Self:
        names = [upstream.name for upstream in self.upstreams]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"upstreams: the name {twice[0]!r} is given twice")
        patterns = [route.server_name for route in self.routes]
        if twice := sorted({name for name in patterns if patterns.count(name) > 1}):
            raise ValueError(f"routes: the server_name {twice[0]!r} is given twice")
        regions = {upstream.region for upstream in self.upstreams}
        for number, route in enumerate(self.routes):
            if route.region not in regions:
                raise ValueError(f"routes.{number}.region: {route.region!r} has no upstream; known: {sorted(regions)}")
        for number, user in enumerate(self.entitlement.users):
            if unknown := sorted(set(user.regions or ()) - regions):
                key = f"entitlement.users.{number}.regions"
                raise ValueError(f"{key}: {unknown[0]!r} has no upstream; known: {sorted(regions)}")
        return self


def load(path: Path) -> Config:
    """Read and check a configuration file. Raises OperatorError, one line for each mistake."""
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OperatorError(f"{path}: {error.strerror or error}") from None
    # Also a number of five thousand digits, or a thousand brackets.
    except (ValueError, RecursionError) as error:
        raise OperatorError(f"{path}: no valid TOML: {error}") from None
    return parse(tree, folder=path.parent, source=str(path))


def parse(tree: dict[str, Any], *, folder: Path, source: str) -> Config:
    """Check a tree of settings. Raises OperatorError."""
    return _validate(Config, tree, folder=folder, source=source)


def parse_users(tree: object, *, source: str) -> tuple[EntitledUser, ...]:
    """Check the list of a file of users. Raises OperatorError, one line for each mistake."""
    return _validate(EntitledUsers, tree, folder=Path(), source=source).users


_Model = TypeVar("_Model", bound=BaseModel)


def _validate(model: type[_Model], tree: object, *, folder: Path, source: str) -> _Model:
    try:
        return model.model_validate(tree, context={"folder": folder})
    except ValidationError as invalid:
        raise OperatorError("\n".join(f"{source}: {_explain(error)}" for error in invalid.errors())) from None


# What pydantic says in the words of Python, in the operator's.
_MESSAGES = {
    "extra_forbidden": "unknown key",
    "missing": "required, but not there",
    "model_type": "expected a table of keys and values",
    "dict_type": "expected a table of keys and values",
    "int_parsing": "expected a number",
    "tuple_type": "expected a list",
    "too_short": "expected at least one character",
    "path_type": "expected the path of a file",
    "string_pattern_mismatch": "expected at most 63 letters, digits, '.', '_' or '-', the first a letter or digit",
}


def _explain(error: Any) -> str:
    # A key that is wrong itself is named by pydantic, too.
    key = ".".join(_shown_key(str(part)) for part in error["loc"] if part != "[key]")
    kind, value = error["type"], error["input"]
    message = str(error["msg"]).removeprefix("Value error, ").replace("Input should be", "expected")
    message = _MESSAGES.get(kind, message)
    # A value_error names the value itself; what may be a secret is never shown.
    told = kind in {"value_error", "extra_forbidden", "missing"} or not isinstance(value, str | int | float)
    secret = {"password", "secret", "token"} & set(error["loc"]) or error["loc"][:2] == ("web_proxy", "users")
    if not told and not secret:
        # As TOML has it: true, not True.
        message = f"{str(value).lower() if isinstance(value, bool) else repr(value)}: {message}"
    return f"{key}: {message}" if key else message


_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def _shown_key(part: str) -> str:
    """A key as it is written in TOML: in quotes, unless it is a bare one. Nothing in it can steer a terminal."""
    return part if _BARE_KEY.fullmatch(part) else json.dumps(part, ensure_ascii=not part.isprintable())
