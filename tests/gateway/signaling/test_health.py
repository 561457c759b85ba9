"""The watch of signaling upstreams goes on, whatever happens in it."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import pytest
from structlog.testing import capture_logs

from relay.config import HealthSettings, SignalingSettings
from relay.gateway.routing.upstreams import Health
from relay.gateway.signaling import health
from relay.gateway.signaling.health import SignalingHealth
from relay.gateway.signaling.pools import Pools


async def test_a_watch_survives_a_mistake_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SignalingSettings.model_validate({"upstreams": ["http://127.0.0.1:9"], "health_interval_s": 0.001})
    pools = Pools()
    pools.configure(settings, HealthSettings())
    probed, answers = asyncio.Event(), iter([RuntimeError("a mistake of ours")])

    async def probe(*_: Any) -> None:
        if (failure := next(answers, None)) is not None:
            raise failure
        probed.set()

    monkeypatch.setattr(health, "ask", probe)
    watch = SignalingHealth(None, pools)  # type: ignore[arg-type]
    (upstream,) = pools
    with capture_logs() as lines:
        watch.configure(settings, ssl.create_default_context())
        await probed.wait()
        await watch.stop()
    assert upstream.health in {Health.UNKNOWN, Health.UP}
    assert lines[0]["event"] == "signaling probe failed"
