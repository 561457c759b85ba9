"""A relay behind web proxies that spoil things: each is found by what becomes of WebSockets and carriers."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from relay.addresses import Address
from relay.doctor.plan import Plan
from relay.doctor.probes import carriers, voice, websockets
from relay.doctor.seen import CarrierSeen, Frames, Step
from relay.emulator.turn.slow import TurnHost
from relay.turn.credentials import StaticCredentials
from tests.support.benches.doctor import CREDENTIALS, LIMITS, context_of, relay_plan
from tests.support.benches.gateway import Relay, running_relay
from tests.support.peers.bad_proxies import BadProxy, HoldsBack, StripsUpgrade, SwallowsFrames, bad_proxy
from tests.support.peers.coturn import PASSWORD, USERNAME

ALL = ["TURN/TLS", "WebSocket", "session", "CONNECT-UDP"]


@contextlib.asynccontextmanager
async def relayed(folder: Path) -> AsyncIterator[tuple[Relay, TurnHost]]:
    credentials = StaticCredentials({USERNAME: PASSWORD})
    async with (
        TurnHost(Address("127.0.0.1", 0), credentials, allow_loopback_peers=True) as host,
        running_relay(folder, host.address) as relay,
    ):
        yield relay, host


async def asked(plan: Plan) -> dict[str, CarrierSeen]:
    """What each carrier answers, one after the other."""
    context = context_of(plan)
    return {one.name: await carriers.ask(context, one) for one in carriers.relay_carriers(context, None)}


async def test_all_carriers_answer_and_voice_passes_over_each(tmp_path: Path) -> None:
    async with relayed(tmp_path) as (relay, host):
        plan = relay_plan(relay, host.address, credentials=CREDENTIALS)
        context = context_of(plan)
        assert (await websockets.relay_turn(context, None)).frames is Frames.BOTH_WAYS
        assert {name: seen.answered for name, seen in (await asked(plan)).items()} == dict.fromkeys(ALL, True)
        for carrier in carriers.relay_carriers(context, None):
            heard = await voice.listen(carrier, carrier.name, CREDENTIALS, plan.limits.voice_s, over_udp=False)
            assert heard.fault == ""
            assert len(heard.delays_ms) == 10
            assert None not in heard.delays_ms
        assert host.allocations == 0


async def test_without_credentials_carriers_answer_and_a_session_is_refused(tmp_path: Path) -> None:
    async with relayed(tmp_path) as (relay, host):
        seen = await asked(relay_plan(relay, host.address))
    assert {name for name, one in seen.items() if one.answered} == set(ALL)
    assert "open" in seen["session"].detail


async def test_voice_with_wrong_credentials_is_a_fault_and_no_silence(tmp_path: Path) -> None:
    async with relayed(tmp_path) as (relay, _):
        plan = relay_plan(relay)
        carrier = carriers.relay_carriers(context_of(plan), None)[0]
        heard = await voice.listen(carrier, "a path", carriers.NOBODY, 0.1, over_udp=False)
    assert heard.delays_ms == ()
    assert heard.fault


@pytest.mark.parametrize(
    ("kind", "frames"),
    [(StripsUpgrade, None), (SwallowsFrames, Frames.SWALLOWED), (HoldsBack, Frames.BUFFERED)],
)
async def test_a_proxy_that_inspects_is_found(
    tmp_path: Path, kind: Callable[[Relay], BadProxy], frames: Frames | None
) -> None:
    async with relayed(tmp_path) as (relay, _), bad_proxy(kind(relay)) as proxy:
        plan = relay_plan(relay, server=proxy.address, limits=dataclasses.replace(LIMITS, answer_s=2.0))
        context = context_of(plan)
        seen = await websockets.relay_turn(context, None)
        assert seen.frames is frames
        if frames is None:
            assert seen.failure is not None
            assert seen.failure.step is Step.UPGRADE
        # It knows only HTTP, so TURN over TLS ends there.
        answer = await carriers.ask(context, carriers.relay_carriers(context, None)[0])
        assert not answer.answered
        assert answer.failure is not None
