"""What ``relay emulate`` prints: what runs where, the vendor's names, URLs, and who can log in."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from relay.addresses import Address
from relay.catalog import Service
from relay.emulator.cloud import Cloud
from relay.emulator.folder import urls
from relay.emulator.store.store import is_file
from relay.floor.people import People
from relay.gateway.app import Gateway


def show(console: Console, cloud: Cloud, gateway: Gateway | None, users: People) -> None:
    """Print all of it."""
    console.print(_table("The emulated cloud", "where", _places(cloud, gateway)))
    console.print(_table("The vendor's names", "hosts", _names(cloud)))
    console.print("Open one of these (no hosts file, no certificate needed):", style="bold")
    for what, url in urls(cloud).items():
        console.print(f"  {what:<24} {url}", soft_wrap=True)
    _show_users(console, cloud, users)
    console.print(f"Files for clients, relay and scripts: {cloud.settings.folder}", soft_wrap=True)
    if (exposed := _exposed(cloud)) is not None:
        console.print(
            f"Warning: --expose. Others reach this cloud on {exposed}, and everybody knows its passwords.\n"
            f"From another machine: http://{_reachable(cloud.http)}/ and https://{_reachable(cloud.tls)}/. "
            "The TURN hosts are on loopback only, so voice from there goes through a relay.",
            style="bold red",
            soft_wrap=True,
            highlight=False,
        )


def _show_users(console: Console, cloud: Cloud, users: People) -> None:
    if not cloud.filled:
        console.print(
            "The database has users already: the fixtures are not used. "
            f"To begin anew, stop this and {_emptied(cloud)}.",
            style="bold yellow",
            soft_wrap=True,
        )
    console.print("Log in as (name / password):", style="bold")
    for user in users.listed:
        password = "(not known)" if user.password is None else user.password
        proxied = "Voice via Web Proxy" if user.voice_via_web_proxy else ""
        line = f"  {user.name:<16} {password:<12} {user.firm:<12} {user.role:<6} {proxied}".rstrip()
        console.print(line, soft_wrap=True, markup=False)
    if users.count > len(users.listed):
        console.print(f"  and {users.count - len(users.listed)} more")
    console.print(
        "Users with Voice via Web Proxy call through the relay, over TLS: their browser must trust the emulator's CA.\n"
        f"{cloud.settings.folder / 'browser.sh'} starts one that does. The others call over UDP, from any browser.",
        soft_wrap=True,
    )


def _emptied(cloud: Cloud) -> str:
    database = cloud.settings.database
    return f"delete {database}" if is_file(database) else f"empty {cloud.store.shown}"


# The tables. With two columns, the longest name of a host fits into 80 characters, and is not cut.


def _table(title: str, second: str, rows: Iterator[tuple[str, str]]) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    table.add_column("what", no_wrap=True)
    table.add_column(second, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _places(cloud: Cloud, gateway: Gateway | None) -> Iterator[tuple[str, str]]:
    yield "all hosts, HTTPS", f"https://{cloud.tls}"
    yield "all hosts, HTTP", f"http://{cloud.http}"
    hosts = cloud.running_hosts()
    for region in dict.fromkeys(host.region for host in hosts):
        running = [host.address for host in hosts if host.region == region]
        yield f"TURN {region}", f"{_from_to(running)} (UDP, TCP)"
    if tls := sorted({host.tls_port for host in hosts}):
        yield "TURN over TLS", f"the same addresses, port {_from_to(tls)}"
    if ports := sorted({host.udp_port for host in hosts if host.udp_port is not None}):
        yield "TURN with faults", f"the same addresses, port {_from_to(ports)}"
    if cloud.faults.web_proxy is not None:
        yield "web proxy with faults", str(cloud.faults.web_proxy.address)
    if gateway is not None:
        yield "relay", f"{', '.join(map(str, gateway.tls))} (HTTPS, WebSocket, TURN/TLS)"
        yield "relay: web proxy", ", ".join(str(each) for each in gateway.web_proxy.addresses)
        yield "relay: dashboard", f"http://{gateway.admin}/"


def _from_to(values: Sequence[object]) -> str:
    return f"{values[0]}" if len(values) == 1 else f"{values[0]} … {values[-1]}"


def _names(cloud: Cloud) -> Iterator[tuple[str, str]]:
    hosts = [host for host in cloud.settings.catalog.hosts if cloud.names.exists(host.name)]
    for service in Service:
        if service is not Service.MEDIA:
            yield service.value, _some([host.name for host in hosts if host.service is service])
    for region in dict.fromkeys(host.region for host in cloud.running_hosts()):
        yield f"TURN {region}", _some([host.name for host in cloud.running_hosts() if host.region == region])


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 2 else f"{names[0]} … {names[-1]} ({len(names)} hosts)"


# Exposed addresses


def _exposed(cloud: Cloud) -> str | None:
    proxy = [cloud.faults.web_proxy.address] if cloud.faults.web_proxy is not None else []
    found = [each for each in (cloud.http, cloud.tls, *proxy) if not ipaddress.ip_address(each.host).is_loopback]
    return ", ".join(map(str, found)) or None


def _reachable(address: Address) -> str:
    """An address as others can write it: with this machine's name, if it means all of the machine's addresses."""
    if not ipaddress.ip_address(address.host).is_unspecified:
        return str(address)
    return f"{socket.gethostname()}:{address.port}"
