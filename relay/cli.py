"""The command line: ``relay serve``, ``relay top``, ``relay capture``, ``relay demo``, ``relay check-config``.

Exit status: 0 all is well, 1 a call failed or lost something, 2 the operator must act.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from relay import __version__, config, logs
from relay.errors import OperatorError, RelayError

app = typer.Typer(
    name="relay",
    help="A firm's own relay for Cloud9 voice: TURN/TLS and HTTPS on one port in, UDP out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_Result = TypeVar("_Result")


def _run(work: Coroutine[Any, Any, _Result]) -> _Result:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cloud9-relay {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and end.")
    ] = False,
) -> None:
    """Take the options that stand before a command."""


@app.command()
def serve(config_file: Annotated[Path, typer.Option("--config", help="The relay's TOML file.")]) -> None:
    """Run the relay. SIGTERM drains (twice: stops), SIGHUP reloads."""
    from relay.gateway.serve import serve as serve_gateway

    _run(serve_gateway(config_file))


@app.command("check-config")
def check_config(config_file: Annotated[Path, typer.Argument(metavar="FILE", help="The relay's TOML file.")]) -> None:
    """Say what is wrong with a configuration: key, value, what was expected. Changes nothing."""
    from relay import catalog
    from relay.gateway.app import certificates
    from relay.gateway.entitlement import check as check_entitlement
    from relay.gateway.records import check_folder
    from relay.plane.tls import ServerContexts

    settings = config.load(config_file)
    ServerContexts(certificates(settings))
    catalog.load(settings.catalog.path)
    if settings.quality.records is not None:
        check_folder(settings.quality.records)
    check_entitlement(settings.entitlement)
    for warning in settings.warnings():
        typer.echo(f"{config_file}: warning: {warning}", err=True)
    typer.echo(f"{config_file}: ok ({len(settings.upstreams)} upstreams, {len(settings.routes)} routes)")


@app.command()
def top(
    url: Annotated[str, typer.Option(help="Where the relay's admin listener is.")] = "http://127.0.0.1:9443",
    once: Annotated[bool, typer.Option("--once", help="Print one frame and end.")] = False,
    match: Annotated[str, typer.Option(help="Show flows of which user, client, server name or upstream fit.")] = "",
) -> None:
    """Show the calls of a running relay, the worst first; Ctrl-C ends it."""
    from relay.gateway.top import show, show_once

    try:
        _run((show_once if once else show)(url, match, Console()))
    except KeyboardInterrupt:
        raise typer.Exit from None


@app.command()
def capture(
    flow: Annotated[str, typer.Option(help="The flow's number: connection in /api/flows and on its page.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="A new file, pcapng.")],
    seconds: Annotated[float, typer.Option(min=0.1, max=86_400, help="How long, at most.")] = 10,
    url: Annotated[str, typer.Option(help="Where the relay's admin listener is.")] = "http://127.0.0.1:9443",
) -> None:
    """Record the packets of a flow for Wireshark, if the relay's configuration allows it; Ctrl-C ends it early."""
    from relay.gateway.capture_file import capture as take

    try:
        captured = _run(take(url, flow, seconds, output))
    except KeyboardInterrupt:
        raise typer.Exit(1) from None
    figures = f"{captured.packets} packets, {captured.bytes} bytes, {captured.missed} missed"
    typer.echo(f"{captured.path}: {figures} ({captured.end})")


@app.command()
def demo(
    seconds: Annotated[float, typer.Option(min=0.1, max=3600, help="How long the calls last.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
) -> None:
    """Place real SRTP calls on loopback, direct and through the relay, and show how they sounded."""
    try:
        from relay.demo.report import json_of, table_of
        from relay.demo.run import PATHS, run_demo
        from relay.demo.softphone import PACKETS_PER_SECOND
    except ModuleNotFoundError as missing:
        raise OperatorError(f"relay demo needs {missing.name}: install cloud9-relay[emulator]") from None

    logs.configure("warning", "text")
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=as_json) as progress:
        bar = progress.add_task("calling", total=PATHS * round(seconds * PACKETS_PER_SECOND))
        rows = _run(run_demo(seconds, lambda: progress.advance(bar)))
    if as_json:
        typer.echo(json.dumps(json_of(rows), indent=2))
    else:
        Console().print(table_of(rows))
    if not all(row.complete for row in rows):
        raise typer.Exit(1)


def main() -> None:
    """The console script. What the operator must act on is told in plain lines, not in a traceback."""
    try:
        app()
    except ModuleNotFoundError as missing:
        if missing.name != "relay._fastpath":
            raise
        typer.echo("relay: the extension relay._fastpath is not built: run pip install . (or make demo)", err=True)
        raise SystemExit(2) from None
    except RelayError as error:
        for line in str(error).splitlines():
            typer.echo(f"relay: {line}", err=True)
        raise SystemExit(2 if isinstance(error, OperatorError) else 1) from None
