"""Reads catalogs from TOML or JSON, bundled ones and the operator's, and says what is wrong with them.

Each mistake is one line of the OperatorError: where it is, what it is, and what was expected.
"""

from __future__ import annotations

import functools
import ipaddress
import json
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from relay.catalog.model import Catalog, Host, Network, Ports, Protocol, Service, Status, canonical_name
from relay.errors import OperatorError
from relay.name_patterns import WILDCARD

_PREFIX, _SUFFIX = "cloud9-", ".toml"
_AS_OF = re.compile(r"\d{4}-(0[1-9]|1[0-2])(-(0[1-9]|[12]\d|3[01]))?")
_REGION = re.compile(r"[a-z][a-z0-9-]{0,31}")
# It goes into comments and descriptions. All formats accept these characters, also AWS's descriptions.
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._,()/-]{0,99}")
# The vendor's whole catalog has 84 hosts. A file larger than this is something else.
_MAX_FILE_BYTES = 4 * 1024 * 1024
_Item = TypeVar("_Item")
_Enum = TypeVar("_Enum", bound=StrEnum)


def bundled() -> tuple[str, ...]:
    """The versions that come with the relay, newest last."""
    names = (entry.name for entry in resources.files("relay.catalog").iterdir())
    return tuple(
        sorted(
            name.removeprefix(_PREFIX).removesuffix(_SUFFIX)
            for name in names
            if name.startswith(_PREFIX) and name.endswith(_SUFFIX)
        )
    )


def load(path: Path | None = None) -> Catalog:
    """The catalog in a file (JSON if named so, otherwise TOML), or the newest bundled one. Raises OperatorError."""
    return _load_bundled(bundled()[-1]) if path is None else _load_file(path, " (catalog.path)")


def load_version(version: str) -> Catalog:
    """Read a bundled catalog, such as "2026-11", or a file. Raises OperatorError."""
    if version in bundled():
        return _load_bundled(version)
    if _AS_OF.fullmatch(version) and not Path(version).exists():
        raise OperatorError(f"{version}: no such version of the catalog; there are: {', '.join(bundled())}")
    return _load_file(Path(version))


@functools.cache
def _load_bundled(version: str) -> Catalog:
    name = f"{_PREFIX}{version}{_SUFFIX}"
    text = resources.files("relay.catalog").joinpath(name).read_text(encoding="utf-8")
    return parse(tomllib.loads(text), source=name)


def _load_file(path: Path, key: str = "") -> Catalog:
    """Read a file. ``key`` is the setting with its path, for the message if it cannot be read."""
    read: Callable[[str], Any] = json.loads if path.suffix == ".json" else tomllib.loads
    kind = "JSON" if path.suffix == ".json" else "TOML"
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
        if len(content) > _MAX_FILE_BYTES:
            raise OperatorError(f"{path}: expected a catalog of at most {_MAX_FILE_BYTES} bytes")
        tree = read(content.decode("utf-8"))
    except OSError as error:
        raise OperatorError(f"{path}{key}: {error.strerror or error}") from None
    # Both decoders raise kinds of ValueError. A file with nothing but brackets nests too deep for either.
    except (ValueError, RecursionError) as error:
        raise OperatorError(f"{path}: not valid {kind}: {error}") from None
    return parse(tree, source=str(path))


def parse(tree: object, *, source: str) -> Catalog:
    """Check a tree that TOML or JSON has given. Messages call it ``source``. Raises OperatorError."""
    reader = _Reader()
    catalog = reader.catalog(tree)
    if reader.mistakes:
        raise OperatorError("\n".join(f"{source}: {mistake}" for mistake in reader.mistakes))
    return catalog


class _Mistake(Exception):
    """What is wrong with one value: its key, and what was expected."""


class _Table:
    """One table of the file. Its keys are taken out one by one; those that are left are unknown."""

    def __init__(self, value: object) -> None:
        if not isinstance(value, dict):
            raise _Mistake(f"{value!r}: expected a table of keys and values")
        self._left = dict(value)

    def take(self, key: str, expected: str, read: Callable[[Any], _Item | None]) -> _Item:
        """The value of ``key``, converted by ``read``, which returns None for a value that is not as expected."""
        if key not in self._left:
            raise _Mistake(f"{key}: required, but missing")
        value = self._left.pop(key)
        found = read(value)
        if found is None:
            raise _Mistake(f"{key}: {value!r}: expected {expected}")
        return found

    def optional(self, key: str, expected: str, read: Callable[[Any], _Item | None]) -> _Item | None:
        return self.take(key, expected, read) if key in self._left else None

    def close(self) -> None:
        if self._left:
            raise _Mistake(f"{next(iter(self._left))}: unknown key")


class _Reader:
    """Reads a tree, and goes on after a mistake, to report all of them at once."""

    def __init__(self) -> None:
        self.mistakes: list[str] = []

    def catalog(self, tree: object) -> Catalog:
        values = dict(tree) if isinstance(tree, dict) else {}
        if unknown := sorted(values.keys() - {"as_of", "domains", "hosts", "networks", "ports"}):
            self.mistakes += [f"{key}: unknown key" for key in unknown]
        catalog = Catalog(
            as_of=self._as_of(values),
            domains=self._each(values, "domains", _domain),
            hosts=self._each(values, "hosts", _host),
            networks=self._each(values, "networks", _network),
            ports=self._each(values, "ports", _ports),
        )
        self._once("hosts", [host.name for host in catalog.hosts])
        self._once("domains", list(catalog.domains))
        self._once("networks", [str(network.network) for network in catalog.networks])
        self._once("ports", [f"{ports.protocol} {ports}" for ports in catalog.ports])
        for host in catalog.hosts:
            if not catalog.within_domains(host.name):
                self.mistakes.append(f"hosts: {host.name} is not in any of the domains")
        return catalog

    def _as_of(self, values: dict[str, Any]) -> str:
        try:
            return _Table({key: values[key] for key in values if key == "as_of"}).take(
                "as_of", "a month or a day, such as '2026-11' or '2026-11-30'", _matching(_AS_OF)
            )
        except _Mistake as mistake:
            self.mistakes.append(str(mistake))
            return ""

    def _each(self, values: dict[str, Any], key: str, read: Callable[[Any], _Item]) -> tuple[_Item, ...]:
        return tuple(self._items(values.get(key), key, read))

    def _items(self, listed: object, key: str, read: Callable[[Any], _Item]) -> Iterator[_Item]:
        if not isinstance(listed, list) or not listed:
            self.mistakes.append(f"{key}: expected a list with at least one entry")
            return
        for number, value in enumerate(listed):
            try:
                yield read(value)
            except _Mistake as mistake:
                self.mistakes.append(f"{key}.{number}: {mistake}")

    def _once(self, key: str, names: list[str]) -> None:
        twice = sorted(name for name, count in Counter(names).items() if count > 1)
        self.mistakes += [f"{key}: {name} is given twice" for name in twice]


def _domain(value: object) -> str:
    if isinstance(value, str) and value.startswith(WILDCARD):
        parent = canonical_name(value.removeprefix(WILDCARD))
        # A wildcard below a top-level domain would allow far too much.
        if parent is not None and "." in parent:
            return WILDCARD + parent
    raise _Mistake(f"{value!r}: expected a wildcard such as '*.xhoot.com'")


def _host(value: object) -> Host:
    table = _Table(value)
    host = Host(
        name=table.take("name", "a host name such as 'c9rest.xhoot.com'", _name),
        service=table.take("service", _names_of(Service), _member(Service)),
        region=table.optional("region", "a region such as 'use1'", _matching(_REGION)),
        status=table.take("status", _names_of(Status), _member(Status)),
    )
    table.close()
    return host


def _network(value: object) -> Network:
    table = _Table(value)
    network = Network(
        network=ipaddress.ip_network(table.take("network", "a network such as '192.0.2.0/24'", _network_text)),
        place=table.take("place", "letters, digits, spaces and ._,()/-, at most 100", _matching(_PLAIN)),
        region=table.optional("region", "a region such as 'use1'", _matching(_REGION)),
    )
    table.close()
    return network


def _ports(value: object) -> Ports:
    table = _Table(value)
    ports = Ports(
        protocol=table.take("protocol", _names_of(Protocol), _member(Protocol)),
        first=table.take("first", "a port, 1 to 65535", _port),
        last=table.take("last", "a port, 1 to 65535", _port),
        use=table.take("use", "letters, digits, spaces and ._,()/-, at most 100", _matching(_PLAIN)),
    )
    table.close()
    if ports.last < ports.first:
        raise _Mistake(f"last: {ports.last}: expected at least first, {ports.first}")
    return ports


def _name(value: object) -> str | None:
    name = canonical_name(value) if isinstance(value, str) else None
    return name if name is not None and "." in name else None


def _network_text(value: object) -> str | None:
    try:
        network = ipaddress.ip_network(value) if isinstance(value, str) else None
    except ValueError:
        return None
    # The whole Internet on an allow-list can only be a mistake.
    return str(network) if network is not None and network.prefixlen else None


def _port(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 65535 else None


def _matching(pattern: re.Pattern[str]) -> Callable[[object], str | None]:
    return lambda value: value if isinstance(value, str) and pattern.fullmatch(value) else None


def _member(kind: type[_Enum]) -> Callable[[object], _Enum | None]:
    return lambda value: next((member for member in kind if member.value == value), None)


def _names_of(kind: type[StrEnum]) -> str:
    return "one of " + ", ".join(member.value for member in kind)
