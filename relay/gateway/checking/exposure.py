"""What a configuration leaves open: to whoever reaches a listener, to balancers, and to other users of the machine.

Each warning is one line: key or file, value, and what to do. An operator may have reasons, so nothing is refused here.
"""

from __future__ import annotations

import ipaddress
import stat
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, SecretStr

from relay.addresses import WILDCARDS, Address, IpNetwork
from relay.config import Config
from relay.config.values import FileSecret
from relay.gateway.certificates.files import keys_of

# Balancers have a few addresses next to each other. A network with more than these is a site or a firm, IPv4 and IPv6.
MIN_BALANCER_PREFIX = {4: 16, 6: 48}


def find_exposures(settings: Config, source: Path) -> list[str]:
    """All warnings. ``source`` is the file of the settings. The files are looked at, not read."""
    return [
        *_of_web_proxy(settings),
        *_of_admin(settings),
        *_of_balancers(settings),
        *_of_cluster(settings),
        *_of_files(settings, source),
    ]


def _of_web_proxy(settings: Config) -> Iterator[str]:
    if settings.web_proxy.users or settings.access.allow:
        return
    for number, address in enumerate(settings.listen.web_proxy):
        if _is_public(address):
            yield (
                f"listen.web_proxy.{number}: {address}: everyone who reaches it may use it: set web_proxy.users or"
                " access.allow, or listen on an address of the LAN"
            )


def _of_admin(settings: Config) -> Iterator[str]:
    listen = settings.listen
    if not listen.admin_is_remote or listen.admin_has_tls:
        return
    if settings.admin.token_hash is None:
        why = "everyone who reaches it may see who calls whom, without a token"
    else:
        why = "the token crosses the network unencrypted"
    yield f"listen.admin: {listen.admin}: {why}, because of listen.admin_unprotected"


def _is_public(address: Address) -> bool:
    """True unless only this machine or its own site can reach the address."""
    return address.host in WILDCARDS or ipaddress.ip_address(address.host).is_global


def _of_balancers(settings: Config) -> Iterator[str]:
    for number, network in enumerate(settings.balancers.networks):
        if _is_wide(network):
            yield (
                f"balancers.networks.{number}: {network}: every machine in it can claim to be any client: expected the"
                " balancers' own addresses"
            )


def _is_wide(network: IpNetwork) -> bool:
    return network.prefixlen < MIN_BALANCER_PREFIX[network.version]


def _of_cluster(settings: Config) -> Iterator[str]:
    cluster = settings.cluster
    if cluster.redis is None:
        return
    if not cluster.has_tls and cluster.address.host not in {"localhost", "127.0.0.1", "::1"}:
        yield f"cluster.redis: {cluster.redis}: what relays share crosses the network unencrypted: expected rediss://"
    if cluster.password is None and cluster.password_file is None:
        yield "cluster.redis: whoever reaches it may change whose calls count: set cluster.password_file"


# Files


def _of_files(settings: Config, source: Path) -> Iterator[str]:
    for where, path in _sensitive_files(settings, source):
        if may := what_others_may(path):
            yield f"{where}every user of this machine can {may} it: run chmod o= {path}"


def _sensitive_files(settings: Config, source: Path) -> Iterator[tuple[str, Path]]:
    """Files that hold secrets, or say who may do what; each with the words in front of it."""
    secrets = list(_secrets_of(settings, ""))
    if not all(isinstance(secret, FileSecret) for _, secret in secrets):
        yield f"{source}: has passwords or other secrets, and ", source
    for key, secret in secrets:
        if isinstance(secret, FileSecret):
            yield f"{key}: {secret.path}: ", secret.path
    for pair, key in keys_of(settings.certificates).items():
        yield f"{key}.private_key: {pair.private_key}: ", pair.private_key
    if settings.entitlement.file is not None:
        yield f"entitlement.file: {settings.entitlement.file}: ", settings.entitlement.file
    if settings.cluster.password_file is not None:
        yield f"cluster.password_file: {settings.cluster.password_file}: ", settings.cluster.password_file


def _secrets_of(value: object, key: str) -> Iterator[tuple[str, SecretStr]]:
    """All secrets of the configuration, each with its key."""
    match value:
        case SecretStr():
            yield key.removeprefix("."), value
        case BaseModel():
            for name in type(value).model_fields:
                yield from _secrets_of(getattr(value, name), f"{key}.{name}")
        case dict():
            for name, one in value.items():
                yield from _secrets_of(one, f"{key}.{name}")
        case list() | tuple():
            for number, one in enumerate(value):
                yield from _secrets_of(one, f"{key}.{number}")


def what_others_may(path: Path) -> str:
    """What users may do with a file who neither own it nor are in its group: "read", "change", both, or nothing.

    They need to get through all folders above it. A group may read it: the relay's user has the key through its group.
    """
    try:
        target = path.resolve(strict=True)
        mode = target.stat().st_mode
        if not all(folder.stat().st_mode & stat.S_IXOTH for folder in target.parents):
            return ""
    except (OSError, RuntimeError):  # it is gone, or its links lead in a circle
        return ""
    words = [word for bit, word in ((stat.S_IROTH, "read"), (stat.S_IWOTH, "change")) if mode & bit]
    return " and ".join(words)
