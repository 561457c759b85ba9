"""Runs coroutine tests on uvloop, with a deadline, and proves after each that nothing is left of it.

An exception that escapes from a callback of the loop fails the test: an operator would find it in the log.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import itertools
import os
import signal
from collections.abc import Generator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import uvloop

# A failed assertion of a helper shows its values, like one of a test.
pytest.register_assert_rewrite("tests.support")

from tests.support import brief_stacks  # noqa: E402
from tests.support.kept import KEPT  # noqa: E402

# No test waits longer: the slowest, a flood of 1,000 connections, takes a fraction of it.
DEADLINE_S = 120
MAX_LINES = 40
# What pytest keeps of each test makes later collections slower, unless it is put aside.
FREEZE_EVERY = 50
# c-ares closes its descriptors in a thread of its own, for which nothing can wait.
CLOSING_S = 10

_TURNS = {path: turn for turn, path in enumerate(sorted(Path(__file__).parent.rglob("test_*.py")))}
_finished = itertools.count(1)

# The time that an example takes depends on the machine, and so does what is kept on disk.
hypothesis.settings.register_profile(
    "suite", deadline=None, database=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("suite")


def open_descriptors() -> set[str]:
    """What the process has open, as /proc names it, without the loop's own descriptors."""
    targets = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            targets.add(name + " " + os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            continue
    # libuv holds /dev/null in reserve, to refuse connections when no descriptor is left; once it has, the root.
    own = ("anon_inode", "/proc/", " /dev/null")
    return {target for target in targets if not any(part in target for part in own) and not target.endswith(" /")}


async def _run_alone(test: Any, arguments: dict[str, Any]) -> None:
    before = open_descriptors()
    escaped: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: escaped.append(context))
    # In debug mode the loop logs what took longer. That depends on the machine, not on what is tested.
    loop.slow_callback_duration = float("inf")
    brief_stacks.shorten_in_this_loop()
    async with asyncio.timeout(DEADLINE_S):
        await test(**arguments)
    # Transports are closed a turn of the loop after close().
    for _ in range(3):
        await asyncio.sleep(0)
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert not others, f"the test left tasks behind: {others}"
    gc.collect()
    end = loop.time() + CLOSING_S
    while (left := open_descriptors() - before) and loop.time() < end:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    assert not left, f"the test left descriptors behind: {left}"
    assert not escaped, f"exceptions escaped from callbacks: {escaped}"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--share", default="1/1", help="2/3: the second of three processes, which take turns with the files"
    )


def _is_of_another(path: Path, config: pytest.Config) -> bool:
    number, processes = map(int, config.getoption("share").split("/"))
    return path in _TURNS and _TURNS[path] % processes != number - 1


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave the files of others alone: what is not collected is not imported either."""
    return _is_of_another(collection_path, config) or None


def pytest_collection_modifyitems(items: list[pytest.Item], config: pytest.Config) -> None:
    """The same for files that were named, which are always collected."""
    items[:] = [item for item in items if not _is_of_another(item.path, config)]


def pytest_configure() -> None:
    """Have pytest cut long differences: where these are set it prints them whole, which is pages of bytes."""
    for name in ("CI", "BUILD_NUMBER"):
        os.environ.pop(name, None)
    # No test trusts the authorities of this machine, and reading them takes longer than most tests.
    os.environ["SSL_CERT_FILE"] = os.environ["SSL_CERT_DIR"] = os.devnull
    # In the background of a shell that is not interactive it is ignored. Programs that tests start would inherit that:
    # where a load test was interrupted, Locust heard nothing of it, and was ended 75 s later.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    brief_stacks.shorten()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show only the end of what a failed test has logged: a crowd leaves thousands of lines."""
    report = yield
    report.sections = [(title, "\n".join(text.splitlines()[-MAX_LINES:])) for title, text in report.sections]
    return report


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for garbage only at the end: nothing that is collected goes, and there is more of it each time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    """Put aside what the modules made: the collection after each test spent most of its time on it."""
    gc.collect()
    gc.freeze()


def pytest_runtest_logfinish() -> None:
    """Put aside what has gathered since."""
    if next(_finished) % FREEZE_EVERY == 0:
        gc.collect()
        gc.freeze()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """End what the tests have shared."""
    KEPT.close()
    # The others may have all of a few files.
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and not session.config.getoption("share").startswith("1/1"):
        session.exitstatus = pytest.ExitCode.OK


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run_alone(pyfuncitem.obj, arguments))
    return True
