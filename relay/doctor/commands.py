"""The command line of ``relay doctor``. Each command imports only what it needs.

Exit status: 0 if every area that was asked for is ready, 1 if one is not, 2 for a mistake on the command line, 3 if
nothing failed, but something was not tested.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from relay.errors import OperatorError

app = typer.Typer(
    invoke_without_command=True,
    help="Is this network ready for Cloud9 voice, and if not, who must change what?",
)

_WORSE = 1
_FOLDER = Path("cloud9-emulator")

_Emulator = Annotated[
    Path | None, typer.Option("--emulator", metavar="DIR", help=f"An emulator's folder. Default: {_FOLDER}.")
]
_Relay = Annotated[
    str, typer.Option("--relay", metavar="HOST[:PORT]", help="A relay. Alone, it is all that is tested.")
]
_RelayName = Annotated[str, typer.Option(help="The relay's server name in TLS, if it is not its host.")]
_Live = Annotated[bool, typer.Option("--live", help="Test the vendor's own hosts. Without it nothing is sent to them.")]
_ProxyUrl = Annotated[str | None, typer.Option("--proxy", metavar="http://HOST:PORT", help="The web proxy to use.")]
_Pac = Annotated[str | None, typer.Option("--pac", metavar="URL|FILE", help="The PAC file that names the web proxy.")]
_Wpad = Annotated[bool, typer.Option("--wpad", help="Look for a PAC file in DNS, as browsers do.")]
_Login = Annotated[
    Path | None,
    typer.Option("--proxy-login", metavar="FILE", help="User and password of the web proxy, in a line each."),
]
_TurnLogin = Annotated[
    Path | None,
    typer.Option("--turn-credentials", metavar="FILE", help="User and password of TURN, in a line each."),
]
_TurnHost = Annotated[str, typer.Option(metavar="HOST:PORT", help="A TURN server of the relay, for CONNECT-UDP.")]
_Ca = Annotated[
    Path | None,
    typer.Option("--ca", metavar="FILE", help="An authority to trust; of a relay, the one that signs it. In PEM."),
]
_CatalogOption = Annotated[
    str | None, typer.Option("--catalog", metavar="CATALOG", help="A version, or a file. Default: the newest.")
]


@app.callback()
def doctor(
    context: typer.Context,
    *,
    emulator: _Emulator = None,
    relay: _Relay = "",
    relay_name: _RelayName = "",
    live: _Live = False,
    proxy: _ProxyUrl = None,
    pac: _Pac = None,
    wpad: _Wpad = False,
    proxy_login: _Login = None,
    turn_credentials: _TurnLogin = None,
    turn_host: _TurnHost = "",
    ca: _Ca = None,
    version: _CatalogOption = None,
    quick: Annotated[bool, typer.Option("--quick", help="Within 15 s: a host of each kind, 3 s of voice.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write one HTML file, to be mailed.")
    ] = None,
    rules: Annotated[bool, typer.Option("--rules/--no-rules", help="Show changes as rules of products.")] = True,
) -> None:
    """Test this network. Exit status: 0 ready, 1 not ready, 2 a mistake here, 3 something was not tested."""
    if context.invoked_subcommand is not None:
        return
    if live and emulator is not None:
        raise OperatorError("--live: not with --emulator")
    from rich.console import Console

    from relay import catalog, writing
    from relay.doctor import asked
    from relay.doctor.page import page
    from relay.doctor.report import to_json
    from relay.doctor.table import render
    from relay.doctor.targets import Wishes

    wishes = Wishes(
        catalog=catalog.load() if version is None else catalog.load_version(version),
        quick=quick,
        proxy=asked.proxy_plan(proxy, pac, proxy_login, wpad=wpad),
        credentials=None if turn_credentials is None else asked.turn_credentials(turn_credentials),
        ca=ca,
        relay=asked.relay_address(relay) if relay else None,
        relay_name=relay_name,
        turn_host=asked.address("--turn-host", turn_host) if turn_host else None,
    )
    folder = _FOLDER if emulator is None and not relay else emulator
    report = asked.examine(wishes, folder, Console(stderr=True, quiet=as_json), live=live)
    if html is not None:
        writing.replace(html, page(report).encode())
    if as_json:
        typer.echo(to_json(report), nl=False)
    else:
        Console().print(render(report, with_rules=rules))
    raise typer.Exit(asked.status_of(report))


@app.command("explain")
def explain(
    code: Annotated[str, typer.Argument(metavar="CODE", help="A check's code, such as UDP-HIGH-PORTS.")] = "",
) -> None:
    """Say what a check tests, why, and what to change. Without a code: list all checks."""
    from relay.doctor import explain as explanations
    from relay.doctor.checks import ALL

    if code:
        typer.echo(explanations.text_of(explanations.find(code)))
        return
    for check in ALL:
        typer.echo(explanations.text_of(check).partition("\n")[0])


@app.command("diff")
def diff(
    before: Annotated[Path, typer.Argument(metavar="A", help="A report, from --json.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="A later report.")],
) -> None:
    """Show what has become better (+) and worse (-) from A to B. Exits with 1 if anything is worse."""
    from relay.doctor.asked import read_report
    from relay.doctor.difference import compare

    changes = compare(read_report(before), read_report(after))
    for change in changes:
        typer.echo(str(change))
    if any(change.worse for change in changes):
        raise typer.Exit(_WORSE)
