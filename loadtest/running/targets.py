"""The target of a test: that of a profile, an address of this machine, or the demo. Checked before anything starts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from loadtest import direct
from loadtest.engine.plans import Carrier
from loadtest.plan.hosts import resolve
from loadtest.plan.profile import Profile, UserKind
from loadtest.plan.target import FAR_ENDS, Target
from loadtest.running.demo import demo_target
from loadtest.running.faults import Faults
from loadtest.running.processes import Mode
from relay.config.reading import explain
from relay.errors import OperatorError, UpstreamError

DEMO = "demo"
# What may be changed of the demo. All else belongs to the cloud and the relay that are started for it.
DEMO_TAKES = ("carrier", "server_name", "peer", "sink", "web_proxy")
# Users of the demo's cloud; each has to log in once before the test. Users of media share them.
MAX_DEMO_USERS = 100
MAX_DEMO_PHONES = 2000
# Kinds of users that log in. Those of a storm do if there is a cloud.
LOG_IN = frozenset({UserKind.SIGNALING, UserKind.CALL, UserKind.RECORDING})
METRICS_TIMEOUT_S = 10.0
# Where an option of the command line has another name than what it says of the target.
_OPTIONS = {"authorities": "--ca", "users": "--target-users"}
_ALONE = Mode()


def option_of(what: str) -> str:
    """The option of the command line that says this of a target."""
    return _OPTIONS.get(what, f"--{what.replace('_', '-')}")


@contextlib.contextmanager
def ready_target(
    profile: Profile,
    name: str,
    options: Mapping[str, Any],
    *,
    mode: Mode = _ALONE,
    needs_cloud: bool = False,
    interrupted: Callable[[], int] = lambda: 0,
) -> Iterator[Target]:
    """The target; the demo's runs while the block does. Raises RelayError, NotBegun among them."""
    several = ready_targets(profile, name, [options], mode=mode, needs_cloud=needs_cloud, interrupted=interrupted)
    with several as (found,):
        yield found


@contextlib.contextmanager
def ready_targets(
    profile: Profile,
    name: str,
    several: Sequence[Mapping[str, Any]],
    *,
    mode: Mode = _ALONE,
    needs_cloud: bool = False,
    interrupted: Callable[[], int] = lambda: 0,
) -> Iterator[list[Target]]:
    """One target with several sets of options, such as carriers. Raises RelayError, NotBegun among them."""
    found = [check_target(profile, name, options, mode=mode, needs_cloud=needs_cloud) for options in several]
    if name != DEMO:
        yield found
        return
    users, proxy = demo_users(profile), profile.through_web_proxy
    with demo_target(users, through_web_proxy=proxy, interrupted=interrupted) as target:
        yield [past_the_relay(changed(target, options)) for options in several]


def check_target(
    profile: Profile, name: str, options: Mapping[str, Any], *, mode: Mode = _ALONE, needs_cloud: bool = False
) -> Target:
    """The target, or a stand-in for the demo, which does not run yet. What can be wrong is told now.

    ``needs_cloud`` is for users that log in. A master has no users, and a worker asks for neither metrics nor faults.
    Raises OperatorError.
    """
    if len(given := [option_of(one) for one in FAR_ENDS if options.get(one)]) > 1:
        raise OperatorError(f"{' and '.join(given)}: a colleague is in one place; expected one of them")
    if name == DEMO:
        return _stand_in(options)
    found = resolve_target(profile, name, options)
    with _about(name):
        if not mode.master:
            found.require_usable()
        if needs_cloud and found.cloud is None:
            raise ValueError("its users log in, but it names no cloud; expected --cloud, or a cloud in the profile")
        if not mode.worker:
            _require_answers(profile, found)
    return found


def resolve_target(profile: Profile, name: str, options: Mapping[str, Any]) -> Target:
    """The target of a name: of the profile, or an address of this machine. Raises OperatorError.

    What the profile lists may be elsewhere. What the command line says must be on this machine, whatever the target.
    """
    with _about(name):
        if name in profile.targets:
            found = _with(profile.targets[name], options)
            found.require_loopback(only=options.keys())
        else:
            found = Target.model_validate({**options, "server": name})
            found.require_loopback()
        return found.resolved()


def _stand_in(options: Mapping[str, Any]) -> Target:
    """What the demo will be like. Raises OperatorError for what it does not take."""
    if others := [option_of(one) for one in options if one not in DEMO_TAKES]:
        raise OperatorError(
            f"--target demo: has its own cloud and relay, so {', '.join(others)} would say nothing of it; expected "
            f"{', '.join(map(option_of, DEMO_TAKES))} only, or another target"
        )
    nobody = "127.0.0.1:9"
    with _about(DEMO):
        found = _with(Target.model_validate({"server": nobody, "upstream": nobody, "tunnel": nobody}), options)
        found.require_loopback()
        found.require_usable()
        return found.resolved()


def _require_answers(profile: Profile, target: Target) -> None:
    """Raises ValueError or OperatorError if what is asked during the test does not answer now."""
    if target.metrics is not None:
        try:
            direct.ask("GET", target.metrics, timeout_s=METRICS_TIMEOUT_S)
        except UpstreamError as error:
            raise ValueError(f"metrics: {error}") from None
    Faults(profile, target).require_board()


def changed(target: Target, options: Mapping[str, Any]) -> Target:
    """The target with other values, checked again. Raises OperatorError."""
    try:
        return _with(target, options)
    except ValueError as error:
        raise OperatorError(_first(error)) from None


def _with(target: Target, options: Mapping[str, Any]) -> Target:
    before = target.model_dump()
    if any(options.get(one) for one in FAR_ENDS):
        # A colleague is in one place: the command line's.
        before |= dict.fromkeys(FAR_ENDS)
    return Target.model_validate({**before, **options})


@contextlib.contextmanager
def _about(name: str) -> Iterator[None]:
    """What is wrong with this target is for the operator."""
    try:
        yield
    except ValueError as error:
        raise OperatorError(f"--target {name}: {_first(error)}") from None


def _first(error: ValueError) -> str:
    return explain(error)[0] if isinstance(error, ValidationError) else str(error)


def past_the_relay(target: Target) -> Target:
    """A relay takes no UDP from clients: over UDP the target is the TURN server itself, to compare with.

    Raises OperatorError if the name of that server cannot be resolved.
    """
    if target.carrier is not Carrier.UDP or target.upstream is None:
        return target
    with _about(str(target.server)):
        server = resolve("upstream", target.upstream)
    return target.model_copy(update={"server": server, "metrics": None, "web_proxy": None})


def demo_users(profile: Profile) -> int:
    """How many users the demo's cloud is to have."""
    if profile.kind in {UserKind.MEDIA, UserKind.STORM, UserKind.RECORDING, UserKind.CHURN}:
        return min(profile.users, MAX_DEMO_USERS)
    return min(2 * profile.users, MAX_DEMO_PHONES)
