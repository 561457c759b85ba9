"""File descriptors: how many the limits need, how many the process may have, and a reserve for operators.

While clients hold all others, newcomers wait, and new tunnels and requests are refused. The reserve is for the admin
listener, so that a probe gets its answer while calls run; and for probes of upstreams, look-ups and files.
"""

from __future__ import annotations

import os
import resource

import structlog

from relay.config import Config

log = structlog.get_logger()

# A dashboard and a few tools hold ten connections to the admin listener, each upstream is probed from one socket, and
# c-ares has one for each look-up. Where there are few descriptors, the reserve is a quarter of them.
RESERVED = 64
# A connection holds one, and one more as a flow. While it speaks HTTP it holds two more, for the pair of sockets to
# control, and a third where its request goes on to a server of signaling.
OF_A_CONNECTION = 4
# A tunnel of the web proxy holds its two sockets.
OF_A_TUNNEL = 2
# What is open when nobody has connected: listeners, epoll and the log, for each thread some more.
OF_THE_PROCESS = 64


def limit() -> int:
    """How many this process may have now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _finite(soft if soft != resource.RLIM_INFINITY else hard)


def _finite(count: int) -> int:
    return count if count != resource.RLIM_INFINITY else 2**31 - 1


def reserved() -> int:
    """How many of them are not for clients."""
    return min(RESERVED, limit() // 4)


def bound() -> int:
    """With this many in use, newcomers wait."""
    return limit() - reserved()


def has_room() -> bool:
    """Whether fewer than ``bound`` are in use: the kernel gives the lowest number that is free."""
    try:
        descriptor = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    os.close(descriptor)
    return descriptor < bound()


def needed(settings: Config) -> int | None:
    """How many are in use when the limits are reached; None if a limit is off."""
    connections, tunnels = settings.limits.connections, settings.web_proxy.connections
    if not settings.listen.web_proxy:
        tunnels = 0
    elif not tunnels:
        return None
    if not connections:
        return None
    return connections * OF_A_CONNECTION + tunnels * OF_A_TUNNEL + OF_THE_PROCESS + RESERVED


def find(settings: Config) -> list[str]:
    """What is wrong if this process cannot have as many as the limits need, in one line or none."""
    wanted = needed(settings)
    allowed = _finite(resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    if wanted is None or wanted <= allowed:
        return []
    text = (
        f"limits: at most {wanted} file descriptors are needed, and this process may have {allowed}. Raise that "
        "(LimitNOFILE, ulimit -n), or lower limits.connections. As it is, clients wait before the limits are reached"
    )
    return [text]


def raise_limit(settings: Config) -> None:
    """Take as many as the limits need, as far as the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = needed(settings)
    wanted = _finite(hard) if wanted is None else min(wanted, _finite(hard))
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def tell(settings: Config) -> None:
    """Warn if that is too few."""
    for trouble in find(settings):
        log.warning("too few file descriptors", cause=trouble)
