"""What a server has used: CPU time and memory of a list of processes, as the kernel counts them."""

from __future__ import annotations

import time
from collections.abc import Sequence

KIB = 1024


def cpu_s(pids: Sequence[int]) -> float | None:
    """CPU time of all their threads, ended ones included, but not of their children. None if one of them is gone.

    /proc/PID/stat counts hundredths of a second, and /proc/PID/task forgets threads that end.
    """
    try:
        # The clock's number follows from the process id (clock_getcpuclockid).
        return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)
    except OSError:
        return None


def resident_bytes(pids: Sequence[int]) -> int | None:
    """Resident memory; None if one of them is gone.

    smaps_rollup counts pages. The numbers in status may be behind by some for each thread.
    """
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as rollup:
                lines = [line.split() for line in rollup]
        except OSError:
            return None
        total += sum(int(words[1]) * KIB for words in lines if words[0] == "Rss:")
    return total
