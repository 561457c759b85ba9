"""``relay emulate``: starts the cloud, writes its files, prints what runs where, and stays until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Sequence
from pathlib import Path

import structlog
from rich import box
from rich.console import Console
from rich.table import Table

from relay import config
from relay.catalog import Service
from relay.emulator.cloud import Cloud
from relay.emulator.folder import urls, write_files
from relay.emulator.settings import EmulatorSettings
from relay.floor.relays import running_gateway
from relay.gateway.app import Gateway, check

log = structlog.get_logger()

# More users than this are not listed: the table is for trying things out.
LISTED_USERS = 12


async def emulate(settings: EmulatorSettings, console: Console, *, with_relay: bool) -> None:
    """Run until SIGTERM or SIGINT. Raises OperatorError if something cannot start."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        async with contextlib.AsyncExitStack() as running:
            cloud = await running.enter_async_context(Cloud(settings))
            await asyncio.to_thread(write_files, cloud)
            gateway = None
            if with_relay:
                gateway = await running.enter_async_context(running_gateway(_relay_config(settings.folder)))
            _print(console, cloud, gateway)
            # The one line for programs: everything answers now.
            console.print(f"ready http={cloud.http} tls={cloud.tls} folder={settings.folder}", soft_wrap=True)
            await stop.wait()
        log.info("stopped")
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _relay_config(folder: Path) -> config.Config:
    settings = config.load(folder / "relay.toml")
    check(settings)
    return settings


def _print(console: Console, cloud: Cloud, gateway: Gateway | None) -> None:
    table = Table(
        title="The emulated cloud", box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False
    )
    for name in ("what", "where", "the vendor's names"):
        table.add_column(name, overflow="fold")
    for what, where, names in _rows(cloud, gateway):
        table.add_row(what, where, names)
    console.print(table)
    console.print("Open one of these (no hosts file, no certificate needed):", style="bold")
    for what, url in urls(cloud).items():
        console.print(f"  {what:<24} {url}", soft_wrap=True)
    console.print("Log in as (name / password):", style="bold")
    for user in cloud.settings.fixtures.users[:LISTED_USERS]:
        password = "(only a hash is known)" if user.password is None else user.password.get_secret_value()
        proxied = "Voice via Web Proxy" if user.voice_via_web_proxy else ""
        console.print(f"  {user.id:<16} {password:<12} {user.firm:<12} {user.role:<6} {proxied}", soft_wrap=True)
    console.print(
        "Users with Voice via Web Proxy call through the relay, over TLS: their browser must trust the emulator's CA.\n"
        f"{cloud.settings.folder / 'browser.sh'} starts one that does. The others call over UDP, from any browser.",
        soft_wrap=True,
    )
    console.print(f"Files for clients, relay and scripts: {cloud.settings.folder}", soft_wrap=True)


def _rows(cloud: Cloud, gateway: Gateway | None) -> Sequence[tuple[str, str, str]]:
    catalog, names = cloud.settings.catalog, cloud.names
    rows = []
    for service in Service:
        hosts = [host.name for host in catalog.hosts if host.service is service and names.exists(host.name)]
        if service is not Service.MEDIA:
            rows.append((service.value, f"https://{cloud.tls} http://{cloud.http}", _some(hosts)))
    for region in dict.fromkeys(host.region for host in cloud.running_hosts()):
        running = [host for host in cloud.running_hosts() if host.region == region]
        where = f"{running[0].address} … {running[-1].address} (UDP)"
        rows.append((f"TURN {region}", where, _some([host.name for host in running])))
    if cloud.faults.web_proxy is not None:
        rows.append(("web proxy with faults", str(cloud.faults.web_proxy.address), ""))
    if gateway is not None:
        addresses = ", ".join(str(address) for address in gateway.tls)
        rows.append(("relay", f"{addresses} (HTTPS, WebSocket, TURN/TLS)", ""))
        rows.append(("relay: web proxy", ", ".join(str(each) for each in gateway.web_proxy.addresses), ""))
        rows.append(("relay: dashboard", f"http://{gateway.admin}/", ""))
    return rows


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 2 else f"{names[0]} … {names[-1]} ({len(names)})"
