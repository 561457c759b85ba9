"""What the command line asks for: the plan that its options make, the run with its progress, and the exit status."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from relay import deadlines
from relay.addresses import Address, parse_address
from relay.client.connect import Proxy
from relay.doctor.examine import OnStep
from relay.doctor.examine import examine as examine_plan
from relay.doctor.plan import Credentials, Plan, ProxyPlan
from relay.doctor.report import Report, Verdict, from_json
from relay.doctor.targets import Wishes, emulator_login, emulator_relay, of_emulator, of_relay, of_vendor
from relay.errors import OperatorError

NOT_READY, INCOMPLETE = 1, 3
# A relay of this machine answers at once, or is not there.
IS_THERE_S = 1.0
# Steps between lines of progress, where the output cannot show a bar.
STEPS = 20


def status_of(report: Report) -> int:
    """The exit status that a report leads to."""
    if report.worst is Verdict.NOT_READY:
        return NOT_READY
    return INCOMPLETE if report.worst in {Verdict.INCOMPLETE, Verdict.NOT_TESTED} else 0


def read_report(path: Path) -> Report:
    """The report in a file of JSON. Raises OperatorError."""
    try:
        return from_json(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise OperatorError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def examine(wishes: Wishes, emulator: Path | None, told: Console, *, live: bool) -> Report:
    """Test the vendor's hosts if ``live``, else a relay if no emulator's folder is given, else the emulator.

    Progress goes to ``told``. Raises OperatorError.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_examine(wishes, emulator and emulator.absolute(), told, live=live))


async def _examine(wishes: Wishes, emulator: Path | None, told: Console, *, live: bool) -> Report:
    if live:
        return await _run(of_vendor(wishes), told)
    if emulator is None:
        return await _run(of_relay(wishes), told)
    there = wishes.relay is None and await _is_there(emulator_relay(emulator))
    async with emulator_login(emulator) as credentials:
        given = replace(wishes, credentials=wishes.credentials or credentials)
        return await _run(of_emulator(emulator, given, with_relay=there), told)


async def _is_there(address: Address) -> bool:
    try:
        async with deadlines.timeout(IS_THERE_S):
            transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, *address)
    except (OSError, TimeoutError):
        return False
    transport.abort()
    return True


def proxy_plan(url: str | None, pac: str | None, login: Path | None, *, wpad: bool) -> ProxyPlan:
    """How the web proxy is to be found, and the file with its login. Raises OperatorError."""
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


def turn_credentials(path: Path) -> Credentials:
    """User and password of TURN, from a file. Raises OperatorError."""
    return Credentials(*_two_lines("--turn-credentials", path))


def relay_address(text: str) -> Address:
    """HOST or HOST:PORT. Raises OperatorError."""
    return address("--relay", text if text.rpartition("]")[2].count(":") == 1 else f"{text}:443")


def address(option: str, text: str) -> Address:
    """HOST:PORT, as an option gives it. Raises OperatorError."""
    try:
        return parse_address(text)
    except ValueError as error:
        raise OperatorError(f"{option} {error}") from None


async def _run(plan: Plan, told: Console) -> Report:
    with _progress(told, plan) as on_step:
        return await examine_plan(plan, on_step)


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
