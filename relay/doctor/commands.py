"""The command line of ``relay doctor``.

Exit status: 0 if every area that was asked for is ready, 1 if one is not, 2 for a mistake on the command line, 3 if
nothing failed, but something was not tested.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from relay import catalog, writing
from relay.addresses import Address, parse_address
from relay.client.connect import Proxy
from relay.doctor import explain as explanations
from relay.doctor.checks import ALL
from relay.doctor.difference import compare
from relay.doctor.examine import OnStep, examine
from relay.doctor.page import page
from relay.doctor.plan import Credentials, Plan, ProxyPlan
from relay.doctor.report import Report, Verdict, from_json, to_json
from relay.doctor.table import render
from relay.doctor.targets import Wishes, emulator_login, emulator_relay, of_emulator, of_relay, of_vendor
from relay.errors import OperatorError

app = typer.Typer(
    invoke_without_command=True,
    help="Is this network ready for Cloud9 voice, and if not, who must change what?",
)

NOT_READY, INCOMPLETE = 1, 3
FOLDER = Path("cloud9-emulator")
# A relay of this machine answers at once, or is not there.
IS_THERE_S = 1.0
_Result = TypeVar("_Result")
# Steps between lines of progress, where the output cannot show a bar.
STEPS = 20

_Emulator = Annotated[
    Path | None, typer.Option("--emulator", metavar="DIR", help=f"An emulator's folder. Default: {FOLDER}.")
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
    wishes = Wishes(
        catalog=catalog.load() if version is None else catalog.load_version(version),
        quick=quick,
        proxy=_proxy_plan(proxy, pac, proxy_login, wpad=wpad),
        credentials=None
        if turn_credentials is None
        else Credentials(*_two_lines("--turn-credentials", turn_credentials)),
        ca=ca,
        relay=_relay_address(relay) if relay else None,
        relay_name=relay_name,
        turn_host=_address("--turn-host", turn_host) if turn_host else None,
    )
    report = _with_loop(_examine(wishes, emulator, Console(stderr=True, quiet=as_json), live=live))
    if html is not None:
        writing.replace(html, page(report).encode())
    if as_json:
        typer.echo(to_json(report), nl=False)
    else:
        Console().print(render(report, with_rules=rules))
    raise typer.Exit(status_of(report))


def status_of(report: Report) -> int:
    """The exit status that a report leads to."""
    if report.worst is Verdict.NOT_READY:
        return NOT_READY
    return INCOMPLETE if report.worst in {Verdict.INCOMPLETE, Verdict.NOT_TESTED} else 0


@app.command("explain")
def explain(
    code: Annotated[str, typer.Argument(metavar="CODE", help="A check's code, such as UDP-HIGH-PORTS.")] = "",
) -> None:
    """Say what a check tests, why, and what to change. Without a code: list all checks."""
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
    changes = compare(_read(before), _read(after))
    for change in changes:
        typer.echo(str(change))
    if any(change.worse for change in changes):
        raise typer.Exit(NOT_READY)


def _read(path: Path) -> Report:
    try:
        return from_json(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise OperatorError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


# The plan


async def _examine(wishes: Wishes, emulator: Path | None, told: Console, *, live: bool) -> Report:
    if live:
        return await _run(of_vendor(wishes), told)
    if emulator is None and wishes.relay is not None:
        return await _run(of_relay(wishes), told)
    folder = (emulator or FOLDER).absolute()
    there = wishes.relay is None and await _is_there(emulator_relay(folder))
    async with emulator_login(folder) as credentials:
        given = replace(wishes, credentials=wishes.credentials or credentials)
        return await _run(of_emulator(folder, given, with_relay=there), told)


async def _is_there(address: Address) -> bool:
    try:
        async with asyncio.timeout(IS_THERE_S):
            transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, *address)
    except (OSError, TimeoutError):
        return False
    transport.abort()
    return True


def _proxy_plan(url: str | None, pac: str | None, login: Path | None, *, wpad: bool) -> ProxyPlan:
    if url is not None:
        try:
            given = Proxy.parse(url)
        except ValueError as error:
            raise OperatorError(f"--proxy: {error}") from None
        if given.password:
            # Every user of a machine can read the command lines of all programs.
            raise OperatorError("--proxy: a password does not belong on a command line; use --proxy-login FILE")
    return ProxyPlan(
        url=url,
        pac=pac,
        environment=dict(os.environ),
        wpad=wpad,
        search=_search_domains() if wpad else (),
        login=None if login is None else _two_lines("--proxy-login", login),
    )


def _search_domains(path: Path = Path("/etc/resolv.conf")) -> tuple[str, ...]:
    """The domains that this machine completes names with."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    words = [line.split() for line in lines if line.startswith(("search", "domain"))]
    return tuple(dict.fromkeys(domain.strip(".").lower() for line in words for domain in line[1:]))


def _two_lines(option: str, path: Path) -> tuple[str, str]:
    """A user and a password. The message of an error has neither."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OperatorError(f"{option} {path}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
    if len(lines) < 2 or not lines[0]:
        raise OperatorError(f"{option} {path}: expected two lines, a user and a password")
    return lines[0], lines[1]


def _relay_address(text: str) -> Address:
    return _address("--relay", text if text.rpartition("]")[2].count(":") == 1 else f"{text}:443")


def _address(option: str, text: str) -> Address:
    try:
        return parse_address(text)
    except ValueError as error:
        raise OperatorError(f"{option} {error}") from None


# The run


async def _run(plan: Plan, told: Console) -> Report:
    with _progress(told, plan) as on_step:
        return await examine(plan, on_step)


def _with_loop(work: Coroutine[Any, Any, _Result]) -> _Result:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


@contextlib.contextmanager
def _progress(told: Console, plan: Plan) -> Iterator[OnStep]:
    """A bar on a terminal, elsewhere a line now and then."""
    if told.is_terminal:
        columns = (BarColumn(), TextColumn("{task.completed} of {task.total}  {task.description}"))
        with Progress(*columns, console=told, transient=True) as shown:
            bar = shown.add_task("", total=1)

            def on_bar(done: int, total: int, what: str) -> None:
                shown.update(bar, completed=done, total=total, description=what)

            yield on_bar
        return
    told.print(f"Testing {plan.target}, for {plan.limits.total_s:g} s at most.", soft_wrap=True, markup=False)

    def on_step(done: int, total: int, what: str) -> None:
        if done % STEPS == 0:
            told.print(f"{done} of {total} probes have ended.", soft_wrap=True, markup=False)

    yield on_step
