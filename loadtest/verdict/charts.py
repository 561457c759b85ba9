"""Lines over time, as SVG: no script and no network, so that a report is one file that still opens in ten years."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 190
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 10, 24
# A chart has as many points as a screen can show. Of the seconds in one point the worst is shown.
MAX_POINTS = 600
GRID_LINES = 4
# They differ for people who do not see colours well, too (Okabe and Ito).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")


@dataclass(frozen=True)
class Line:
    """A line of a chart. Where a value is None it has a gap."""

    label: str
    values: Sequence[float | None]


def chart(title: str, unit: str, seconds: Sequence[float], lines: Sequence[Line], void: Sequence[bool] = ()) -> str:
    """One chart. Seconds that are void are shaded.."""
    step = max(1, math.ceil(len(seconds) / MAX_POINTS))
    times = list(seconds[::step])
    drawn = [Line(line.label, _thinned(line.values, step)) for line in lines]
    top = _round_up(max((value for line in drawn for value in line.values if value is not None), default=0.0))
    end = max(1.0, times[-1] if times else 1.0)
    parts = [*_grid(top, end), *_shades(list(void)[::step], times, end)]
    parts += [_polyline(line, times, end, top, COLOURS[at % len(COLOURS)]) for at, line in enumerate(drawn)]
    legend = "".join(
        f'<span><i style="background:{COLOURS[at % len(COLOURS)]}"></i>{escape(line.label)}</span>'
        for at, line in enumerate(drawn)
    )
    heading = f"{escape(title)}{f' ({escape(unit)})' if unit else ''}"
    return (
        f'<figure><figcaption>{heading}<span class="legend">{legend}</span></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{heading}">{"".join(parts)}</svg></figure>'
    )


def _thinned(values: Sequence[float | None], step: int) -> list[float | None]:
    if step == 1:
        return list(values)
    groups = [values[at : at + step] for at in range(0, len(values), step)]
    return [max((one for one in group if one is not None), default=None) for group in groups]


def _round_up(value: float) -> float:
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= value * 0.999)


def _x(second: float, end: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * second / end


def _y(value: float, top: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(value, top) / top


def _grid(top: float, end: float) -> list[str]:
    parts = []
    for at in range(GRID_LINES + 1):
        value = top * at / GRID_LINES
        y = _y(value, top)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(value)}</text>')
        second = end * at / GRID_LINES
        anchor = "end" if at == GRID_LINES else "middle"
        x = _x(second, end)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{_number(second)} s</text>')
    return parts


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _shades(void: Sequence[bool], times: Sequence[float], end: float) -> list[str]:
    width = (WIDTH - LEFT - RIGHT) / end
    return [
        f'<rect class="void" x="{_x(max(0.0, time - 1), end):.1f}" width="{width:.1f}" y="{TOP}" '
        f'height="{HEIGHT - TOP - BOTTOM}"><title>void: the generator was late</title></rect>'
        for time, is_void in zip(times, void, strict=False)
        if is_void
    ]


def _polyline(line: Line, times: Sequence[float], end: float, top: float, colour: str) -> str:
    path, pen = [], "M"
    for time, value in zip(times, line.values, strict=False):
        if value is None:
            pen = "M"
            continue
        path.append(f"{pen}{_x(time, end):.1f} {_y(value, top):.1f}")
        pen = "L"
    return f'<path d="{"".join(path)}" fill="none" stroke="{colour}" stroke-width="1.6"/>'
