"""Shapes: how many users there are at each second of a test. Pure: the second is an argument."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

# A week, for all of a test. What is longer is monitoring; and credentials for TURN are made for eight days.
MAX_SECONDS = 7 * 86_400.0

Seconds = Annotated[float, Field(ge=0, le=MAX_SECONDS)]


class ShapeKind(StrEnum):
    """How the number of users changes."""

    STEADY = "steady"
    RAMP = "ramp"
    SPIKE = "spike"
    SOAK = "soak"
    STORM = "storm"


class Shape(BaseModel):
    """Users come within ``ramp_s`` and stay for ``hold_s``.

    steady, soak  all stay; a soak does so for hours
    ramp          the same, but the ramp is what counts: it is judged, too
    storm         all come within ``ramp_s``, which is judged, too
    spike         ``base_percent`` stay; in the middle of ``hold_s`` all come for ``spike_s``
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: ShapeKind = ShapeKind.STEADY
    ramp_s: Seconds = 5.0
    hold_s: Annotated[float, Field(gt=0, le=MAX_SECONDS)] = 30.0
    base_percent: Annotated[float, Field(ge=0, le=100)] = 20.0
    spike_s: Seconds = 10.0

    @model_validator(mode="after")
    def _ends_within_a_week(self) -> Self:
        # To the millisecond: sums of floats may be longer than what was asked for.
        if round(self.seconds, 3) > MAX_SECONDS:
            raise ValueError(
                f"ramp_s {self.ramp_s:g} and hold_s {self.hold_s:g}: {self.seconds:g} s in all; expected at most "
                f"{MAX_SECONDS:.0f} (a week)"
            )
        return self

    @property
    def seconds(self) -> float:
        """How long the test takes."""
        return self.ramp_s + self.hold_s

    @property
    def judged_from_s(self) -> float:
        """When the part begins that is judged, before a warm-up."""
        return 0.0 if self.kind in {ShapeKind.RAMP, ShapeKind.STORM} else self.ramp_s

    def users_at(self, second: float, users: int) -> int | None:
        """How many of all users there are at this second; None when the test is over."""
        if second >= self.seconds:
            return None
        if self.kind is ShapeKind.SPIKE and not self._in_spike(second):
            users = round(users * self.base_percent / 100)
        if second < self.ramp_s:
            return max(1, round(users * (second + 1) / (self.ramp_s + 1)))
        return max(1, users)

    def rate_at(self, users: int) -> float:
        """How many users may come in a second."""
        if self.kind is ShapeKind.SPIKE:
            return float(users)
        return max(1.0, users / max(self.ramp_s, 1.0))

    def _in_spike(self, second: float) -> bool:
        begin = self.ramp_s + max(0.0, self.hold_s - self.spike_s) / 2
        return begin <= second < begin + self.spike_s

    def lasting(self, seconds: float) -> Shape:
        """The same shape, in this many seconds all in all. Raises ValueError."""
        ramp_s = min(self.ramp_s, seconds / 4)
        wanted = {**self.model_dump(), "ramp_s": ramp_s, "hold_s": seconds - ramp_s}
        return Shape.model_validate(wanted | {"spike_s": min(self.spike_s, (seconds - ramp_s) / 2)})
