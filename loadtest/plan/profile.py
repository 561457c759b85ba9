"""Profiles: what users do, how many there are, and what must hold, as TOML that is checked."""

from __future__ import annotations

import math
import tomllib
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from loadtest.plan.hosts import TargetError
from loadtest.plan.shapes import MAX_SECONDS, Shape
from loadtest.plan.target import Target
from relay import catalog
from relay.config.reading import explain
from relay.emulator.faults.kinds import BadSetting, FaultSetting, Hop, Kind, complete, with_known_target
from relay.errors import OperatorError

FOLDER = Path(__file__).parent.parent / "profiles"
# A profile is a page of text.
MAX_FILE_BYTES = 64 * 1024
# Numbers and memory of the packet engine, in each process.
MAX_USERS = 10_000
MAX_LINES_OF_A_USER = 200
# Ten machines of the largest kind. More is a mistake in a number.
MAX_PACKETS_PER_S = 5_000_000

Percent = Annotated[float, Field(ge=0, le=100)]
Positive = Annotated[float, Field(gt=0)]
Streams = Annotated[float, Field(ge=0, le=50)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class UserKind(StrEnum):
    """Which users a profile has: each is a class of ``loadtest.users``."""

    MEDIA = "media"
    SIGNALING = "signaling"
    CALL = "call"
    STORM = "storm"
    RECORDING = "recording"
    CHURN = "churn"


class Media(_Table):
    """The voice of one user.

    ``up`` and ``down`` are how many one-way streams go on at a time, on average. With ``talk_s`` and ``pause_s`` a
    stream is a line on which somebody talks now and then: there are as many lines as it takes for that average. A
    packet that comes later than ``playout_ms`` after it was sent is late: its listener has heard silence.
    """

    up: Streams = 1.0
    down: Streams = 1.0
    talk_s: Annotated[float, Field(ge=0, le=3600)] = 0.0
    pause_s: Annotated[float, Field(ge=0, le=3600)] = 0.0
    payload_bytes: Annotated[int, Field(ge=20, le=1378)] = 160
    interval_ms: Annotated[float, Field(ge=1, le=1000)] = 20.0
    playout_ms: Annotated[float, Field(ge=1, le=10_000)] = 60.0

    @property
    def share(self) -> float:
        """How much of the time somebody talks on a line."""
        return self.talk_s / (self.talk_s + self.pause_s) if self.pause_s else 1.0

    def lines_of(self, user: int, mean: float) -> int:
        """How many lines a user has, so that all users together have ``mean`` streams on average."""
        each = mean / self.share if self.share else 0.0
        return math.floor((user + 1) * each + 1e-9) - math.floor(user * each + 1e-9)


class News(_Table):
    """A news event: within a second ``share_percent`` of all lines have somebody who talks, for ``for_s``."""

    at_s: Annotated[float, Field(ge=0)]
    share_percent: Percent = 30.0
    for_s: Positive = 10.0


class Stage(_Table):
    """From ``at_s`` on users have this many streams: the talkers of a hoot."""

    at_s: Annotated[float, Field(ge=0)]
    down: Streams


class Fault(_Table):
    """A fault that the emulated cloud is asked for at ``at_s``, such as ``hop = "web_proxy"``, ``kind = "stall"``."""

    at_s: Annotated[float, Field(ge=0)] = 0.0
    hop: Hop
    kind: Kind
    settings: dict[str, Any] = {}

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        try:
            setting = FaultSetting.model_validate(self.settings)
            with_known_target(catalog.load(), self.kind, complete(self.hop, self.kind, setting))
        except ValidationError as error:
            raise ValueError(f"settings.{explain(error)[0]}") from None
        except BadSetting as bad:
            raise ValueError(f"{bad.message} Expected: {bad.expected}.") from None
        return self


class Thresholds(_Table):
    """What must hold. What is left out is not judged.

    ``void_percent`` is of the generator itself; ``memory_growth_percent`` of the target, after a quarter of the test.
    """

    loss_percent: Percent | None = None
    missing_percent: Percent | None = None
    added_delay_p99_ms: Positive | None = None
    mos: Annotated[float, Field(ge=1, le=4.5)] | None = None
    setup_p95_ms: Positive | None = None
    errors_percent: Percent | None = None
    memory_growth_percent: Annotated[float, Field(ge=0, le=1000)] | None = None
    void_percent: Percent = 10.0


class Profile(_Table):
    """A load test. ``targets`` lists by name what is not on this machine; ``warm_up_s`` is not judged.

    ``through_web_proxy``: with the target ``demo``, users go through its firm's web proxy, which faults make bad.
    """

    description: Annotated[str, Field(min_length=1, max_length=500)]
    users: Annotated[int, Field(ge=1, le=MAX_USERS)]
    kind: UserKind = UserKind.MEDIA
    shape: Shape = Shape()
    warm_up_s: Annotated[float, Field(ge=0, le=3600)] = 2.0
    media: Media = Media()
    call_s: Positive = 10.0
    pause_between_calls_s: Annotated[float, Field(ge=0, le=3600)] = 2.0
    news: News | None = None
    stages: tuple[Stage, ...] = ()
    faults: tuple[Fault, ...] = ()
    thresholds: Thresholds = Thresholds()
    through_web_proxy: bool = False
    targets: dict[str, Target] = {}

    @property
    def packets_per_s(self) -> float:
        """What is to be sent in a second, when all users are there."""
        down = max([self.media.down, *(stage.down for stage in self.stages)])
        return self.users * (self.media.up + down) * 1000 / self.media.interval_ms

    @property
    def judged_from_s(self) -> float:
        """When what is judged begins. A warm-up takes at most half of the time in which all users are there."""
        return self.shape.judged_from_s + min(self.warm_up_s, self.shape.hold_s / 2)

    def changed(self, *, users: int | None, seconds: float | None) -> Profile:
        """The profile with other numbers, checked again. Raises OperatorError."""
        tree = self.model_dump()
        if users is not None:
            tree["users"] = users
        if seconds is not None:
            if not 0 < seconds <= MAX_SECONDS:
                most = f"{MAX_SECONDS:.0f} (a week)"
                raise OperatorError(f"--seconds: {seconds:g}; expected more than 0, and at most {most}")
            tree["shape"] = self.shape.lasting(seconds).model_dump()
            scale = seconds / self.shape.seconds
            for event in [*tree["stages"], *tree["faults"], *([tree["news"]] if tree["news"] else [])]:
                event["at_s"] *= scale
        return parse(tree, "the command line")


def names() -> list[str]:
    """The profiles that come with the load tester."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name: str) -> Profile:
    """A profile that comes with the load tester, or a TOML file. Raises OperatorError."""
    path = FOLDER / f"{name}.toml" if name in names() else Path(name)
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        known = ", ".join(names())
        raise OperatorError(f"profile {name}: {error.strerror}; expected a file, or one of {known}") from None
    if len(text) > MAX_FILE_BYTES:
        raise OperatorError(f"{path}: expected at most {MAX_FILE_BYTES} bytes")
    try:
        tree = tomllib.loads(text.decode())
    except ValueError as error:
        raise OperatorError(f"{path}: {error}; expected TOML") from None
    except RecursionError:
        raise OperatorError(f"{path}: lists and tables are nested too deeply; expected the TOML of a profile") from None
    return parse(tree, str(path))


def parse(tree: dict[str, Any], source: str) -> Profile:
    """Check a profile. Raises OperatorError with a line for each mistake."""
    try:
        profile = Profile.model_validate(tree)
    except TargetError as error:
        raise OperatorError(f"{source}: {error}") from None
    except ValidationError as error:
        raise OperatorError("\n".join(f"{source}: {line}" for line in explain(error))) from None
    _check(profile, source)
    return profile


def _check(profile: Profile, source: str) -> None:
    if profile.packets_per_s > MAX_PACKETS_PER_S:
        raise OperatorError(
            f"{source}: {profile.users} users send {profile.packets_per_s:,.0f} packets/s; "
            f"expected at most {MAX_PACKETS_PER_S:,}"
        )
    for name, mean in (("up", profile.media.up), ("down", profile.media.down)):
        if not profile.media.share or mean / profile.media.share > MAX_LINES_OF_A_USER:
            raise OperatorError(
                f"{source}: media.{name}: {mean:g} streams on lines with talk_s {profile.media.talk_s:g} and pause_s "
                f"{profile.media.pause_s:g}; expected at most {MAX_LINES_OF_A_USER} lines of a user"
            )
    times = [("news.at_s", profile.news.at_s)] if profile.news else []
    times += [("stages.at_s", stage.at_s) for stage in profile.stages]
    times += [("faults.at_s", fault.at_s) for fault in profile.faults]
    for what, at_s in times:
        if at_s >= profile.shape.seconds:
            raise OperatorError(f"{source}: {what} {at_s:g}: expected less than the test's {profile.shape.seconds:g} s")
