"""What attackers do, in a process of its own: prepared first, and begun by a line on standard input.

Each prints, as its last line, one JSON object of what it has done.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import itertools
import json
import resource
import shutil
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Protocol

from relay import deadlines
from relay.addresses import Address
from relay.wire.stun import AttributeType, MessageClass, Method, build_message
from tests.support.peers.client_hello import build_client_hello
from tests.support.peers.forging_client import APPLICATION_DATA, HANDSHAKE, ForgingClient

ALERT = 21
USER_CANCELED = b"\x01\x5a"
HELLO = build_message(Method.BINDING, MessageClass.INDICATION, bytes(12))
# A client makes this many records for each connection. The relay closes it long before it has sent them all.
RECORDS_OF_A_RETURN = 100
# Each connection of a crowd comes from another address of this network, so that bounds on one source do not help.
SOURCES = ipaddress.ip_network("127.64.0.0/10")
# ip(7); Python has no name for it before 3.12.
_BIND_ADDRESS_NO_PORT = 24
# Connections that are being made at once, so that the kernel's queue of the listener does not overflow by our doing.
OPENING = 200
# A record of a handshake, the first of a ClientHello that claims 16,000 bytes: the longest that the relay waits for.
HALF_HELLO = bytes.fromhex("1603014000 01003e80 0303") + bytes(500)
# The same that claims 131,071 bytes: RFC 8446 section 4 allows the length, and no client has ever needed it.
CLAIMED_HELLO = bytes.fromhex("1603014000 0101ffff 0303") + bytes(500)
# Says everything that a TURN client says first, and has no credentials.
ALLOCATE_TRANSPORT = (AttributeType.REQUESTED_TRANSPORT, bytes([17, 0, 0, 0]))
# A crowd whose connections are closed comes back after this long.
CROWD_PAUSE_S = 0.5
SLOWHTTPTEST = "slowhttptest"
# Its option for each kind.
SLOW_MODES = {"slow-header": "-H", "slow-body": "-B", "slow-range": "-R", "slow-read": "-X"}


class Attack(Protocol):
    """One attack."""

    async def prepare(self) -> None:
        """Do all that can be done in advance."""

    async def run(self, end: float) -> dict[str, int]:
        """Attack until this time of ``time.monotonic``. Returns what was done."""


# ---- Records without data


def _key_update(client: ForgingClient) -> bytes:
    return client.update_keys()


def _key_update_requested(client: ForgingClient) -> bytes:
    return client.update_keys(requested=True)


def _empty(client: ForgingClient) -> bytes:
    return client.forge(APPLICATION_DATA, b"")


def _renegotiation(client: ForgingClient) -> bytes:
    return client.forge(HANDSHAKE, build_client_hello(None))


def _warning_and_data(client: ForgingClient) -> bytes:
    return client.forge(ALERT, USER_CANCELED) + client.forge(APPLICATION_DATA, HELLO)


def _update_and_data(client: ForgingClient) -> bytes:
    return client.update_keys() + client.forge(APPLICATION_DATA, HELLO)


Make = Callable[[ForgingClient], bytes]
RECORDS: dict[str, tuple[ssl.TLSVersion, Make]] = {
    "key-update": (ssl.TLSVersion.TLSv1_3, _key_update),
    "key-update-requested": (ssl.TLSVersion.TLSv1_3, _key_update_requested),
    "key-update-and-data": (ssl.TLSVersion.TLSv1_3, _update_and_data),
    "empty": (ssl.TLSVersion.TLSv1_3, _empty),
    "empty-1.2": (ssl.TLSVersion.TLSv1_2, _empty),
    "warning-and-data": (ssl.TLSVersion.TLSv1_2, _warning_and_data),
    "renegotiation": (ssl.TLSVersion.TLSv1_2, _renegotiation),
}


class _Hostile:
    """One client that comes back every time it is closed."""

    def __init__(self, server: Address, kind: str, folder: Path, pause_s: float) -> None:
        self.sent = self.returns = 0
        self._server, self._folder, self._pause_s = server, folder, pause_s
        self._version, self._make = RECORDS[kind]
        self._client: ForgingClient | None = None
        self._wire: list[bytes] = []

    async def prepare(self, records: int) -> None:
        """Make the handshake, begin as a TURN client does, and make the records."""
        context = _anybody()
        self._client = await ForgingClient.open_forging(self._server, context, self._version, self._folder)
        await self._client.send_wire(self._client.forge(APPLICATION_DATA, HELLO))
        self._wire = [self._make(self._client) for _ in range(records)]

    async def attack(self, end: float) -> None:
        """Send the records, then come back and send more, until the time is up."""
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                await self._send(end)
            if self._client is not None:
                self._client.abort()
            self._client = None
            await asyncio.sleep(self._pause_s)
            with contextlib.suppress(OSError, ssl.SSLError):
                await self.prepare(RECORDS_OF_A_RETURN)
                self.returns += 1
        if self._client is not None:
            self._client.abort()

    async def _send(self, end: float) -> None:
        # As many as fit into a segment, so that it is known how many were sent.
        for at in range(0, len(self._wire), 50):
            if self._client is None or time.monotonic() > end:
                return
            part = self._wire[at : at + 50]
            await self._client.send_wire(b"".join(part))
            self.sent += len(part)


class RecordFlood:
    """Some clients that send records without data, made in advance, as fast as they can."""

    def __init__(self, server: Address, kind: str, folder: Path, *, clients: int, records: int, pause_s: float) -> None:
        folders = [folder / str(number) for number in range(clients)]
        for each in folders:
            each.mkdir()
        self._hostiles = [_Hostile(server, kind, each, pause_s) for each in folders]
        self._records = records

    async def prepare(self) -> None:
        """As ``Attack`` says."""
        for hostile in self._hostiles:
            await hostile.prepare(self._records)

    async def run(self, end: float) -> dict[str, int]:
        """As ``Attack`` says."""
        await asyncio.gather(*(hostile.attack(end) for hostile in self._hostiles))
        return {
            "records": sum(one.sent for one in self._hostiles),
            "returns": sum(one.returns for one in self._hostiles),
        }


def raise_files() -> None:
    """Allow this process as many descriptors as it may have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _anybody() -> ssl.SSLContext:
    """Trusts any server: an attacker does not care."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


# ---- Crowds


class _Crowd:
    """Connections from many addresses."""

    def __init__(self, server: Address, count: int) -> None:
        self._server, self._count = server, count
        self._sources: Iterator[str] = itertools.cycle(map(str, itertools.islice(SOURCES.hosts(), count)))
        self._opening = asyncio.Semaphore(OPENING)

    async def prepare(self) -> None:
        """Make room for the descriptors: nothing else can be done in advance."""
        raise_files()

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[socket.socket]:
        with socket.socket(type=socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as client:
            # The port is chosen with the connection: else there would be too few for all addresses together.
            client.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
            client.bind((next(self._sources), 0))
            async with self._opening:
                await asyncio.get_running_loop().sock_connect(client, tuple(self._server))
            yield client


class SilentCrowd(_Crowd):
    """Connections that say little or nothing, and come back when they are closed."""

    def __init__(self, server: Address, count: int, says: bytes) -> None:
        super().__init__(server, count)
        self._says = says
        self._open = self._most = self._connections = 0

    async def run(self, end: float) -> dict[str, int]:
        """As ``Attack`` says."""
        await asyncio.gather(*(self._be_silent(end) for _ in range(self._count)))
        return {"connections": self._connections, "at_once": self._most}

    async def _be_silent(self, end: float) -> None:
        loop = asyncio.get_running_loop()
        while (left_s := end - time.monotonic()) > 0:
            with contextlib.suppress(OSError):  # TimeoutError is one: the time is up
                async with deadlines.timeout(left_s), self._connected() as client:
                    self._open += 1
                    self._connections += 1
                    self._most = max(self._most, self._open)
                    try:
                        if self._says:
                            await loop.sock_sendall(client, self._says)
                        while await loop.sock_recv(client, 4096):
                            pass
                    finally:
                        self._open -= 1
            await asyncio.sleep(CROWD_PAUSE_S)


class HandshakeCrowd(_Crowd):
    """Whole handshakes, without resuming, as many at once as there are clients; each leaves right after it."""

    async def run(self, end: float) -> dict[str, int]:
        """As ``Attack`` says."""
        done = await asyncio.gather(*(self._shake_hands(end) for _ in range(self._count)))
        return {"handshakes": sum(done)}

    async def _shake_hands(self, end: float) -> int:
        done = 0
        while (left_s := end - time.monotonic()) > 0:
            with contextlib.suppress(OSError, ssl.SSLError):
                async with deadlines.timeout(left_s), self._connected() as client:
                    done += await self._one(client)
            await asyncio.sleep(0)
        return done

    async def _one(self, client: socket.socket) -> int:
        reader, writer = await asyncio.open_connection(sock=client.dup(), ssl=_anybody(), server_hostname="relay.test")
        del reader
        writer.transport.abort()
        return 1


class Storm(HandshakeCrowd):
    """All clients come at the same moment, stay for a while, and come again: a floor whose relay was restarted."""

    STAYS_S = 2.0

    async def run(self, end: float) -> dict[str, int]:
        """As ``Attack`` says."""
        self._came = 0
        while (left_s := end - time.monotonic()) > 0:
            await asyncio.gather(*(self._come(left_s) for _ in range(self._count)))
        return {"handshakes": self._came}

    async def _come(self, left_s: float) -> None:
        with contextlib.suppress(OSError, ssl.SSLError):
            async with deadlines.timeout(left_s), self._connected() as client:
                self._came += await self._one(client)
                await asyncio.sleep(self.STAYS_S)


# ---- TURN over UDP


class Allocates:
    """Allocates without credentials, each from another address, spread evenly over the time.

    The sockets stay, so that answers have somebody to come to: ``answered`` says how many have come.
    """

    def __init__(self, server: Address, count: int) -> None:
        self._server, self._count = server, count
        self._sockets: list[socket.socket] = []

    async def prepare(self) -> None:
        """Open all sockets."""
        raise_files()
        for source in itertools.islice(SOURCES.hosts(), self._count):
            one = socket.socket(type=socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            one.bind((str(source), 0))
            self._sockets.append(one)

    async def run(self, end: float) -> dict[str, int]:
        """As ``Attack`` says."""
        began = time.monotonic()
        for number, one in enumerate(self._sockets):
            await asyncio.sleep(began + number * (end - began) / self._count - time.monotonic())
            transaction = number.to_bytes(12)
            request = build_message(Method.ALLOCATE, MessageClass.REQUEST, transaction, [ALLOCATE_TRANSPORT])
            with contextlib.suppress(OSError):
                one.sendto(request, tuple(self._server))
        await asyncio.sleep(end - time.monotonic())
        answered = 0
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.recv(2048)
                answered += 1
            one.close()
        return {"allocates": self._count, "answered": answered}


# ---- Slow HTTP


class SlowHttp:
    """Debian's slowhttptest in one of its modes."""

    def __init__(self, server: Address, kind: str, count: int) -> None:
        self._command = [
            SLOWHTTPTEST, SLOW_MODES[kind], "-c", str(count), "-r", str(OPENING), "-i", "5", "-p", "5",
            "-u", f"https://{server}/",
        ]  # fmt: skip

    async def prepare(self) -> None:
        """Nothing can be done in advance. Raises FileNotFoundError if it is not installed."""
        if shutil.which(SLOWHTTPTEST) is None:
            raise FileNotFoundError(f"{SLOWHTTPTEST} is not installed")

    async def run(self, end: float) -> dict[str, int]:
        """As ``Attack`` says."""
        seconds = max(1, round(end - time.monotonic()))
        process = await asyncio.create_subprocess_exec(
            *self._command, "-l", str(seconds), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
        )
        try:
            async with deadlines.timeout(seconds + 5):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        return {"seconds": seconds}


# What each kind of crowd has, unless told otherwise.
CROWDS = {
    "silent": 10_000,
    "half-hello": 10_000,
    "claimed-hello": 10_000,
    "handshakes": 50,
    "storm": 600,
    "allocates": 10_000,
} | dict.fromkeys(SLOW_MODES, 2000)
# What members of a silent crowd say.
SAID = {"silent": b"", "half-hello": HALF_HELLO, "claimed-hello": CLAIMED_HELLO}
# These are for the TURN server of the emulator, over UDP.
OF_THE_EMULATOR = ("allocates",)
KINDS = (*RECORDS, *CROWDS)


def make(kind: str, server: Address, folder: Path, *, clients: int, records: int, pause_s: float) -> Attack:
    """The attack of this kind. ``clients`` of 0 is as many as the kind usually has."""
    if kind in RECORDS:
        return RecordFlood(server, kind, folder, clients=clients or 8, records=records, pause_s=pause_s)
    count = clients or CROWDS[kind]
    if kind in SLOW_MODES:
        return SlowHttp(server, kind, count)
    if kind == "handshakes":
        return HandshakeCrowd(server, count)
    if kind == "storm":
        return Storm(server, count)
    if kind in OF_THE_EMULATOR:
        return Allocates(server, count)
    return SilentCrowd(server, count, SAID[kind])


async def attack(
    kind: str, server: Address, *, seconds: float, clients: int = 0, records: int = 0, pause_s: float = 0.1
) -> None:
    """Print ``ready`` when all is prepared, and begin when a line comes on standard input."""
    with tempfile.TemporaryDirectory() as name:
        attacking = make(kind, server, Path(name), clients=clients, records=records, pause_s=pause_s)
        await attacking.prepare()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.readline)
        started = time.monotonic()
        done = await attacking.run(started + seconds)
        sys.stdout.write(json.dumps({**done, "seconds": round(time.monotonic() - started, 3)}) + "\n")
