"""Patterns of host names. ``*.`` at the front has two meanings, and each user of them has one of the two.

one label          ``*.a.test`` matches b.a.test alone. So it is in certificates (RFC 9525 section 6.3) and in the
                   vendor's catalog.
one label or more  ``*.a.test`` matches b.a.test and c.b.a.test. So it is in the relay's own configuration: routes,
                   hosts of signaling, destinations of the web proxy, hosts of the admin listener.

Neither matches a.test itself. Names and patterns are in lower case here, without a dot at the end.
"""

from __future__ import annotations

from collections.abc import Iterator

WILDCARD = "*."
# Where it is allowed, this pattern is every name.
ANY = "*"

# One label


def one_label_wildcard(name: str) -> str:
    """The only wildcard of one label that can match this name."""
    return WILDCARD + name.partition(".")[2]


# One label or more


def matches(name: str, pattern: str) -> bool:
    """True if the pattern is this name, or a wildcard of one label or more that matches it."""
    if not pattern.startswith(WILDCARD):
        return name == pattern
    suffix = pattern.removeprefix("*")
    return name.endswith(suffix) and name != suffix


def patterns_of(name: str) -> Iterator[str]:
    """All patterns that match this name, for looking them up: the name itself, then the longest wildcard first."""
    yield name
    while "." in name:
        name = name.partition(".")[2]
        yield WILDCARD + name
