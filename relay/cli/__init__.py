"""The command line: serve, upgrade, top, calls, explain, capture, demo, emulate, doctor and check-config.

Also admin-token, allowlist, catalog and ca.

Exit status
-----------
0  all is well
1  a call of the demo failed or lost something (with --wan it may lose, but must hear what was said), two catalogs
   differ, a certificate of ``ca show`` has expired, a server of ``check-config --resolve`` does not answer,
   ``capture`` was interrupted, a relay could not hand over, or something outside failed
2  the operator must act: a mistake in the configuration or on the command line, or a file that cannot be used
"""

from __future__ import annotations

import asyncio
import datetime
import os
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
import uvloop
from rich.console import Console

from loadtest.commands import app as loadtest_app
from relay import __version__, config, logs
from relay.cli.ca import app as ca_app
from relay.cli.catalog import allowlist
from relay.cli.catalog import app as catalog_app
from relay.doctor.commands import app as doctor_app
from relay.errors import OperatorError, RelayError, needing_emulator
from relay.floor.commands import app as emulate_app

if TYPE_CHECKING:
    from relay.console.listener import AdminListener

app = typer.Typer(
    name="relay",
    help="A firm's own relay for Cloud9 voice: TURN/TLS and HTTPS on one port in, voice out over UDP.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# What is compiled, and may not have been.
EXTENSIONS = ("relay._fastpath", "loadtest.engine._engine", "relay.emulator.sfu._fanout", "relay.emulator.turn._native")

# The calls of `relay demo`: long enough to see, short enough to wait for.
DEMO_SECONDS = 10.0

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
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Take the options that come before a command."""


@app.command()
def serve(
    config_file: Annotated[Path, typer.Option("--config", help="The relay's TOML file.")],
    watch: Annotated[bool, typer.Option("--watch", help="Read the file again whenever it changes.")] = False,
) -> None:
    """Run the relay. SIGTERM drains (twice: stops), SIGHUP reloads, SIGUSR2 hands over to a new process."""
    # By default these would end the process. Until the file has been read, there is nothing to read again or hand over.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    from relay.gateway.serve import serve as serve_gateway

    _run(serve_gateway(config_file, watch=watch))


@app.command()
def upgrade(
    pid: Annotated[
        str | None,
        typer.Option(
            metavar="PID|FILE", help="The relay's process, or a file with its number. Default: the only one that runs."
        ),
    ] = None,
) -> None:
    """Restart a running relay without losing a call: it starts a new process, which takes its listening sockets.

    The new process may be another version, and reads the configuration again. If it fails, the relay goes on as before.
    """
    from relay.console.upgrade import upgrade as hand_over

    typer.echo(f"process {hand_over(pid)} serves now; the one before ends with its calls")


@app.command("check-config")
def check_config(
    config_file: Annotated[Path, typer.Argument(metavar="FILE", help="The relay's TOML file.")],
    *,
    resolve: Annotated[
        bool,
        typer.Option("--resolve", help="Look up names, ask all upstreams, and show what they answer. 1: not all did."),
    ] = False,
    skip_addresses: Annotated[
        bool,
        typer.Option("--skip-addresses", help="For another machine: do not look whether this one has the addresses."),
    ] = False,
) -> None:
    """Check a configuration. Each mistake is one line: key, value, what was expected. Changes nothing.

    Warnings leave the exit status at 0: what is wrong with certificates, such as one that has expired, and what is open
    to more people than it may have to be; and a limit of file descriptors, here and now, that is too low.
    """
    from relay.gateway.checking.warnings import find_warnings, sum_up

    settings = config.load(config_file)
    warnings = find_warnings(settings, config_file, datetime.datetime.now(datetime.UTC), addresses=not skip_addresses)
    for warning in warnings:
        typer.echo(f"relay: warning: {warning}", err=True)
    typer.echo(f"{config_file}: ok ({sum_up(settings, len(warnings))})")
    if resolve and not _all_answer(settings):
        raise typer.Exit(1)


def _all_answer(settings: config.Config) -> bool:
    """Ask all servers, and show what was found. Returns True if all answered."""
    from relay.gateway.checking.reach import reach, table_of

    found = _run(reach(settings))
    Console().print(table_of(found))
    return not any(one.trouble for one in found)


# Not on the command line: every user of a machine can read the command lines of all programs.
ADMIN_TOKEN = "RELAY_ADMIN_TOKEN"  # noqa: S105 - the variable's name
UrlOption = Annotated[
    str, typer.Option(help="The address of the relay's admin listener, or unix: and the path of its socket.")
]
TokenOption = Annotated[
    Path | None,
    typer.Option("--token-file", metavar="FILE", help=f"A file with the listener's token. {ADMIN_TOKEN} can hold it."),
]
CaOption = Annotated[
    Path | None,
    typer.Option("--ca", metavar="FILE", help="Authorities for an https:// listener, in PEM. Default: the system's."),
]


def _admin_listener(url: str, token_file: Path | None, ca: Path | None) -> AdminListener:
    from relay.console.listener import AdminListener

    token = os.environ.get(ADMIN_TOKEN, "")
    if token_file is not None:
        try:
            token = token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise OperatorError(f"--token-file {token_file}: {getattr(error, 'strerror', error)}") from None
    return AdminListener(url, token, ca)


@app.command("admin-token")
def admin_token() -> None:
    """Make a token for the admin listener, and the hash of it that the configuration takes."""
    from relay.gateway.admin.tokens import hash_token, new_token

    token = new_token()
    typer.echo(f"The token, which is not stored anywhere:\n\n{token}\n")
    typer.echo(f'For the configuration:\n\n[admin]\ntoken_hash = "{hash_token(token)}"')


@app.command()
def top(
    url: UrlOption = "http://127.0.0.1:9443",
    once: Annotated[bool, typer.Option("--once", help="Print once and exit.")] = False,
    match: Annotated[
        str, typer.Option(help="Show only flows whose user, client, server name or upstream contains this text.")
    ] = "",
    token_file: TokenOption = None,
    ca: CaOption = None,
) -> None:
    """Show the calls of a running relay, the worst first; Ctrl-C ends it."""
    from relay.console.top import show, show_once

    listener = _admin_listener(url, token_file, ca)
    try:
        _run((show_once if once else show)(listener, match, Console()))
    except KeyboardInterrupt:
        raise typer.Exit from None


TIME_HELP = "A time here: 10:32 (today, or yesterday if it is not yet that late), 2026-11-28 or 2026-11-28T10:32."


@app.command()
def calls(
    *,
    user: Annotated[str, typer.Option(help="A part of the user's name.")] = "",
    address: Annotated[str, typer.Option(help="The client's IP address.")] = "",
    at: Annotated[str, typer.Option(help="Calls that ran then. " + TIME_HELP)] = "",
    since: Annotated[str, typer.Option("--from", help="Calls that ran then or later.")] = "",
    until: Annotated[str, typer.Option("--to", help="Calls that ran then or before.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many calls at most, the last first.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, a call in each line.")] = False,
    url: UrlOption = "http://127.0.0.1:9443",
    token_file: TokenOption = None,
    ca: CaOption = None,
) -> None:
    """Find calls that have ended, by user, address and time. `relay explain ID` says what became of one."""
    from relay.console.calls import show_calls, wanted_of

    wanted = wanted_of(user, address, limit, at=at, since=since, until=until)
    _run(show_calls(_admin_listener(url, token_file, ca), wanted, Console(), as_json=as_json))


@app.command()
def explain(
    *,
    call: Annotated[str, typer.Argument(metavar="ID", help="The call's id, from relay calls, relay top or the log.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    url: UrlOption = "http://127.0.0.1:9443",
    token_file: TokenOption = None,
    ca: CaOption = None,
) -> None:
    """Say what became of a call: how it sounded, where voice was lost, what was dropped, and who closed it."""
    from relay.console.calls import show_explanation

    _run(show_explanation(_admin_listener(url, token_file, ca), call, Console(), as_json=as_json))


@app.command()
def capture(
    *,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="The pcapng file to write. It must not exist yet.")
    ],
    flow: Annotated[str, typer.Option(help="The call's id, from relay top, its dashboard page, or /api/flows.")] = "",
    user: Annotated[str, typer.Option(help="Instead: the name of a user who has one call now.")] = "",
    seconds: Annotated[float, typer.Option(min=0.1, max=86_400, help="How long to record, at most.")] = 10,
    url: UrlOption = "http://127.0.0.1:9443",
    token_file: TokenOption = None,
    ca: CaOption = None,
) -> None:
    """Record the packets of a flow for Wireshark, if the relay's configuration allows it; Ctrl-C ends it early."""
    from relay.console.capture import capture as take
    from relay.console.capture import flow_of

    if bool(flow) == bool(user):
        raise OperatorError("expected either --flow or --user")
    listener = _admin_listener(url, token_file, ca)
    try:
        captured = _run(take(listener, flow or _run(flow_of(listener, user)), seconds, output))
    except KeyboardInterrupt:
        raise typer.Exit(1) from None
    figures = f"{captured.packets} packets, {captured.bytes} bytes, {captured.missed} missed"
    typer.echo(f"{captured.path}: {figures} ({captured.end})")


@app.command()
def demo(
    *,
    wan: Annotated[
        bool,
        typer.Option("--wan", help="Hear the same sentence over a bad path: by UDP, by TLS, and through the relay."),
    ] = False,
    seconds: Annotated[
        float | None,
        typer.Option(min=0.1, max=3600, help="How long the calls last. Default: 10, or with --wan one sentence."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="DIR", help="With --wan: where the WAV files go. Default: relay-demo-wan."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
    stay: Annotated[bool, typer.Option("--stay", help="Keep it running for your browser, until Ctrl-C.")] = False,
) -> None:
    """Place real SRTP calls on this machine, direct and through the relay, and show how they sounded."""
    with needing_emulator("relay demo"):
        from relay.demo import commands
        from relay.demo.wan import commands as wan_commands

    if wan and stay:
        raise OperatorError("--stay: not with --wan, which has nothing for a browser")
    if output is not None and not wan:
        raise OperatorError("--output: needs --wan")
    logs.configure("error", "text")
    if wan:
        work = wan_commands.show(seconds, output, as_json=as_json)
    else:
        work = commands.show(DEMO_SECONDS if seconds is None else seconds, as_json=as_json, stay=stay)
    if not _run(work):
        raise typer.Exit(1)


app.command("allowlist")(allowlist)
app.add_typer(catalog_app, name="catalog")
app.add_typer(doctor_app, name="doctor")
app.add_typer(emulate_app, name="emulate")
app.add_typer(loadtest_app, name="loadtest")
app.add_typer(ca_app, name="ca")


def main() -> None:
    """The console script. What the operator must act on is one plain line, not a traceback."""
    try:
        app()
    except ModuleNotFoundError as missing:
        if missing.name not in EXTENSIONS:
            raise
        typer.echo(f"relay: the extension {missing.name} is not built. Run pip install . (or make demo)", err=True)
        raise SystemExit(2) from None
    except RelayError as error:
        for line in str(error).splitlines():
            typer.echo(f"relay: {line}", err=True)
        raise SystemExit(2 if isinstance(error, OperatorError) else 1) from None
