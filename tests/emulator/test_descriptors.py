"""Descriptors: the limit is raised, one user cannot take all, and a warning comes before there are none left."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from relay.client.requests import TurnRequestError
from relay.client.turn import open_turn_udp
from relay.emulator import descriptors
from relay.turn.credentials import rest_password, rest_username, user_of_rest
from tests.support.benches.cloud import running_cloud
from tests.support.waiting import eventually


@contextlib.contextmanager
def soft_limit(number: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_a_cloud_raises_the_limit(tmp_path: Path) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = descriptors.WANTED if hard == resource.RLIM_INFINITY else min(hard, descriptors.WANTED)
    with soft_limit(wanted - 1):
        async with running_cloud(tmp_path):
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == wanted


async def test_one_warning_when_they_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "INTERVAL_S", 0.0)
    rounds: list[bool] = []
    real = descriptors._are_scarce

    def noted() -> bool:
        rounds.append(real())
        return rounds[-1]

    monkeypatch.setattr(descriptors, "_are_scarce", noted)
    with capture_logs() as logs:
        # Below what is open already: none is left.
        with soft_limit(3):
            watching = descriptors.watch()
            await eventually(lambda: len(rounds) > 3)
        await eventually(lambda: not rounds[-1])
        await watching.cancel()
    assert [entry["limit"] for entry in logs] == [3]


async def test_allocations_of_a_user_are_bounded_whatever_the_login(tmp_path: Path) -> None:
    async with (
        running_cloud(tmp_path, runs_turn=True, allocations_per_user=2) as client,
        contextlib.AsyncExitStack() as stack,
    ):
        address = client.cloud.running_hosts()[0].address

        async def allocate(user: str, expires: int) -> None:
            name = rest_username(user, expires)
            password = rest_password(client.cloud.turn_secret, name)
            turn = await stack.enter_async_context(await open_turn_udp(address, name, password))
            await turn.allocate()

        await allocate("anna", 1 << 40)
        await allocate("anna", (1 << 40) + 1)
        with pytest.raises(TurnRequestError, match="quota") as refused:
            await allocate("anna", (1 << 40) + 2)
        assert refused.value.code == 486
        await allocate("ben", 1 << 40)


def test_whose_name_it_is() -> None:
    assert [user_of_rest(name) for name in ("17:anna", "17:a:b", "anna", "x:anna", ":anna")] == [
        "anna",
        "a:b",
        "anna",
        "x:anna",
        ":anna",
    ]
