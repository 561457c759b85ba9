"""The demo's table, and the same as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table

from relay.demo.calls import Heard
from relay.quality.playout import Playout, play


@dataclass(frozen=True)
class Row:
    """One line: a direction of a call and how it sounded. ``wrong`` packets did not authenticate or differed."""

    path: str
    direction: str
    playout: Playout
    wrong: int

    @property
    def complete(self) -> bool:
        """True if all that was sent arrived, and arrived as it was sent."""
        return self.playout.sent > 0 and self.playout.lost == 0 and self.wrong == 0


def rows_of(heard: Sequence[Heard]) -> list[Row]:
    """Score each direction."""
    return [Row(one.path, one.direction, play(one.delays_ms), one.wrong) for one in heard]


def table_of(rows: Sequence[Row]) -> Table:
    """The table, for people."""
    table = Table(
        title="SRTP calls, G.711, 50 packets/s each way; delays are one-way",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        title_justify="left",
        title_style="bold",
    )
    for name in ("path", "way"):
        table.add_column(name, no_wrap=True)
    for name in ("sent", "received", "late", "lost", "wrong", "p50 ms", "p99 ms", "MOS"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        playout = row.playout
        counts = (playout.sent, playout.received, playout.late, playout.lost, row.wrong)
        figures = (_figure(playout.delay_p50_ms), _figure(playout.delay_p99_ms), _figure(playout.mos))
        style = "" if row.complete else "bold red"
        table.add_row(row.path, row.direction, *map(str, counts), *figures, style=style)
    return table


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def json_of(rows: Sequence[Row]) -> dict[str, Any]:
    """JSON, for scripts. Delays are in milliseconds, one way. MOS is MOS-CQE of the E-model."""
    return {
        "complete": all(row.complete for row in rows),
        "streams": [
            {
                "path": row.path,
                "direction": row.direction,
                "sent": row.playout.sent,
                "received": row.playout.received,
                "late": row.playout.late,
                "lost": row.playout.lost,
                "wrong": row.wrong,
                "delay_p50_ms": row.playout.delay_p50_ms,
                "delay_p99_ms": row.playout.delay_p99_ms,
                "mos": row.playout.mos,
                "codec": row.playout.codec.name,
            }
            for row in rows
        ],
    }
