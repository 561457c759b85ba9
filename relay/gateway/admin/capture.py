"""Records the packets of a flow: a pcapng file that the admin listener sends while it is made.

It shows the UDP leg, with the addresses that relay and upstream have there. SRTP stays as it is: the relay has no key.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

import structlog
from aiohttp import web

from relay import __version__, deadlines
from relay.addresses import Address
from relay.config import CaptureSettings
from relay.gateway.calls.ids import CallIds
from relay.gateway.signaling.http_rules import CONNECTION
from relay.logs import printable
from relay.plane.api import ConnectionId
from relay.plane.taps import Tap, TappedDatagram
from relay.quality.stream import Direction
from relay.wire.pcapng import build_interface, build_packet, build_section_header, build_statistics
from relay.wire.udp import build_udp_packet

log = structlog.get_logger()

# Captures at once. Each may hold 1 MiB of copies, and takes time from calls.
MAX_CAPTURES = 4
# A tap holds 1 MiB. Read this often, it carries 160 Mbit/s.
READ_EVERY_S = 0.05
# Packets that are written in one go, which takes a millisecond or two.
SLICE = 100
# The requester reads too slowly if the end of the file has not left this long after its time.
LATE_S = 10.0
# More than the last block takes, which has figures, and why the capture ended.
LAST_BLOCK_BYTES = 256

_HEADERS = {
    "Content-Type": "application/vnd.tcpdump.pcap",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
}


class CaptureEnd(StrEnum):
    """Why a capture ended."""

    SECONDS = "the time has passed"
    SIZE = "the file has reached capture.max_bytes"
    FLOW = "the flow has ended"
    STOPPED = "the relay stops, or no longer allows captures"
    READER = "the requester has gone, or does not read"


@dataclass(slots=True)
class _Running:
    """One capture. ``room`` is how much the file may still grow, without its last block."""

    tap: Tap
    id: str
    room: int
    # From the monotonic clock to the wall clock. If that one is set meanwhile, times between packets stay right.
    offset_us: int = field(default_factory=lambda: time.time_ns() // 1000 - time.monotonic_ns() // 1000)
    started_us: int = field(default_factory=lambda: time.time_ns() // 1000)
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    packets: int = 0
    size: int = 0

    def header(self) -> bytes:
        """The blocks before the packets."""
        tap = self.tap
        said = (
            f"Flow {self.id} of client {tap.client}, server name {printable(tap.server_name) or 'none'}, "
            f"upstream {printable(tap.upstream.name)} ({tap.upstream.address}).",
            "These are the UDP datagrams between relay and upstream, recorded inside the relay. Those that it drops on "
            "the way to the client are here, too. The IP and UDP headers are made from the addresses; time to live and "
            "flags are made up.",
            "Media is SRTP as it passed. It is not decrypted: the relay has no key.",
            "Missed packets are counted in the last block, and at the packet after the gap.",
        )
        section = build_section_header(f"cloud9-relay {__version__}", "\n".join(said))
        return self._account(section + build_interface(f"upstream {tap.upstream.name}"))

    def blocks(self, datagrams: list[TappedDatagram]) -> tuple[bytes, bool]:
        """As many of these as there is room for, and whether that is all of them."""
        built: list[bytes] = []
        for one in datagrams:
            block = self._block(one)
            if len(block) > self.room:
                return b"".join(built), False
            built.append(self._account(block))
            self.packets += 1
        return b"".join(built), True

    def _block(self, one: TappedDatagram) -> bytes:
        outbound, upstream = one.direction is Direction.UPLINK, self.tap.upstream.address
        source, target = (one.local, upstream) if outbound else (upstream, one.local)
        packet = build_udp_packet(source, target, one.data)
        return build_packet(self.offset_us + one.at_us, packet, outbound=outbound, missed=one.missed)

    def trailer(self, end: CaptureEnd) -> bytes:
        """The block after the packets."""
        missed, now_us = self.tap.missed, self.offset_us + time.monotonic_ns() // 1000
        received = self.packets + missed
        return self._account(
            build_statistics(self.started_us, now_us, received=received, missed=missed, comment=end.value)
        )

    def _account(self, block: bytes) -> bytes:
        self.room -= len(block)
        self.size += len(block)
        return block


class Captures:
    """The captures that run. ``POST /api/flows/{id}/capture?seconds=N`` asks for one."""

    def __init__(
        self, tap: Callable[[ConnectionId], Tap | None], settings: CaptureSettings, ids: CallIds | None = None
    ) -> None:
        self._tap = tap
        self._ids = ids or CallIds()
        self._settings = settings
        self._running: dict[ConnectionId, _Running] = {}
        self._stopped = False

    def __len__(self) -> int:
        return len(self._running)

    def configure(self, settings: CaptureSettings) -> None:
        """Use these from now on. If captures are no longer allowed, those that run end."""
        self._settings = settings
        if not settings.allowed:
            self._stop_all()

    def stop(self) -> None:
        """End all captures, and begin no more."""
        self._stopped = True
        self._stop_all()

    def _stop_all(self) -> None:
        for running in self._running.values():
            running.stop.set()

    async def on_request(self, request: web.Request) -> web.StreamResponse:
        """Send a capture until its time has passed, its flow ends, it is too long, or the requester goes away."""
        settings = self._settings
        if not settings.allowed:
            return _refuse(403, "captures are not allowed: set capture.allowed = true in the relay's configuration")
        if "Origin" in request.headers:
            # The listener has no authentication, and any page in an operator's browser can send a POST to it.
            return _refuse(403, "captures are not for web pages: use relay capture")
        seconds = _seconds(request.query.get("seconds", ""))
        if not 0 < seconds <= settings.max_seconds:
            return _refuse(400, f"seconds: expected a number up to {settings.max_seconds:g} (capture.max_seconds)")
        return await self._open(request, settings, seconds)

    async def _open(self, request: web.Request, settings: CaptureSettings, seconds: float) -> web.StreamResponse:
        connection = self._ids.connection_of(request.match_info["id"])
        if connection in self._running:
            return _refuse(409, "this flow is being captured already")
        if self._stopped or len(self._running) >= MAX_CAPTURES:
            return _refuse(409, f"{MAX_CAPTURES} captures run already: try again later")
        tap = None if connection is None else self._tap(connection)
        if connection is None or tap is None:
            return _refuse(404, "no such flow")
        # This comes before the first await, so that many that come at once are counted.
        running = _Running(tap, self._ids.id_of(connection), settings.max_bytes - LAST_BLOCK_BYTES)
        self._running[connection] = running
        end, response = CaptureEnd.READER, web.StreamResponse(headers=_HEADERS)
        asked = {"asked_by": _peer(request), "asked_over": request.get(CONNECTION, "")}
        told = {"connection": running.id, **asked, "client": str(tap.client)}
        log.info("capture started", **told, seconds=seconds, server_name=tap.server_name)
        try:
            async with deadlines.timeout(seconds + LATE_S):
                await response.prepare(request)
                await response.write(running.header())
                end = await _record(running, response, asyncio.get_running_loop().time() + seconds)
        except (TimeoutError, ConnectionError):
            if request.transport is not None:
                request.transport.abort()
        finally:
            tap.close()
            del self._running[connection]
            figures = {"packets": running.packets, "bytes": running.size, "missed": tap.missed}
            log.info("capture ended", **told, reason=end.value, **figures)
        return response


async def _record(running: _Running, response: web.StreamResponse, until: float) -> CaptureEnd:
    loop = asyncio.get_running_loop()
    end: CaptureEnd | None = None
    while end is None:
        # First look whether it has ended, then take packets: so all that came before the end are taken.
        if running.tap.ended:
            end = CaptureEnd.FLOW
        elif running.stop.is_set():
            end = CaptureEnd.STOPPED
        elif loop.time() >= until:
            end = CaptureEnd.SECONDS
        if not await _write_waiting(running, response):
            end = CaptureEnd.SIZE
        if end is None:
            await _pause(running.stop, min(READ_EVERY_S, until - loop.time()))
    await response.write(running.trailer(end))
    await response.write_eof()
    return end


async def _write_waiting(running: _Running, response: web.StreamResponse) -> bool:
    """Write what has come. Returns False if the file has no room for it."""
    # This loop is bounded, because a flood could keep it busy for ever. The ring holds at most 44,000 packets.
    for _ in range(500):
        datagrams = running.tap.take(SLICE)
        if not datagrams:
            break
        written, fits = running.blocks(datagrams)
        if written:
            await response.write(written)
        if not fits:
            return False
        await asyncio.sleep(0)
    return True


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    try:
        async with deadlines.timeout(max(0.0, seconds)):
            await stop.wait()
    except TimeoutError:
        pass


def _seconds(text: str) -> float:
    """A plain decimal number; 0 for any other text."""
    return float(text) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) else 0.0


def _peer(request: web.Request) -> str:
    name = None if request.transport is None else request.transport.get_extra_info("peername")
    return "" if not name else str(Address(*name[:2]))


def _refuse(status: int, reason: str) -> web.Response:
    headers = {key: value for key, value in _HEADERS.items() if key != "Content-Type"}
    return web.json_response({"error": reason}, status=status, headers=headers)
