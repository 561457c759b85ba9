"""Runs a gateway as a process: signals in, one ``ready`` line out.

SIGTERM makes a lame duck of it, which then drains; a second one stops. SIGINT stops. SIGHUP reloads, and so does a
change of the file if it is watched; if it comes before ``ready``, the reload follows after ``ready``. SIGUSR2 starts a
new process, which takes over.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import structlog

from relay import config, logs, output
from relay.errors import OperatorError
from relay.gateway import descriptors
from relay.gateway.app import Gateway
from relay.gateway.checking.exposure import find_exposures
from relay.gateway.config_watch import watch as watch_config
from relay.gateway.departure import SPREAD_S
from relay.gateway.file_state import state_of
from relay.gateway.hardening import harden
from relay.gateway.inherited import Inherited, Predecessor, take_inherited
from relay.gateway.listening import Listening
from relay.gateway.notify import ServiceManager
from relay.gateway.read_ahead import read_ahead
from relay.gateway.successor import Successor
from relay.tasks import Tasks

log = structlog.get_logger()

# Where this thread shares a core with a thread that carries voice, the other one gets ten times the time.
NICENESS = 10
# When all connections are closed, the rest ends within this time.
END_S = 5.0


async def serve(path: Path, *, watch: bool = False) -> None:
    """Serve with this configuration until told to stop. Raises OperatorError if it cannot start.

    With ``watch`` it is reloaded whenever its file changes.
    """
    troubles = harden()
    # Nothing that is printed or logged may hold up calls: its reader may have stopped.
    with output.queued():
        await _serve(path, watch, troubles)


async def _serve(path: Path, watches: bool, troubles: list[str]) -> None:
    with take_inherited(os.environ) as inherited:
        manager = ServiceManager()
        signals = _Signals(path, manager, watches=watches)
        # This comes first: by default SIGHUP would end the process.
        signals.expect_hangup()
        try:
            await _serve_until(path, signals, manager, inherited, troubles)
        except OperatorError as error:
            if inherited.predecessor is None:
                raise
            # The one before has it in its log, and tells whoever asked for the upgrade.
            inherited.predecessor.say_failed(str(error))
            raise OperatorError from error
        finally:
            signals.forget_hangup()
    log.info("stopped")


async def _serve_until(
    path: Path, signals: _Signals, manager: ServiceManager, inherited: Inherited, troubles: list[str]
) -> None:
    settings = config.load(path)
    logs.configure(settings.log.level, settings.log.format)
    for trouble in troubles:
        log.warning("not hardened", cause=trouble)
    _tell_exposures(settings, path)
    descriptors.raise_limit(settings)
    predecessor = inherited.predecessor
    listening = Listening(inherited.sockets, handed_over=predecessor is not None)
    gateway = Gateway(settings, folder=path.parent, listening=listening)
    tasks = Tasks()
    await gateway.start(None if predecessor is None else functools.partial(predecessor.await_turn, gateway.upstreams))
    # Before this thread gives way: a process has the priority of the one that starts it.
    successor = Successor(
        gateway.listening.sockets,
        manager,
        refusal=functools.partial(_refusal, gateway, manager),
        on_taken_over=signals.leave.set,
    )
    try:
        signals.install(successor.on_signal)
        if predecessor is not None:
            await predecessor.say_serving()
        _step_back()
        # The objects that are there now stay: later collections need not look at them.
        gc.collect()
        gc.freeze()
        tls = ",".join(str(address) for address in gateway.tls)
        proxies = ",".join(str(address) for address in gateway.web_proxy.addresses)
        # The one line on stdout: the process that started us may wait for it.
        web_proxy = f" web_proxy={proxies}" if proxies else ""
        print(f"ready tls={tls} admin={gateway.admin}{web_proxy}", flush=True)  # noqa: T201
        descriptors.tell(settings)
        manager.tell("READY=1", f"STATUS=Serving on {tls}")
        tasks.start(manager.watch(gateway.plane.turns), "watchdog")
        # A signal that came earlier has waited for this.
        tasks.start(signals.reload(gateway), "reload")
        tasks.start(signals.watch(), "configuration")
        await signals.leave.wait()
        await successor.stop()
        if successor.pid:
            signals.ignore_upgrade()
            await _until(_hand_over(gateway, predecessor), signals.asked)
        elif not signals.stop.is_set():
            await _until(_be_lame_duck(gateway, manager), signals.stop)
        if not signals.stop.is_set():
            manager.tell(f"STATUS=Draining: {len(gateway.flows)} flows run")
            await _until(_drain(gateway, predecessor), signals.stop)
        manager.tell("STOPPING=1", "STATUS=Ending")
    finally:
        await successor.stop()
        await tasks.cancel()
        await gateway.stop()
        signals.remove()


def _step_back() -> None:
    """Let the threads of the data plane go first. They run already, so this changes this thread alone."""
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
    except PermissionError as error:  # a filter of system calls
        log.warning("the control plane may delay calls: its priority cannot be lowered", cause=error.strerror)


def _tell_exposures(settings: config.Config, path: Path) -> None:
    for exposure in find_exposures(settings, path):
        log.warning("configuration needs attention", cause=exposure)


async def _be_lame_duck(gateway: Gateway, manager: ServiceManager) -> None:
    # The time that systemd allows may be shorter than the configured times together.
    seconds = gateway.limits.lame_duck_s + _draining_s(gateway)
    manager.tell(
        "STOPPING=1",
        f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}",
        "STATUS=Serving newcomers for a while, until balancers send them elsewhere",
    )
    await gateway.departure.be_lame_duck()


async def _hand_over(gateway: Gateway, predecessor: Predecessor | None) -> None:
    """Stay until the last call has ended, also that of a relay before us: whoever stops the service knows only us."""
    await gateway.departure.hand_over()
    if predecessor is not None:
        await predecessor.wait_ended()


def _draining_s(gateway: Gateway) -> float:
    """How long it takes to end, from the beginning of the drain."""
    return gateway.limits.drain_timeout_s + SPREAD_S + END_S


async def _drain(gateway: Gateway, predecessor: Predecessor | None) -> None:
    async with asyncio.TaskGroup() as both:
        if predecessor is not None:
            # It may have calls of before the upgrade still.
            both.create_task(predecessor.end(_draining_s(gateway)))
        await gateway.departure.drain()
        await gateway.departure.close_rest()


def _refusal(gateway: Gateway, manager: ServiceManager) -> str | None:
    """Why the relay cannot hand over to a new process; None if it can."""
    if gateway.draining:
        return "the relay is about to stop"
    if os.getpid() == 1:
        return "a container ends with its first process: start a new container instead"
    # systemd says so in the environment of what it has started itself.
    if os.environ.get("SYSTEMD_EXEC_PID") == str(os.getpid()) and not manager.listens:
        return "the unit needs Type=notify: otherwise systemd ends the new process together with this one"
    return None


async def _until(work: Coroutine[Any, Any, None], event: asyncio.Event) -> None:
    """Work until it is done, or something happens."""
    async with asyncio.TaskGroup() as both:
        done = both.create_task(work)
        happened = both.create_task(event.wait())
        await asyncio.wait([done, happened], return_when=asyncio.FIRST_COMPLETED)
        done.cancel()
        happened.cancel()


class _Signals:
    """What the signals so far ask for."""

    def __init__(self, path: Path, manager: ServiceManager, *, watches: bool = False) -> None:
        """``path`` is the configuration's, which has not been read yet."""
        # Time to go, also because another process has taken over; told to stop; told so twice, or to stop at once.
        self.leave = asyncio.Event()
        self.asked = asyncio.Event()
        self.stop = asyncio.Event()
        self._hangup = asyncio.Event()
        self._path = path
        self._watches = watches
        self._state = state_of(path)
        self._manager = manager
        self._loop = asyncio.get_running_loop()
        self._handlers = {signal.SIGTERM: self._on_term, signal.SIGINT: self._on_interrupt}

    def expect_hangup(self) -> None:
        """Remember SIGHUP, until there is something to reload."""
        self._before = signal.getsignal(signal.SIGHUP)
        self._loop.add_signal_handler(signal.SIGHUP, self.ask_reload)

    def forget_hangup(self) -> None:
        self._loop.remove_signal_handler(signal.SIGHUP)
        signal.signal(signal.SIGHUP, self._before)

    def install(self, on_upgrade: Callable[[], None]) -> None:
        self._handlers[signal.SIGUSR2] = on_upgrade
        for number, handler in self._handlers.items():
            self._loop.add_signal_handler(number, handler)

    def ignore_upgrade(self) -> None:
        """A process that has handed over, or that ends, cannot. By default the signal would end it."""
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)

    def remove(self) -> None:
        for number in self._handlers:
            self._loop.remove_signal_handler(number)
        self.ignore_upgrade()

    def _on_term(self) -> None:
        if self.asked.is_set():
            self.stop.set()
        self.asked.set()
        self.leave.set()

    def _on_interrupt(self) -> None:
        self.stop.set()
        self.asked.set()
        self.leave.set()

    def ask_reload(self) -> None:
        """Have the configuration reloaded, as SIGHUP does."""
        self._hangup.set()

    async def watch(self) -> None:
        """Ask for a reload whenever the file has changed, if it is watched."""
        if self._watches:
            await watch_config(self._path, self._state, self.ask_reload)

    async def reload(self, gateway: Gateway) -> None:
        """Reload the configuration whenever it was asked for."""
        while True:
            await self._hangup.wait()
            self._hangup.clear()
            self._manager.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
            status = await self._reload(gateway)
            self._manager.tell("READY=1", f"STATUS={status}")

    async def _reload(self, gateway: Gateway) -> str:
        """Returns how it went."""
        try:
            with gateway.reloads.noted():
                await read_ahead(self._path)
                settings = gateway.reload(self._path)
            _tell_exposures(settings, self._path)
        except OperatorError as error:
            lines = str(error).splitlines()
            for line in lines:
                log.error("configuration not reloaded: the old one stays", cause=line)
            return f"Serving; configuration not reloaded: {lines[0]}"
        except Exception:
            # A mistake of ours. The loop goes on, so that the next signal is heard.
            log.exception("configuration not reloaded")
            return "Serving; configuration not reloaded"
        return "Serving"
