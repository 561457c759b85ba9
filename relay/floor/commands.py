"""The command line of ``relay emulate``. Each command imports only what it needs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from relay.addresses import Address, parse_address
from relay.emulator.apis.sign_command import sign_command
from relay.errors import OperatorError, needing_emulator

app = typer.Typer(
    invoke_without_command=True,
    help="The vendor's cloud on this machine: login, signaling, APIs, portal and TURN hosts, for developers and tests.",
)

app.command("sign")(sign_command)

MAX_PORT = 65535
_FOLDER = Path("cloud9-emulator")
_NoUdpHop = Annotated[
    bool,
    typer.Option("--no-udp-hop", help="Have desks reach the TURN hosts directly: for load, without faults of UDP."),
]
_UdpHopPort = Annotated[
    int | None,
    typer.Option(min=1, max=MAX_PORT, help="The UDP port of the lines with faults. Default: one above --turn-port."),
]
_BadWebProxy = Annotated[str, typer.Option(help="Where the web proxy listens that faults on demand make bad.")]
_Redis = Annotated[str, typer.Option(help="redis://host: share signaling with other processes of this cloud.")]
_EventLog = Annotated[Path | None, typer.Option(help="Write each transition of each line to this file, as JSON lines.")]
_HostOn = Annotated[list[str] | None, typer.Option(help="Switch on a host that does not exist yet. May be repeated.")]


@app.callback()
def emulate(
    context: typer.Context,
    *,
    folder: Annotated[Path, typer.Option(help="Where its files go: CA, hosts, PAC, relay.toml, database.")] = _FOLDER,
    fixtures: Annotated[Path | None, typer.Option(help="A TOML file of firms, users, lines and keys.")] = None,
    store: Annotated[
        str, typer.Option(help=":memory:, a file, or postgresql://user@host/database. Default: FOLDER/emulator.db.")
    ] = "",
    http: Annotated[str, typer.Option(help="Where plain HTTP listens, for all hosts.")] = "127.0.0.1:8080",
    tls: Annotated[str, typer.Option(help="Where HTTPS listens, for all hosts.")] = "127.0.0.1:8443",
    turn_port: Annotated[int, typer.Option(min=0, max=MAX_PORT, help="The UDP port of the TURN hosts.")] = 3478,
    no_turn: Annotated[
        bool, typer.Option("--no-turn", help="Another process of this cloud has the TURN hosts.")
    ] = False,
    udp_hop_port: _UdpHopPort = None,
    no_udp_hop: _NoUdpHop = False,
    bad_web_proxy: _BadWebProxy = "127.0.0.1:3130",
    redis: _Redis = "",
    event_log: _EventLog = None,
    host_on: _HostOn = None,
    with_relay: Annotated[bool, typer.Option("--with-relay", help="Run a relay as well.")] = False,
    relay_tls: Annotated[str, typer.Option(help="Where the relay of relay.toml listens.")] = "127.0.0.1:4443",
    relay_web_proxy: Annotated[str, typer.Option(help="Where its web proxy listens.")] = "127.0.0.1:3129",
    relay_admin: Annotated[str, typer.Option(help="Where its dashboard is.")] = "127.0.0.1:9443",
    expose: Annotated[
        bool, typer.Option("--expose", help="Listen on addresses that are not loopback. Everybody knows the passwords.")
    ] = False,
) -> None:
    """Start the cloud, and stay until Ctrl-C or SIGTERM."""
    if context.invoked_subcommand is not None:
        return
    from rich.console import Console

    from relay import catalog
    from relay.emulator import fixtures as fixture_files
    from relay.emulator.settings import EmulatorSettings, RelayPlan

    settings = EmulatorSettings(
        folder=folder.absolute(),
        fixtures=fixture_files.bundled() if fixtures is None else fixture_files.load(fixtures),
        catalog=catalog.load(),
        database=store or str(folder / "emulator.db"),
        tls=_address("--tls", tls),
        http=_address("--http", http),
        turn_port=turn_port,
        runs_turn=not no_turn,
        udp_hop_port=None if no_udp_hop else hop_port(turn_port, udp_hop_port),
        bad_web_proxy=_address("--bad-web-proxy", bad_web_proxy),
        redis_url=redis or None,
        event_log=event_log,
        hosts_on=tuple(host_on or ()),
        exposed=expose,
        relay=RelayPlan(*_plan(relay_tls, relay_web_proxy, relay_admin)),
    )
    # It loads everything else, which takes seconds on a slow machine: a mistake is told before.
    with needing_emulator("relay emulate"):
        from relay.floor.emulate import emulate as run

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(settings, Console(), with_relay=with_relay))


def hop_port(turn_port: int, wanted: int | None) -> int:
    """The port of the lines with faults: above the TURN port, unless one was named. 0 if the kernel chooses both."""
    if wanted is None and turn_port == MAX_PORT:
        raise OperatorError(f"--turn-port {turn_port}: there is no port above it; give --udp-hop-port or --no-udp-hop")
    if wanted is None:
        return turn_port + 1 if turn_port else 0
    if wanted == turn_port:
        raise OperatorError(f"--udp-hop-port {wanted}: the TURN hosts have this port; expected another")
    return wanted


def _plan(tls: str, web_proxy: str, admin: str) -> tuple[Address, Address, Address]:
    return (
        _address("--relay-tls", tls),
        _address("--relay-web-proxy", web_proxy),
        _address("--relay-admin", admin),
    )


def _address(option: str, text: str) -> Address:
    try:
        address = parse_address(text)
    except ValueError as error:
        raise OperatorError(f"{option} {error}") from None
    if not address.is_literal:
        raise OperatorError(f"{option} {text!r}: expected an address such as 127.0.0.1:8080, not a name")
    return address
