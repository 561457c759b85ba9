"""The story as a table, as JSON, and as files to listen to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from relay import writing
from relay.demo.wan.story import Story, Told
from relay.demo.wan.way import LOSS, PATH, RELAY, TLS, UDP
from relay.errors import OperatorError
from relay.quality.playout import DEFAULT_DEADLINE_MS, Playout

FILES = {UDP: "1-udp.wav", TLS: "2-tls.wav", RELAY: "3-relay.wav"}
CONDITIONS = f"{1000 * PATH.delay_s:g} ms each way, {100 * LOSS:g} % loss"
EXPLANATION = (
    f"Late: not there when it has to be played, {DEFAULT_DEADLINE_MS:g} ms after the fastest packet would have been.\n"
    "Delays are one-way. MOS is of the E-model (ITU-T G.107): 4.4 is the best, below 3.6 many complain."
)


def make_folder(folder: Path) -> None:
    """The folder of the files, which may exist. Raises OperatorError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OperatorError(f"{folder}: {error.strerror}") from None


def write_files(folder: Path, calls: Sequence[Told]) -> list[Path]:
    """Write what the trader heard in each call, and replace earlier files. Raises OperatorError."""
    paths = [folder / FILES[call.way] for call in calls]
    for path, call in zip(paths, calls, strict=True):
        writing.replace(path, call.wav)
    return paths


def table_of(story: Story) -> Table:
    """What the trader heard, for people."""
    path = "a simulated path" if story.simulated else "a path"
    table = Table(
        title=f"One sentence over {path}: {CONDITIONS}",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        title_justify="left",
        title_style="bold",
    )
    table.add_column("way", no_wrap=True)
    for name in ("sent", "lost", "late", "p50 ms", "p99 ms", "MOS"):
        table.add_column(name, justify="right", no_wrap=True)
    for call in story.calls:
        heard = call.trader
        delays = (_figure(heard.delay_p50_ms, 0), _figure(heard.delay_p99_ms, 0))
        table.add_row(call.way, str(heard.sent), str(heard.lost), str(heard.late), *delays, _figure(heard.mos, 2))
    return table


def note_of(story: Story) -> str:
    """What must be known of a path that was simulated; empty for a real one."""
    if story.simulated is None:
        return ""
    return (
        f"The path was simulated, because {story.simulated}.\n"
        "Clients, SRTP, TLS and the relay were real. The TURN server was the emulator's. This program\n"
        "delayed and lost datagrams, and let TCP stall as a model of it does. As root, and with coturn,\n"
        "all of it is real."
    )


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def json_of(story: Story, files: Sequence[Path]) -> dict[str, Any]:
    """JSON, for scripts. Delays are in milliseconds, one way. MOS is MOS-CQE of the E-model."""
    return {
        "simulated": story.simulated,
        "delay_ms": 1000 * PATH.delay_s,
        "loss_percent": 100 * LOSS,
        "authentic": story.authentic,
        "ways": [
            {
                "way": call.way,
                "file": str(path),
                "wrong": call.wrong,
                "path_lost": call.path_lost,
                "trader": _figures(call.trader),
                "other": _figures(call.other),
            }
            for call, path in zip(story.calls, files, strict=True)
        ],
    }


def _figures(heard: Playout) -> dict[str, Any]:
    return {
        "sent": heard.sent,
        "received": heard.received,
        "late": heard.late,
        "lost": heard.lost,
        "delay_p50_ms": heard.delay_p50_ms,
        "delay_p99_ms": heard.delay_p99_ms,
        "mos": heard.mos,
        "codec": heard.codec.name,
    }
