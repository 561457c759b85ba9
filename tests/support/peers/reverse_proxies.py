"""Debian's haproxy and nginx as reverse proxies for a test, each with ports, files and folders of its own."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relay.addresses import Address
from tests.support.network.ports import reserved_address
from tests.support.waiting import eventually

# Debian keeps them where users other than root do not look.
HAPROXY = shutil.which("haproxy", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")

needs_reverse_proxies = pytest.mark.skipif(HAPROXY is None or NGINX is None, reason="haproxy or nginx is not installed")

_HAPROXY = """
global
    maxconn 200
    tune.bufsize 131072
    tune.http.maxhdr 4000
defaults
    mode http
    timeout connect 5s
    timeout client 20s
    timeout server 20s
frontend in
    bind {listen}
    default_backend out
backend out
    server one {upstream}
"""

# It passes TCP on, as a balancer does.
_BALANCER = """
global
    maxconn 200
defaults
    mode tcp
    timeout connect 5s
    timeout client 20s
    timeout server 20s
    timeout check 5s
frontend in
    bind {listen}
    default_backend out
backend out
    {check}
    server one {upstream} {server}
"""

# What it is told is what its own manual has for WebSocket; sizes are as the relay's.
_NGINX = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 200; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_header_buffer_size 64k;
    large_client_header_buffers 8 64k;
    client_max_body_size 0;
    underscores_in_headers on;
    map $http_upgrade $wanted {{ default upgrade; '' ''; }}
    server {{
        listen {listen};
        location / {{
            proxy_pass http://{upstream};
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $wanted;
            proxy_pass_header Server;
            proxy_pass_header Date;
            proxy_request_buffering off;
            proxy_buffering off;
            proxy_buffer_size 128k;
            proxy_buffers 8 128k;
            proxy_read_timeout 20s;
        }}
    }}
}}
"""


@contextlib.asynccontextmanager
async def open_haproxy(upstream: Address) -> AsyncIterator[Address]:
    """Start haproxy in front of an upstream; where it listens."""
    async with _running(HAPROXY, "-db", "-f", text=_HAPROXY, upstream=upstream) as address:
        yield address


@contextlib.asynccontextmanager
async def open_balancer(upstream: Address, server: str, check: str = "") -> AsyncIterator[Address]:
    """Start haproxy as a balancer of TCP: options of its server line, and a line that says how to check."""
    text = _BALANCER.replace("{check}", check).replace("{server}", server)
    async with _running(HAPROXY, "-db", "-f", text=text, upstream=upstream) as address:
        yield address


@contextlib.asynccontextmanager
async def open_configured(upstream: Address, text: str) -> AsyncIterator[Address]:
    """Start haproxy with this configuration, in which {listen} and {upstream} stand for addresses."""
    async with _running(HAPROXY, "-db", "-f", text=text, upstream=upstream) as address:
        yield address


@contextlib.asynccontextmanager
async def open_nginx(upstream: Address) -> AsyncIterator[Address]:
    """Start nginx in front of an upstream; where it listens."""
    async with _running(NGINX, "-c", text=_NGINX, upstream=upstream) as address:
        yield address


@contextlib.asynccontextmanager
async def _running(program: str | None, *options: str, text: str, upstream: Address) -> AsyncIterator[Address]:
    assert program is not None
    with tempfile.TemporaryDirectory(prefix="reverse-proxy-") as name, reserved_address() as address:
        folder = Path(name)
        configuration = folder / "configuration"
        configuration.write_text(text.format(folder=folder, listen=address, upstream=upstream))
        process = await asyncio.create_subprocess_exec(
            program, *options, configuration, stdout=DEVNULL, stderr=DEVNULL, cwd=folder
        )
        try:
            await eventually(lambda: process.returncode is not None or _takes_connections(address), program)
            assert process.returncode is None, program
            yield address
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _takes_connections(address: Address) -> bool:
    wanted = f"{int.from_bytes(bytes(map(int, address.host.split('.'))), 'little'):08X}:{address.port:04X}"
    with open("/proc/net/tcp", encoding="ascii") as table:
        return any(line.split()[1:4:2] == [wanted, "0A"] for line in table)
