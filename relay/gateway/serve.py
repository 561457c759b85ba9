"""Runs a gateway as a process: signals in, one ``ready`` line out.

SIGTERM drains and a second one stops, SIGINT stops, SIGHUP reloads.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
from pathlib import Path

import structlog

from relay import config, logs, output
from relay.errors import OperatorError
from relay.gateway.app import Gateway
from relay.gateway.read_ahead import read_ahead
from relay.tasks import Tasks

log = structlog.get_logger()

# Where this thread shares a core with one that carries voice, that one has ten times its weight.
NICENESS = 10


async def serve(path: Path) -> None:
    """Serve with this configuration until told to stop. Raises OperatorError if it cannot start."""
    # Nothing that is printed or logged may hold up calls: whoever reads it may have stopped.
    with output.queued():
        await _serve(path)


async def _serve(path: Path) -> None:
    settings = config.load(path)
    logs.configure(settings.log.level, settings.log.format)
    gateway = Gateway(settings)
    signals, tasks = _Signals(gateway, path), Tasks()
    await gateway.start()
    # Of this thread alone: the data plane's have begun already.
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
    try:
        signals.install()
        tasks.start(signals.reload(), "reload")
        # What is there now stays: later collections need not look at it.
        gc.collect()
        gc.freeze()
        tls = ",".join(str(address) for address in gateway.tls)
        proxies = ",".join(str(address) for address in gateway.web_proxy.addresses)
        # The one line on stdout: whoever started us may wait for it.
        web_proxy = f" web_proxy={proxies}" if proxies else ""
        print(f"ready tls={tls} admin={gateway.admin}{web_proxy}", flush=True)  # noqa: T201
        await signals.first.wait()
        if not signals.stop.is_set():
            await _drain(gateway, signals.stop)
    finally:
        await tasks.cancel()
        await gateway.stop()
        signals.remove()
    log.info("stopped")


async def _drain(gateway: Gateway, stop: asyncio.Event) -> None:
    async with asyncio.TaskGroup() as both:
        drained = both.create_task(gateway.drain())
        stopped = both.create_task(stop.wait())
        await asyncio.wait([drained, stopped], return_when=asyncio.FIRST_COMPLETED)
        drained.cancel()
        stopped.cancel()


class _Signals:
    """What the signals so far ask for."""

    def __init__(self, gateway: Gateway, path: Path) -> None:
        self.first = asyncio.Event()
        self.stop = asyncio.Event()
        self._hangup = asyncio.Event()
        self._gateway = gateway
        self._path = path
        self._handlers = {
            signal.SIGTERM: self._on_term,
            signal.SIGINT: self._on_interrupt,
            signal.SIGHUP: self._on_hangup,
        }

    def install(self) -> None:
        loop = asyncio.get_running_loop()
        for number, handler in self._handlers.items():
            loop.add_signal_handler(number, handler)

    def remove(self) -> None:
        loop = asyncio.get_running_loop()
        for number in self._handlers:
            loop.remove_signal_handler(number)

    def _on_term(self) -> None:
        if self.first.is_set():
            self.stop.set()
        self.first.set()

    def _on_interrupt(self) -> None:
        self.stop.set()
        self.first.set()

    def _on_hangup(self) -> None:
        self._hangup.set()

    async def reload(self) -> None:
        """Reload the configuration whenever a signal has asked for it."""
        while True:
            await self._hangup.wait()
            self._hangup.clear()
            await self._reload()

    async def _reload(self) -> None:
        try:
            await read_ahead(self._path)
            self._gateway.reload(self._path)
        except OperatorError as error:
            for line in str(error).splitlines():
                log.error("configuration not reloaded: the old one stays", cause=line)
