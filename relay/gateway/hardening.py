"""What the process gives up at its start, however it was started: core dumps, and new privileges.

``deploy/relay.service`` takes far more away. This holds in a container and on a command line as well.
"""

from __future__ import annotations

import resource

from relay._fastpath import forgo_new_privileges

# A core dump would have session keys in it. One byte is too little for any file, and it also keeps the kernel from
# handing the dump to a program (core_pattern with a pipe), which 0 does not (core(5)).
CORE_DUMP_BYTES = 1


def harden() -> list[str]:
    """Call this before threads are started. Returns what could not be done, a line for each."""
    troubles: list[str] = []
    try:
        _forbid_core_dumps()
    except (OSError, ValueError) as error:
        troubles.append(f"core dumps are not forbidden: {error}")
    try:
        forgo_new_privileges()
    except OSError as error:
        troubles.append(f"programs that the relay starts could gain privileges: {error.strerror or error}")
    return troubles


def _forbid_core_dumps() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    # Whoever has set less cannot be outdone: a hard limit is raised by root only.
    wanted = CORE_DUMP_BYTES if hard == resource.RLIM_INFINITY else min(hard, CORE_DUMP_BYTES)
    if (soft, hard) != (wanted, wanted):
        resource.setrlimit(resource.RLIMIT_CORE, (wanted, wanted))
