"""Networks that block something, and the doctor in them: it is asked, told what it said, and asked again.

Run as a program in a namespace of its own, as root: ``unshare --net python -m ... firewall FOLDER``. It prints the
reports as JSON, one in each line. ``reports_of`` does that.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relay import catalog
from relay.addresses import Address
from relay.catalog import Network, Service, Status
from relay.demo.authority import Authority
from relay.doctor.examine import examine
from relay.doctor.plan import Credentials, Kind, Limits, Plan, ProxyPlan, Site, TurnSite
from relay.doctor.report import Report, from_json, to_json
from relay.doctor.targets import trust_of
from relay.emulator.turn.slow import TurnHost
from relay.turn.credentials import StaticCredentials
from tests.support.peers.squid import open_squid

needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or None in (shutil.which("nft"), shutil.which("unshare"), shutil.which("ip")),
    reason="needs root, nftables and namespaces",
)

PROJECT = Path(__file__).parents[3]
# The desk is 127.0.0.1. What goes there is never blocked, as answers are not.
VENDOR = "127.0.0.2"
CREDENTIALS = Credentials("trader", "secret")
LIMITS = Limits(probe_s=5.0, answer_s=3.0, voice_s=0.2, total_s=100.0)
# Packets are lost in silence, as in a network; on the way out the sender would be told.
FIREWALL = f"""
table inet filter {{
    chain cloud9 {{ }}
    chain input {{
        type filter hook input priority 0; policy accept;
        jump cloud9
        ip daddr {VENDOR} meta l4proto udp drop
    }}
}}
"""
NAME = "c9rest.xhoot.com"
# What squid has instead of DNS: the machine's own file, with the name.
HOSTS = ("hosts_file /etc/hosts", "dns_nameservers 127.0.0.1")


async def reports_of(world: str, folder: Path) -> list[Report]:
    """What the doctor says in a world: before, and after each change that it has named."""
    child = await asyncio.create_subprocess_exec(
        *("unshare", "--net", "--mount", sys.executable, "-m", __name__, world, str(folder)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=PROJECT,
    )
    try:
        out, told = await child.communicate()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    assert child.returncode == 0, told.decode()[-2000:]
    return [from_json(one, world) for one in out.decode().split("\0") if one.strip()]


def _load(rules: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)


async def _firewall(_: Path) -> None:
    """UDP is blocked; the rule of each finding is applied as it was printed."""
    _load(FIREWALL)
    networks = (Network(ipaddress.ip_network(VENDOR), "here", "use1"),)
    plan = Plan(
        kind=Kind.EMULATOR,
        target="a firewall",
        catalog=dataclasses.replace(catalog.load(), networks=networks),
        trust=trust_of(),
        turn=(TurnSite("host", "use1", Address(VENDOR, 3478)),),
        credentials=CREDENTIALS,
        limits=LIMITS,
    )
    known = StaticCredentials({CREDENTIALS.username: CREDENTIALS.password})
    async with TurnHost(Address(VENDOR, 3478), known, allow_loopback_peers=True):
        for code in ("UDP-STUN", "UDP-HIGH-PORTS", ""):
            report = await examine(plan)
            _print(report)
            for finding in report.findings:
                if finding.code == code:
                    _load(next(rule.text for rule in finding.rules if rule.product == "nftables"))


async def _proxy(folder: Path) -> None:
    """squid lets nobody out; the rule of the finding is put before its own."""
    authority = Authority(folder)
    await asyncio.to_thread(_name, folder)
    async with _server(authority):
        rules = "# nothing yet"
        for _ in range(2):
            async with open_squid([*HOSTS, rules, "http_access deny all"]) as squid:
                report = await examine(_through(squid.url, authority))
            _print(report)
            for finding in report.findings:
                rules = next(rule.text for rule in finding.rules if rule.product == "squid")


def _name(folder: Path) -> None:
    """Have this machine know the name, in the namespace's own view of its files."""
    hosts = folder / "hosts"
    hosts.write_text(f"127.0.0.1 localhost {NAME}\n")
    subprocess.run(["mount", "--bind", hosts, "/etc/hosts"], check=True)


def _through(proxy: str, authority: Authority) -> Plan:
    where = Address(NAME, 443)
    return Plan(
        kind=Kind.RELAY,
        target="a web proxy",
        catalog=catalog.load(),
        trust=trust_of(authority.ca_certificate),
        expected=authority.ca_certificate,
        sites=(Site(NAME, Service.LOGIN, None, Status.ACTIVE, Address("127.0.0.1", 443), where),),
        proxy=ProxyPlan(url=proxy),
        limits=LIMITS,
    )


@contextlib.asynccontextmanager
async def _server(authority: Authority) -> AsyncIterator[None]:
    """The vendor's host, as the proxy finds it."""
    issued = authority.issue(NAME)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(issued.chain, issued.private_key)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 443, ssl=context):
        yield


def _print(report: Report) -> None:
    sys.stdout.write(to_json(report) + "\0")


WORLDS = {"firewall": _firewall, "proxy": _proxy}


if __name__ == "__main__":
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    asyncio.run(WORLDS[sys.argv[1]](Path(sys.argv[2])))
