"""The target of a test: that of a profile, an address of this machine, or the demo."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from loadtest.engine.plans import Carrier
from loadtest.plan.profile import Profile, UserKind
from loadtest.plan.target import Target, TargetError
from loadtest.running.demo import demo_target
from relay.errors import OperatorError

DEMO = "demo"
# Users of the demo's cloud; each has to log in once before the test. Users of media share them.
MAX_DEMO_USERS = 100
MAX_DEMO_PHONES = 2000


def resolve_target(profile: Profile, name: str, options: dict[str, Any]) -> tuple[str, Target]:
    """The target of a name: of the profile, or an address of this machine. Raises OperatorError."""
    try:
        if name in profile.targets:
            return name, _with(profile.targets[name], options).resolved()
        target = Target.model_validate({**options, "server": name})
        target.require_loopback()
        return name, target.resolved()
    except TargetError as error:
        raise OperatorError(f"--target {name}: {error}") from None
    except ValueError as error:
        raise OperatorError(f"--target {name}: {_first(error)}") from None


def changed(target: Target, options: dict[str, Any]) -> Target:
    """The target with other values, checked again. Raises OperatorError."""
    try:
        return _with(target, options)
    except ValueError as error:
        raise OperatorError(_first(error)) from None


def _with(target: Target, options: dict[str, Any]) -> Target:
    return Target.model_validate({**target.model_dump(), **options})


def _first(error: ValueError) -> str:
    errors = getattr(error, "errors", None)
    if errors is None:
        return str(error)
    one = errors(include_url=False)[0]
    where = ".".join(map(str, one["loc"]))
    return f"{where + ': ' if where else ''}{one['msg'].removeprefix('Value error, ')}"


@contextlib.contextmanager
def ready_target(profile: Profile, name: str, options: dict[str, Any]) -> Iterator[tuple[str, Target]]:
    """The target; the demo's runs while the block does. Raises RelayError."""
    if name != DEMO:
        yield resolve_target(profile, name, options)
        return
    with demo_target(demo_users(profile), through_web_proxy=profile.through_web_proxy) as target:
        yield DEMO, past_the_relay(changed(target, options))


def past_the_relay(target: Target) -> Target:
    """A relay takes no UDP from clients: over UDP the target is the TURN server itself, to compare with."""
    if target.carrier is not Carrier.UDP or target.upstream is None:
        return target
    return target.model_copy(update={"server": target.upstream, "metrics": None, "web_proxy": None})


def demo_users(profile: Profile) -> int:
    """How many users the demo's cloud is to have."""
    if profile.kind in {UserKind.MEDIA, UserKind.STORM, UserKind.RECORDING}:
        return min(profile.users, MAX_DEMO_USERS)
    return min(2 * profile.users, MAX_DEMO_PHONES)
