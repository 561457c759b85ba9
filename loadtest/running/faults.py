"""Faults of the emulated cloud that a profile asks for: each is turned on at its time, and off after the test."""

from __future__ import annotations

import contextlib
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from loadtest.plan.profile import Fault, Profile
from loadtest.plan.target import Target
from relay.errors import OperatorError

TIMEOUT_S = 10.0
MAX_ANSWER_BYTES = 64 * 1024


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

    def look(self, second: float) -> None:
        """Turn on what is due at this second of the test."""
        while self._due and self._due[0].at_s <= second:
            fault, self._due = self._due[0], self._due[1:]
            url = f"{self._base}/{fault.hop}/{fault.kind}"
            _ask("PUT", url, fault.settings)
            self._on[url] = None


def _ask(method: str, url: str, body: dict[str, Any] | None) -> None:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310 - http or https, checked
            answer.read(MAX_ANSWER_BYTES)
    except urllib.error.HTTPError as error:
        with error:
            words = error.read(MAX_ANSWER_BYTES).decode("utf-8", "replace")
        raise OperatorError(f"{method} {url}: {error.code} {words[:300]}") from None
    except (OSError, ValueError) as error:
        raise OperatorError(f"{method} {url}: {error}") from None
