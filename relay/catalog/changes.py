"""What differs between two catalogs: domains, hosts, networks and ports that were added, removed or changed."""

from __future__ import annotations

from dataclasses import dataclass

from relay.catalog.model import Catalog


@dataclass(frozen=True)
class Change:
    """One difference. ``before`` is None for what was added, ``after`` is None for what was removed."""

    kind: str
    name: str
    before: str | None
    after: str | None

    def __str__(self) -> str:
        mark = "+" if self.before is None else "-" if self.after is None else "~"
        details = " -> ".join(text for text in (self.before, self.after) if text)
        return f"{mark} {self.kind} {self.name}" + (f": {details}" if details else "")


def compare(old: Catalog, new: Catalog) -> tuple[Change, ...]:
    """The changes from ``old`` to ``new``, always in the same order. Empty if both require the same.

    Neither ``as_of`` nor the order of a list is a change.
    """
    before, after = _things(old), _things(new)
    return tuple(
        Change(*thing, before.get(thing), after.get(thing))
        for thing in sorted(before.keys() | after.keys(), key=_order)
        if before.get(thing) != after.get(thing)
    )


_KINDS = ("domain", "host", "network", "ports")


def _order(thing: tuple[str, str]) -> tuple[int, str]:
    return _KINDS.index(thing[0]), thing[1]


def _things(catalog: Catalog) -> dict[tuple[str, str], str]:
    """Kind and name of each thing, and its other properties as text."""
    return {
        **{("domain", domain): "" for domain in catalog.domains},
        **{("host", host.name): _told(host.service, host.region, host.status) for host in catalog.hosts},
        **{("network", str(each.network)): _told(each.place, each.region) for each in catalog.networks},
        **{("ports", f"{each.protocol} {each}"): each.use for each in catalog.ports},
    }


def _told(*parts: str | None) -> str:
    return ", ".join(part for part in parts if part is not None)
