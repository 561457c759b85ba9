"""The command line of ``relay loadtest``. Each command imports only what it needs."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relay.errors import OperatorError

if TYPE_CHECKING:
    from rich.console import Console

    from loadtest.running.processes import Mode
    from loadtest.verdict.result import Result

app = typer.Typer(
    help="How many calls does a relay or a TURN server carry, at what quality, and is it better than last week?",
    no_args_is_help=True,
)

_Profile = Annotated[str, typer.Argument(help="A profile's name (see `relay loadtest profiles`), or a TOML file.")]
_Target = Annotated[
    str,
    typer.Option(
        help="demo: a cloud and a relay that are started here. Or host:port on this machine, or a name that the "
        "profile lists under \\[targets]."
    ),
]
_Carrier = Annotated[str, typer.Option(help="tls, websocket, session, connect-udp or udp. Default: the target's.")]
_Users = Annotated[int | None, typer.Option(min=1, help="How many users, instead of the profile's.")]
_Seconds = Annotated[float | None, typer.Option(min=1, help="How long all of it takes, instead of the profile's time.")]
_Output = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        metavar="DIR",
        help="Where the report goes: a folder without another one. Default: a new loadtest-results/PROFILE-TIME.",
    ),
]
_Processes = Annotated[int, typer.Option(min=1, max=256, help="Generate load in this many processes, one a core.")]
_Locustfile = Annotated[
    Path | None, typer.Option(help="Your own users, in a locustfile, instead of the profile's kind.")
]
_ServerName = Annotated[str, typer.Option(help="The target's name for TLS and HTTP.")]
_Authorities = Annotated[Path | None, typer.Option("--ca", help="Verify the target's certificate with this PEM file.")]
_Username = Annotated[str, typer.Option(help="Of all users, or a pattern such as load-{number}.")]
_TargetUsers = Annotated[int, typer.Option(min=0, help="How many users the target knows; 0 for any.")]
_Secret = Annotated[str, typer.Option(envvar="RELAY_LOADTEST_SECRET", help="Secret of time-limited TURN credentials.")]
_Password = Annotated[str, typer.Option(envvar="RELAY_LOADTEST_PASSWORD", help="Password for TURN.")]
_Peer = Annotated[str, typer.Option(help="Colleagues are on this machine, by plain UDP: host:port, port 0 for any.")]
_Far = Annotated[str, typer.Option(help="Or on this TURN server past the target, by UDP: host:port.")]
_Upstream = Annotated[str, typer.Option(help="host:port of the TURN server that CONNECT-UDP asks for.")]
RESULTS = Path("loadtest-results")
SINK_TELLS_EVERY_S = 10.0


@app.command("run")
def run_command(
    profile: _Profile,
    *,
    target: _Target = "demo",
    carrier: _Carrier = "",
    users: _Users = None,
    seconds: _Seconds = None,
    output: _Output = None,
    server_name: _ServerName = "",
    ca: _Authorities = None,
    username: _Username = "",
    target_users: _TargetUsers = 0,
    secret: _Secret = "",
    password: _Password = "",
    peer: _Peer = "",
    far: _Far = "",
    sink: Annotated[str, typer.Option(help="Or a `relay loadtest sink` sends back what comes: host:port.")] = "",
    upstream: _Upstream = "",
    web_proxy: Annotated[str, typer.Option(help="host:port of a web proxy before the target.")] = "",
    cloud: Annotated[str, typer.Option(help="URL of login and signaling.")] = "",
    metrics: Annotated[str, typer.Option(help="URL of the relay's metrics.")] = "",
    processes: _Processes = 1,
    locustfile: _Locustfile = None,
    master: Annotated[bool, typer.Option("--master", help="Give the load to workers on other machines.")] = False,
    worker: Annotated[bool, typer.Option("--worker", help="Take load from a master.")] = False,
    expect_workers: Annotated[int, typer.Option(min=1, max=1000, help="With --master: wait for this many.")] = 1,
    master_host: Annotated[str, typer.Option(help="Where the master listens, or is found.")] = "127.0.0.1",
    master_port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="The master's port. Default: 5557, or with --processes one that is free."),
    ] = None,
    web: Annotated[str, typer.Option(metavar="HOST:PORT", help="Show Locust's own web page there meanwhile.")] = "",
) -> None:
    """Run a profile. Exits with 0 if all thresholds hold, with 1 if not, and with 2 for a mistake or a lost report."""
    _require_locust()
    from loadtest.running.processes import Mode, web_address

    if master and worker:
        raise OperatorError("--master and --worker: expected one of them")
    if target == "demo" and (master or worker):
        raise OperatorError("--target demo: is started for this process alone; expected host:port, or a listed target")
    options = _options(
        carrier=carrier,
        server_name=server_name,
        authorities=ca and str(ca),
        username=username,
        users=target_users,
        secret=secret,
        password=password,
        peer=peer,
        far=far,
        sink=sink,
        upstream=upstream,
        web_proxy=web_proxy,
        cloud=cloud,
        metrics=metrics,
    )
    if web and worker:
        raise OperatorError("--web and --worker: expected one of them; the page is that of the master")
    page = str(web_address(web)) if web else ""
    mode = Mode(processes, master, expect_workers, worker, master_host, master_port, page)
    _run(profile, target, options, mode, users=users, seconds=seconds, output=output, locustfile=locustfile)


def _options(**given: Any) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value}


def _require_locust() -> None:
    import importlib.util

    for package in ("locust", "pylibsrtp"):
        if importlib.util.find_spec(package) is None:
            raise OperatorError(f"relay loadtest needs {package}: install cloud9-relay[loadtest,emulator]")


def _run(
    profile_name: str,
    target_name: str,
    options: dict[str, Any],
    mode: Mode,
    *,
    users: int | None,
    seconds: float | None,
    output: Path | None,
    locustfile: Path | None,
) -> None:
    from loadtest.plan import profile as profiles
    from loadtest.plan.work import Work
    from loadtest.running import folders, supervise, targets
    from loadtest.running.locustfiles import check_locustfile
    from loadtest.running.processes import LOCUSTFILE

    chosen = profiles.load(profile_name).changed(users=users, seconds=seconds)
    if output is not None and not mode.worker:
        folders.require_free(output)
    needs_cloud = check_locustfile(locustfile, chosen) if locustfile else chosen.kind in targets.LOG_IN
    console = _terminal()
    interrupted = supervise.Interrupted()
    ready = targets.ready_target(
        chosen, target_name, options, mode=mode, needs_cloud=needs_cloud, interrupted=interrupted
    )
    with interrupted.listening(), ready as target:
        if mode.worker:
            work = Work(profile_name=profile_name, target_name=target_name, profile=chosen, target=target)
            raise typer.Exit(supervise.work_for_master(work, mode, interrupted))
        folder = folders.make_folder(output) if output else folders.new_folder(RESULTS, profile_name)
        wish = supervise.Wish(profile_name, chosen, target_name, mode, folder, (locustfile or LOCUSTFILE).absolute())
        console.print(supervise.headline(wish, target), highlight=False, soft_wrap=True)
        try:
            result = supervise.run(wish, target, console, interrupted)
        except supervise.ReportLost as lost:
            # The terminal is all that is left to tell it on.
            tell(lost.result, console)
            raise
    tell(result, console)
    console.print(
        f"{folder / 'report.html'}: for people. Beside it: result.json, junit.xml, intervals.csv",
        highlight=False,
        soft_wrap=True,
    )
    if not result.passed:
        raise typer.Exit(1)


def _terminal() -> Console:
    """For progress and verdicts. Names of files and words of servers are not markup."""
    from rich.console import Console

    return Console(stderr=True, markup=False, emoji=False)


def tell(result: Result, console: Any) -> None:
    """The verdict, on the terminal."""
    from loadtest.verdict.page import number

    for check in result.checks:
        mark = "ok  " if check.passed else "FAIL"
        limit = f"{check.comparison} {check.limit:g} {check.unit}".strip()
        console.print(
            f"  {mark} {check.name:<16} {number(check.measured, check.unit):>14}   {limit}",
            highlight=False,
            soft_wrap=True,
        )
    for reason in result.reasons:
        console.print(f"  {reason}", highlight=False, soft_wrap=True, markup=False)
    console.print(f"The test has {'passed' if result.passed else 'failed'}.", highlight=False, soft_wrap=True)


@app.command("profiles")
def profiles_command() -> None:
    """List the profiles that come with the load tester."""
    from loadtest.plan import profile as profiles

    for name in profiles.names():
        one = profiles.load(name)
        typer.echo(
            f"{name:<15} {one.users:>5} users  {one.packets_per_s:>9,.0f} packets/s  {one.shape.seconds:>5,.0f} s  "
            f"{one.description}"
        )


@app.command("compare")
def compare_command(
    first: Annotated[Path, typer.Argument(metavar="A.json", help="The result to compare with.")],
    second: Annotated[Path, typer.Argument(metavar="B.json", help="The other result.")],
) -> None:
    """Compare two results. Exits with 1 if the second is worse in anything, and with 2 if nothing can be compared."""
    from rich.console import Console
    from rich.table import Table

    from loadtest.verdict.compare import compare, differences, verdict_change, warnings
    from loadtest.verdict.page import number
    from loadtest.verdict.result import load

    one, other = load(first), load(second)
    rows = compare(one, other)
    verdict = verdict_change(one, other)
    table = Table("", str(first), str(second), "")
    table.add_row("verdict", *("passed" if result.passed else "failed" for result in (one, other)), verdict)
    for row in rows:
        table.add_row(row.name, number(row.first, row.unit), number(row.second, row.unit), row.change)
    Console(markup=False, emoji=False).print(table)
    for path, result in ((first, one), (second, other)):
        for warning in warnings(result):
            typer.echo(f"{path}: {warning}")
    for difference in differences(one, other):
        typer.echo(f"Not the same in both: {difference}")
    if all(row.change == "unknown" for row in rows):
        raise OperatorError(f"{first} and {second}: no figure was measured in both: there is nothing to compare")
    if verdict == "worse" or any(row.change == "worse" for row in rows):
        raise typer.Exit(1)


@app.command("capacity")
def capacity_command(
    *,
    target: Annotated[
        list[str] | None,
        typer.Option(help="demo, NAME=host:port on this machine, or a name that --profile lists. May be repeated."),
    ] = None,
    carrier: Annotated[list[str] | None, typer.Option(help="May be repeated: each is measured.")] = None,
    profile: Annotated[str, typer.Option(help="A profile that lists targets; nothing else of it counts.")] = "",
    first: Annotated[int, typer.Option("--from", min=1, help="How many calls to begin with.")] = 50,
    most: Annotated[int, typer.Option("--to", min=1, max=10_000, help="How many calls to end at.")] = 2000,
    seconds: Annotated[float, typer.Option(min=3, max=3600, help="How long all calls of a try are judged.")] = 10,
    repeats: Annotated[int, typer.Option(min=1, max=100, help="How often to try around the knee.")] = 3,
    server_name: _ServerName = "",
    ca: _Authorities = None,
    username: _Username = "",
    target_users: _TargetUsers = 0,
    secret: _Secret = "",
    password: _Password = "",
    peer: _Peer = "",
    far: _Far = "",
    sink: Annotated[
        str, typer.Option(help="Or a sink sends back what comes, and delays are there and back: host:port.")
    ] = "",
    upstream: _Upstream = "",
    processes: _Processes = 1,
    output: _Output = None,
) -> None:
    """Search the knee: how many calls one or several targets carry without loss, and with a p99 of 20 ms at most.

    Exits with 0 if all is known, and with 1 if the search was interrupted.
    """
    _require_locust()
    from loadtest.plan import profile as profiles
    from loadtest.plan.search import Search
    from loadtest.running import capacity, folders, supervise, targets
    from loadtest.running.demo import NotBegun
    from loadtest.running.processes import Mode

    common = _options(
        server_name=server_name, authorities=ca and str(ca), username=username, users=target_users, secret=secret,
        password=password, peer=peer, far=far, sink=sink, upstream=upstream,
    )  # fmt: skip
    listed = profiles.load(profile) if profile else capacity.profile_of(most, seconds)
    # Only its targets count.
    listed = listed.model_copy(update={"faults": ()})
    wanted = [capacity.named(text) for text in target or ["demo"]]
    carriers = [_options(carrier=one) for one in carrier or [""]]
    for (_, where), one in itertools.product(wanted, carriers):
        targets.check_target(listed, where, common | one)
    console, interrupted = _terminal(), supervise.Interrupted()
    folder = folders.make_folder(output) if output else folders.new_folder(RESULTS, "capacity")
    contestants: list[capacity.Contestant] = []
    with interrupted.listening(), folders.claimed(folder):
        with contextlib.suppress(NotBegun), contextlib.ExitStack() as stack:
            for name, where in wanted:
                ready = targets.ready_targets(
                    listed, where, [common | one for one in carriers], interrupted=interrupted
                )
                contestants += [
                    capacity.Contestant(name, targets.past_the_relay(each), Search(min(first, most), most, repeats))
                    for each in stack.enter_context(ready)
                ]
            capacity.Rounds(folder, seconds, Mode(processes)).search(contestants, console, interrupted)
        cut_short = bool(interrupted())
        written = capacity.write(contestants, folder, interrupted=cut_short)
    if not contestants:
        typer.echo(f"capacity: {capacity.NOTHING_KNOWN}")
    for contestant in contestants:
        typer.echo(capacity.told(contestant.plain(interrupted=cut_short)))
    typer.echo(f"{written}: all tries")
    if cut_short:
        raise typer.Exit(1)


@app.command("sink")
def sink_command(
    listen: Annotated[
        list[str] | None, typer.Option(metavar="HOST:PORT", help="Where it listens. May be repeated.")
    ] = None,
    senders: Annotated[
        list[str] | None, typer.Option("--from", metavar="ADDRESS", help="Who may send to it. May be repeated.")
    ] = None,
) -> None:
    """Send back what comes by UDP, until Ctrl-C: the far end of calls whose target is on another machine."""
    from loadtest.engine.plans import PlanError
    from loadtest.engine.sink import SinkError, serve
    from loadtest.plan.hosts import canonical, refuse_vendor
    from relay.addresses import parse_address

    try:
        addresses = [parse_address(one) for one in listen or ["127.0.0.1:16384"]]
        allowed = [canonical(one) for one in senders or ()]
        for one in allowed:
            refuse_vendor("--from", one)
        done = serve(addresses, allowed, SINK_TELLS_EVERY_S)
    except (SinkError, PlanError, ValueError) as error:
        raise OperatorError(f"sink: {error}") from None
    typer.echo(f"{done['reflected']:,} packets were sent back")
