"""``relay emulate``: starts the cloud, writes its files, prints what runs where, and stays until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from pathlib import Path

import structlog
from rich.console import Console

from relay import config, garbage, logs
from relay.emulator import claims
from relay.emulator.cloud import Cloud
from relay.emulator.folder import write_files
from relay.emulator.settings import EmulatorSettings, RelayPlan
from relay.floor.people import people
from relay.floor.printing import show
from relay.floor.relays import running_gateway, upstreams_up
from relay.gateway.checking.files import check

log = structlog.get_logger()


async def emulate(settings: EmulatorSettings, console: Console, *, with_relay: bool) -> None:
    """Run until SIGTERM or SIGINT. Raises OperatorError if something cannot start."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    # That each part has come up is what the table says. Until it is printed, only trouble is logged.
    told = config.LogSettings()
    logs.configure("warning", told.format)
    try:
        async with contextlib.AsyncExitStack() as running:
            if with_relay:
                _find_free(settings.relay)
            cloud = await running.enter_async_context(Cloud(settings))
            await asyncio.to_thread(write_files, cloud)
            gateway = None
            if with_relay:
                gateway = await running.enter_async_context(
                    running_gateway(_relay_config(settings.folder), settings.folder)
                )
                await upstreams_up(gateway)
            show(console, cloud, gateway, await people(cloud.store, settings.fixtures))
            garbage.settle()
            # The one line for programs: everything answers now.
            console.print(f"ready http={cloud.http} tls={cloud.tls} folder={settings.folder}", soft_wrap=True)
            logs.configure(told.level, told.format)
            await stop.wait()
        log.info("stopped")
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _find_free(plan: RelayPlan) -> None:
    """Try the relay's addresses before the cloud fills a database. Raises OperatorError with the option's name."""
    wanted = (("--relay-tls", plan.tls), ("--relay-web-proxy", plan.web_proxy), ("--relay-admin", plan.admin))
    for option, address in wanted:
        claims.listen("relay", address, option).close()


def _relay_config(folder: Path) -> config.Config:
    settings = config.load(folder / "relay.toml")
    check(settings)
    return settings
