"""The types of settings: what each takes, and what the operator is told when a value is not one.

Each validator raises ValueError. Its text names the value, unless that may be a secret, and says what was expected.
"""

from __future__ import annotations

import ipaddress
import os
import re
import unicodedata
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    SecretStr,
    ValidationInfo,
)

from relay.addresses import UNIX, Address, IpNetwork, UnixSocket, parse_address
from relay.name_patterns import ANY, WILDCARD


class KeyedError(ValueError):
    """A mistake that a check of several settings found: ``key`` says at which of them, counted from its table."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


class Section(BaseModel):
    """A table of the configuration. It is immutable, and refuses keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=False)


# Numbers and switches, all strict: true is not a number, and "5" is a text.

Flag = Annotated[bool, Field(strict=True)]
Count = Annotated[int, Field(strict=True)]
# No machine has descriptors or memory for more, and the integers that count them in C have room for it.
MAX_COUNT = 10_000_000
# A pebibyte.
MAX_MEMORY_BYTES = 2**50
# Of clients. To compare one with all of these takes some microseconds, and a handshake takes five hundred.
MAX_NETWORKS = 1000
# In a second. No machine does more, and one of them still takes whole microseconds.
MAX_RATE = 100_000
# At most a day.
Seconds = Annotated[float, Field(strict=True, gt=0, le=86_400)]
# Voice that is older than some seconds is worth nothing to anybody.
VoiceMilliseconds = Annotated[float, Field(strict=True, gt=0, le=10_000)]
# Seven bits in the RTP header.
PayloadType = Annotated[int, Field(ge=0, le=127)]
# In Hz. Speech codecs have clocks of 8 to 48 kHz; video has 90 kHz.
ClockRate = Annotated[int, Field(strict=True, ge=1000, le=192_000)]


def _at_least_one(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values:
        raise ValueError("expected at least one")
    return values


_Item = TypeVar("_Item")
AtLeastOne = Annotated[tuple[_Item, ...], AfterValidator(_at_least_one)]


# Names


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


def _server_name(value: str) -> str:
    name = value.lower().rstrip(".")
    labels = name.removeprefix(WILDCARD).split(".")
    if not name.isascii() or not all(label.replace("-", "").replace("_", "").isalnum() for label in labels):
        raise ValueError(f"{value!r}: expected a host name such as relay.example.com or *.example.com")
    return name


def _host_pattern(value: str) -> str:
    return value if value == ANY else _server_name(value)


# A host name, or one with *. in front.
ServerName = Annotated[str, AfterValidator(_server_name)]
# The same, or * alone.
HostPattern = Annotated[str, AfterValidator(_host_pattern)]


# Addresses and networks


def _read_address(value: object) -> Address:
    if isinstance(value, Address):
        return value
    if not isinstance(value, str):
        raise ValueError(f"{value!r}: expected a string such as '192.0.2.7:3478'")
    return parse_address(value)


def _has_zone_if_needed(host: str) -> bool:
    ip = ipaddress.ip_address(host)
    return not (isinstance(ip, ipaddress.IPv6Address) and ip.is_link_local and ip.scope_id is None)


def _with_zone(address: Address) -> Address:
    """A link-local address needs its interface, because each interface has such addresses."""
    if address.is_literal and not _has_zone_if_needed(address.host):
        example = f"[{address.host}%eth0]:{address.port}"
        raise ValueError(f"{str(address)!r}: expected the interface of a link-local address, for example {example}")
    return address


def _literal_only(address: Address) -> Address:
    if not address.is_literal:
        raise ValueError(f"{str(address)!r}: expected an IP address to listen on, for example 0.0.0.0:443 or [::]:443")
    ip = ipaddress.ip_address(address.host)
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        plain = Address(str(ip.ipv4_mapped), address.port)
        raise ValueError(f"{str(address)!r}: expected {plain}, because a listener for IPv6 takes IPv6 only")
    return _with_zone(address)


def _could_be_a_host(host: str) -> bool:
    """False for a pattern, and for what looks like an IPv4 address: no top-level domain is a number."""
    try:
        name = _server_name(host)
    except ValueError:
        return False
    return "*" not in name and not name.rpartition(".")[2].isdigit()


def _server_port(address: Address) -> Address:
    if not address.port:
        raise ValueError(f"{str(address)!r}: expected a server's port, 1 to 65535")
    if not address.is_literal and not _could_be_a_host(address.host):
        example = "turn.example.com:3478, 192.0.2.7:3478 or [2001:db8::7]:3478"
        raise ValueError(f"{str(address)!r}: expected a host name or an IP address, for example {example}")
    return _with_zone(address)


def _destination(value: object) -> Address:
    """A host that clients of the web proxy may be connected to; the port is 443 unless given."""
    if isinstance(value, Address):
        return value
    if not isinstance(value, str):
        raise ValueError(f"{value!r}: expected a string such as '*.example.com' or 'www.example.com:8443'")
    if value.count(":") > 1 and not value.startswith("["):
        value = f"[{value}]"
    bare = ":" not in value or value.endswith("]")
    host, port = parse_address(f"{value}:443" if bare else value)
    if not port:
        raise ValueError(f"{value!r}: expected a server's port, 1 to 65535")
    return Address(host if Address(host, port).is_literal else _server_name(host), port)


def _literal_host(value: str) -> str:
    try:
        host = str(ipaddress.ip_address(value))
    except ValueError:
        raise ValueError(f"{value!r}: expected an IP address such as 192.0.2.7 or 2001:db8::7") from None
    if not _has_zone_if_needed(host):
        raise ValueError(f"{value!r}: expected the interface of a link-local address, for example {host}%eth0")
    return host


_V4_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")


def _read_network(value: object) -> IpNetwork:
    if not isinstance(value, str):
        raise ValueError(f"{value!r}: expected a string such as '10.0.0.0/8'")
    try:
        network = ipaddress.ip_network(value)
    except ValueError as error:
        raise ValueError(f"{error}: expected a network such as 10.0.0.0/8 or fd00::/8") from None
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_V4_MAPPED):
        # The relay judges the IPv4 address that such an address is.
        low32 = int(network.network_address) & 0xFFFFFFFF
        plain = ipaddress.IPv4Network((low32, network.prefixlen - _V4_MAPPED.prefixlen))
        raise ValueError(f"{value!r} matches nothing: expected {plain}")
    return network


def _few_enough(networks: tuple[IpNetwork, ...]) -> tuple[IpNetwork, ...]:
    if len(networks) > MAX_NETWORKS:
        raise ValueError(f"{len(networks)} networks: expected at most {MAX_NETWORKS}")
    return networks


_as_text = PlainSerializer(str, return_type=str)
# Where the relay sends to: a literal address or a name, with a port.
ServerAddress = Annotated[Address, BeforeValidator(_read_address), AfterValidator(_server_port), _as_text]
# Where the relay listens: a literal address. Port 0 is any free one.
ListenAddress = Annotated[Address, BeforeValidator(_read_address), AfterValidator(_literal_only), _as_text]
# A host that clients of the web proxy may be connected to, or a pattern of hosts.
Destination = Annotated[Address, BeforeValidator(_destination), _as_text]
LiteralHost = Annotated[str, AfterValidator(_literal_host)]
Network = Annotated[IpNetwork, BeforeValidator(_read_network)]
# Each client that connects is compared with all of them.
Networks = Annotated[tuple[Network, ...], AfterValidator(_few_enough)]


# URLs, and paths of URLs and files


def _path_prefix(value: str) -> str:
    segments = value.split("/")
    if not value.startswith("/") or not {".", ".."}.isdisjoint(segments) or any(one in value for one in "?#%\\ "):
        raise ValueError(f"{value!r}: expected a path such as /socket.io/, decoded and without a query")
    return value


def _http_origin(value: str) -> str:
    expected = f"{value!r}: expected http://host:port or https://host:port, with nothing after it"
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


def _origin(value: str) -> str:
    scheme, _, host = value.lower().partition("://")
    if scheme not in {"http", "https"} or not host or set(host) & set("/?#@ ") or not value.isascii():
        raise ValueError(f"{value!r}: expected an origin such as https://desk.firm.example, without a path")
    return value.lower()


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


def _redis_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        good = parts.scheme in {"redis", "rediss"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("expected redis://host:port/database, or rediss:// for TLS")
    if "@" in parts.netloc or parts.query or parts.fragment:
        # The message does not show the URL, which may hold a password.
        raise ValueError("expected a URL without user and password: these are username and password_file")
    database = parts.path.strip("/")
    if database and not (database.isdigit() and len(database) <= 5):
        raise ValueError("expected the number of a database after the port, such as redis://host:6379/0")
    return value


def _file_path(path: Path, info: ValidationInfo) -> Path:
    """Relative paths count from the folder of the configuration file."""
    if "\0" in str(path):
        raise ValueError("expected a path without NUL characters")
    return Path((info.context or {}).get("folder", ".")) / path


# With the NUL at its end it takes the 108 bytes of sockaddr_un.
MAX_UNIX_PATH_BYTES = 107


def _admin_address(value: object, info: ValidationInfo) -> Address | UnixSocket:
    if not isinstance(value, str) or not value.startswith(UNIX):
        return _literal_only(_read_address(value))
    path = value.removeprefix(UNIX)
    if not path or path.endswith("/"):
        raise ValueError(f"{value!r}: expected the path of a socket, for example unix:/run/cloud9-relay/admin.sock")
    whole = str(_file_path(Path(path), info))
    if len(os.fsencode(whole)) > MAX_UNIX_PATH_BYTES:
        raise ValueError(f"{value!r}: expected a path of at most {MAX_UNIX_PATH_BYTES} bytes")
    return UnixSocket(whole)


# Where the admin listener is: an address as ListenAddress, or the path of a unix socket.
AdminAddress = Annotated[Address | UnixSocket, PlainValidator(_admin_address), _as_text]
PathPrefix = Annotated[str, AfterValidator(_path_prefix)]
# A server of signaling: scheme, host and port.
HttpOrigin = Annotated[str, AfterValidator(_http_origin)]
# What browsers say of the page that opens a connection.
Origin = Annotated[str, AfterValidator(_origin)]
EndpointUrl = Annotated[str, AfterValidator(_endpoint_url)]
RedisUrl = Annotated[str, AfterValidator(_redis_url)]
FilePath = Annotated[Path, AfterValidator(_file_path)]


# Users and secrets


def _user_name(value: str) -> str:
    # What Basic authentication can carry (RFC 7617): no colon and no control character. Directories have names such as
    # user@firm.example, FIRM\user and "Jörg Müller".
    if not 1 <= len(value) <= 128 or any(one == ":" or unicodedata.category(one) == "Cc" for one in value):
        raise ValueError("expected a user name of 1 to 128 characters, without colons and control characters")
    return value


def _user_pattern(value: str) -> str:
    if not value or value.count("*") > 1 or any(unicodedata.category(letter) == "Cc" for letter in value):
        raise ValueError(f"{value!r}: expected a user name, or a pattern with one '*' such as *@desk.example")
    # As TURN compares user names (RFC 8265, OpaqueString): case counts; composed and decomposed letters are the same.
    return unicodedata.normalize("NFC", value)


def _token(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("expected printable ASCII without spaces")
    return value


# A check takes m KiB of memory, and t passes over it. What argon2's own tool makes by default has 4 MiB, and what OWASP
# advises has up to 46 MiB.
_MAX_HASH_KIB, _MAX_HASH_PASSES, _MAX_HASH_LANES = 256 * 1024, 16, 16
_ARGON2 = re.compile(
    r"\$argon2(?:id|i|d)\$v=19\$m=(\d{1,7}),t=(\d{1,3}),p=(\d{1,3})\$[A-Za-z0-9+/]{11,86}\$[A-Za-z0-9+/]{16,172}"
)


def _token_hash(value: SecretStr) -> SecretStr:
    found = _ARGON2.fullmatch(value.get_secret_value())
    if found is None:
        raise ValueError(
            "expected an argon2 hash, as relay admin-token prints it: $argon2id$v=19$m=...,t=...,p=...$..."
        )
    memory_kib, passes, lanes = map(int, found.groups())
    if memory_kib > _MAX_HASH_KIB or passes > _MAX_HASH_PASSES or lanes > _MAX_HASH_LANES:
        most = f"m={_MAX_HASH_KIB},t={_MAX_HASH_PASSES},p={_MAX_HASH_LANES}"
        raise ValueError(f"expected a hash that costs at most {most}, because each check of a token takes that")
    return value


# A key or a token has some hundred bytes, and one with claims in it (JWT) some thousand.
MAX_SECRET_BYTES = 16 * 1024


class FileSecret(SecretStr):
    """A secret that has a file of its own, ``path``, so that the configuration's file need not be kept secret."""

    def __init__(self, secret_value: str, path: Path) -> None:
        super().__init__(secret_value)
        self.path = path


def _secret_of_file(value: object, info: ValidationInfo) -> object:
    """In place of a secret's text there may be ``{ file = "..." }``."""
    if not isinstance(value, dict):
        return value
    name = value.get("file")
    if len(value) != 1 or not isinstance(name, str) or not name:
        raise ValueError('expected a text, or { file = "..." } with the path of a file that has the text')
    path = _file_path(Path(name), info)
    return FileSecret(_read_secret(path), path)


def _read_secret(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_SECRET_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    if len(content) > MAX_SECRET_BYTES:
        raise ValueError(f"{path}: expected at most {MAX_SECRET_BYTES} bytes")
    try:
        # Editors and echo end a file with a new line, which is not a part of the secret.
        text = content.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected UTF-8") from None
    if "\n" in text:
        raise ValueError(f"{path}: expected one line")
    return text


# A user of the web proxy.
UserName = Annotated[str, AfterValidator(_user_name)]
# A TURN user, or a pattern of users. The bound is the longest that RFC 8489 section 14.3 allows.
UserPattern = Annotated[str, Field(max_length=508), AfterValidator(_user_pattern)]
# A text, or { file = "..." }.
Secret = Annotated[SecretStr, Field(min_length=1), BeforeValidator(_secret_of_file)]
Token = Annotated[Secret, AfterValidator(_token)]
TokenHash = Annotated[Secret, AfterValidator(_token_hash)]
