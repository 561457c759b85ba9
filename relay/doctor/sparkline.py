"""The delays of a path as a line of small bars, one for each part of the time: for terminals, and in SVG."""

from __future__ import annotations

from collections.abc import Sequence

BARS = "▁▂▃▄▅▆▇█"
LOST = "x"
# A bar is a quarter of a second of ten; a line of them fits into a table.
PARTS = 40
# Below this, differences are the machine's own, and all bars are low.
LEAST_TOP_MS = 40.0


def parts_of(delays_ms: Sequence[float | None], parts: int = PARTS) -> list[tuple[float | None, bool]]:
    """For each part the largest delay, or None if nothing came, and whether anything was lost."""
    if not delays_ms:
        return []
    parts = min(parts, len(delays_ms))
    found = []
    for number in range(parts):
        part = delays_ms[number * len(delays_ms) // parts : (number + 1) * len(delays_ms) // parts]
        arrived = [delay for delay in part if delay is not None]
        found.append((max(arrived, default=None), len(arrived) < len(part)))
    return found


def sparkline(delays_ms: Sequence[float | None]) -> str:
    """The line. A part in which something was lost is a cross."""
    parts = parts_of(delays_ms)
    top_ms = max([LEAST_TOP_MS, *(delay for delay, _ in parts if delay is not None)])
    return "".join(LOST if lost or delay is None else BARS[_height(delay, top_ms)] for delay, lost in parts)


def _height(delay_ms: float, top_ms: float) -> int:
    return min(len(BARS) - 1, int(delay_ms / top_ms * len(BARS)))


def svg(delays_ms: Sequence[float | None], width: int = 240, height: int = 28) -> str:
    """The same as SVG: what was lost is a bar of full height in the class ``lost``."""
    parts = parts_of(delays_ms)
    top_ms = max([LEAST_TOP_MS, *(delay for delay, _ in parts if delay is not None)])
    step = width / max(1, len(parts))
    bars = []
    for number, (delay, lost) in enumerate(parts):
        tall = height if lost or delay is None else max(1.0, delay / top_ms * height)
        kind = ' class="lost"' if lost or delay is None else ""
        bars.append(
            f'<rect{kind} x="{number * step:.1f}" y="{height - tall:.1f}" '
            f'width="{max(1.0, step - 1):.1f}" height="{tall:.1f}"/>'
        )
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}">{"".join(bars)}</svg>'
