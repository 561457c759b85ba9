"""Faults of the emulated cloud that a profile asks for: each is turned on at its time, and off after the test."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from loadtest import direct
from loadtest.plan.profile import Fault, Profile
from loadtest.plan.target import Target
from relay.errors import OperatorError, UpstreamError

TIMEOUT_S = 10.0


class Faults:
    """Use it as a context manager; ``look`` turns on what is due.

    Raises OperatorError if the cloud does not take it.
    """

    def __init__(self, profile: Profile, target: Target) -> None:
        if profile.faults and target.control is None:
            raise OperatorError("the profile has faults, but the target names no cloud to ask for them")
        self._due: Sequence[Fault] = sorted(profile.faults, key=lambda fault: fault.at_s)
        self._base = f"{(target.control or '').rstrip('/')}/emulator/v1/faults"
        self._on: dict[str, None] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for url in self._on:
            # The cloud may have ended: then they are off.
            with contextlib.suppress(OperatorError):
                _ask("DELETE", url, None)

    def require_board(self) -> None:
        """Raises OperatorError if the cloud has no faults on demand, as long as any are due."""
        if self._due:
            _ask("GET", self._base, None)

    def look(self, second: float) -> None:
        """Turn on what is due at this second of the test."""
        while self._due and self._due[0].at_s <= second:
            fault, self._due = self._due[0], self._due[1:]
            url = f"{self._base}/{fault.hop}/{fault.kind}"
            _ask("PUT", url, fault.settings)
            self._on[url] = None


def _ask(method: str, url: str, body: dict[str, Any] | None) -> None:
    try:
        direct.ask(method, url, timeout_s=TIMEOUT_S, body=body)
    except UpstreamError as error:
        raise OperatorError(str(error)) from None
