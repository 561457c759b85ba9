"""The process around a gateway: a reload that fails in a way that nobody has foreseen is not the last one."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from unittest import mock

from structlog.testing import capture_logs

from relay.gateway.admin.operation import Reloads
from relay.gateway.notify import ServiceManager
from relay.gateway.serve import _Signals, _step_back
from relay.tasks import Tasks
from tests.support.waiting import eventually


def test_it_serves_where_its_priority_cannot_be_changed() -> None:
    refused = PermissionError(1, "Operation not permitted")
    with mock.patch("os.setpriority", side_effect=refused), capture_logs() as lines:
        _step_back()
    [line] = lines
    assert (line["log_level"], line["cause"]) == ("warning", "Operation not permitted")


async def test_a_reload_after_a_mistake_of_ours(tmp_path: Path) -> None:
    signals, tasks, reloaded = _Signals(tmp_path / "relay.toml", ServiceManager({})), Tasks(), asyncio.Event()
    reloads, succeeded = Reloads(), list[bool]()

    def reload(_: Path) -> None:
        succeeded.append(reloads.succeeded)
        if not lines:
            raise OverflowError("a number that C has no room for")
        reloaded.set()

    signals.expect_hangup()
    try:
        with (
            mock.patch("relay.gateway.serve.read_ahead", mock.AsyncMock()),
            mock.patch("relay.gateway.serve.find_exposures", return_value=[]),
            capture_logs() as lines,
        ):
            tasks.start(signals.reload(mock.Mock(reload=reload, reloads=reloads)), "reload")
            os.kill(os.getpid(), signal.SIGHUP)
            await eventually(lambda: lines)
            os.kill(os.getpid(), signal.SIGHUP)
            await reloaded.wait()
        assert [line["event"] for line in lines] == ["configuration not reloaded"]
        # Each is a failure until it has ended well.
        assert [*succeeded, reloads.succeeded] == [False, False, True]
    finally:
        await tasks.cancel()
        signals.forget_hangup()
