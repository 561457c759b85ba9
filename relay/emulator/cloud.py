"""The whole cloud in one process: starts every part in order, and stops them in the reverse order.

Order: the folder and the addresses, so that two emulators do not meet; files and certificates, the database, the TURN
hosts, the hops of faults, the recordings, the site with its roles. The fixtures and the listeners are last: a start
that fails leaves no database that is filled.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import ipaddress
import os
import socket
import ssl
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import structlog
from aiohttp import web

from relay.addresses import Address
from relay.emulator import claims, descriptors, softphone_page, tls
from relay.emulator.apis.audit import Audit
from relay.emulator.apis.call_data import CallData
from relay.emulator.apis.cti.server import CtiServer
from relay.emulator.apis.entitlement import VoiceEntitlement
from relay.emulator.apis.management import Management
from relay.emulator.apis.security import Keys
from relay.emulator.faults.hops import FaultHops
from relay.emulator.handshakes import Handshakes
from relay.emulator.hoots import HootMedia
from relay.emulator.http.front import Front
from relay.emulator.http.site import NO_DEADLINE, Handler, Names, Site
from relay.emulator.login.client_logs import ClientLogs
from relay.emulator.login.media import Media, RunningHost
from relay.emulator.login.models import RelayView
from relay.emulator.login.service import LoginService, Passwords
from relay.emulator.login.tokens import Tokens
from relay.emulator.names import HostRole
from relay.emulator.portal.neighbours import HubListener
from relay.emulator.portal.portal import Portal
from relay.emulator.recordings.endpoints import RecordingUpload
from relay.emulator.recordings.recordings import Recordings
from relay.emulator.settings import EmulatorSettings, media_hosts
from relay.emulator.sfu import Sfu
from relay.emulator.signaling import SignalingServer, serve_signaling
from relay.emulator.signaling.event_log import EventLog
from relay.emulator.signaling.in_store import StoreDirectory
from relay.emulator.signaling.shared_redis import require_redis
from relay.emulator.stopping import Stopping
from relay.emulator.store import Store
from relay.emulator.store.seeding import seed, turn_secret
from relay.emulator.store.store import is_file
from relay.emulator.turn.hosts import FIRST_RELAYED_PORT, TurnHosts
from relay.emulator.welcome import Welcome
from relay.errors import OperatorError
from relay.turn.credentials import RestCredentials, user_of_rest
from relay.turn.server import ServerSettings

log = structlog.get_logger()

# A request that is answered when the emulator stops has this long. Uploads and polls are cut.
SHUTDOWN_S = 2.0
FOLDER_MODE = 0o700
FILE_MODE = 0o600


class Cloud:
    """``start`` it once and ``stop`` it, or use it as a context manager. Attributes are valid once it has started."""

    def __init__(self, settings: EmulatorSettings) -> None:
        settings.check()
        self.settings = settings
        self.names = Names(settings.catalog, on=settings.hosts_on)
        self.site = Site(self.names)
        self.tls = settings.tls
        self.http = settings.http
        self.started_at = 0.0
        # The database was empty, and has the fixtures now.
        self.filled = False
        self.store: Store
        self.files: tls.TlsFiles
        self.turn_secret: str
        self.login: LoginService
        self.recordings: Recordings
        self.directory: StoreDirectory
        self.signaling: SignalingServer
        self.hoots: HootMedia
        self.cti: CtiServer
        self.faults: FaultHops
        self._turn: TurnHosts | None = None
        self._hoot_at: Callable[[Address], bool] = lambda address: False
        self._handshakes = Handshakes()
        self._sockets: dict[str, socket.socket] = {}
        self._running = contextlib.AsyncExitStack()
        self._stopping = Stopping()

    async def __aenter__(self) -> Cloud:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start everything, or nothing. Raises OperatorError."""
        async with contextlib.AsyncExitStack() as started:
            self._running, self._stopping = started, Stopping()
            descriptors.raise_limit()
            self._ends("descriptors", descriptors.watch().cancel)
            self._claim()
            if self.settings.redis_url is not None:
                await require_redis(self.settings.redis_url)
            await self._open_files()
            await self._open_store()
            await self._start_turn()
            await self._start_faults()
            await self._start_recordings()
            self._add_roles()
            self.filled = await seed(self.store, self.settings.fixtures)
            await self._listen()
            self.signaling.start()
            await self._start_hoots()
            # Before the listeners: requests of socket.io wait for messages.
            self._ends("signaling", self.signaling.stop)
            self._ends("CTI", self.cti.stop, left=lambda: len(self.cti))
            self._running = started.pop_all()
        self.started_at = time.time()

    async def stop(self) -> None:
        """Stop everything. May be repeated."""
        await self._running.aclose()

    def _ends(
        self, part: str, stop: Callable[[], Coroutine[Any, Any, None]], left: Callable[[], int] | None = None
    ) -> None:
        """Have a part stopped at the end, before those that were started earlier."""
        self._running.push_async_callback(self._stopping.part, part, stop, left)

    def _claim(self) -> None:
        """Make the folder, and keep others off it and off our addresses."""
        settings, database = self.settings, Path(self.settings.database)
        try:
            settings.folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        except FileExistsError:
            raise OperatorError(f"{settings.folder}: not a folder; {claims.another('--folder')}") from None
        except OSError as error:
            raise OperatorError(f"{settings.folder}: {error.strerror or error}; {claims.another('--folder')}") from None
        # Processes with one Redis are one cloud, and may share both.
        claim = functools.partial(claims.claimed, shared=settings.redis_url is not None)
        self._running.enter_context(claim(settings.folder / claims.LOCK_FILE, settings.folder, "--folder"))
        if is_file(settings.database):
            # Also in our own folder: another emulator may name this file with --store.
            lock = database.resolve()
            lock = lock.with_name(f"{lock.name}.lock")
            self._running.enter_context(claim(lock, database, "--store"))
        for option, address in (("--tls", settings.tls), ("--http", settings.http)):
            self._sockets[option] = claims.listen("emulator", address, option)
            self._running.callback(self._sockets[option].close)

    async def _open_files(self) -> None:
        # All hosts of the vendor's, and this machine's addresses that are used.
        addresses = sorted({"127.0.0.1", "::1", self.settings.tls.host, self.settings.http.host})
        addresses += [host.host for host in media_hosts(self.settings.catalog)]
        self.files = await asyncio.to_thread(tls.prepare, self.settings.folder, self.settings.catalog, addresses)

    async def _open_store(self) -> None:
        # The folder may have been there before, open to others: files with secrets must protect themselves.
        _keep_private(self.settings.database)
        self.store = await Store.open(self.settings.database)
        self._ends("database", self.store.close)
        self.turn_secret = await turn_secret(self.store)

    async def _start_recordings(self) -> None:
        self.recordings = Recordings(
            self.store,
            self.settings.folder / "recordings",
            still_in=Tokens(self.store).holds,
            shared=self.settings.redis_url is not None,
        )
        await self.recordings.start()
        self._ends("recordings", self.recordings.stop, left=lambda: self.recordings.running)

    # TURN hosts

    async def _start_turn(self) -> None:
        if not self.settings.runs_turn:
            return
        regions: dict[str, list[str]] = {}
        for host in media_hosts(self.settings.catalog):
            regions.setdefault(host.region, []).append(host.name)
        self._turn = TurnHosts(
            regions,
            RestCredentials(self.turn_secret),
            port=self.settings.turn_port,
            tcp=True,
            tls=tls.server_context(self.files, self.names),
            # The front's port, unless the front has it on every address.
            handshakes=self._handshakes,
            tls_port=0 if ipaddress.ip_address(self.settings.tls.host).is_unspecified else self.settings.tls.port,
            allow_loopback_peers=True,
            settings=ServerSettings(
                first_relayed_port=FIRST_RELAYED_PORT,
                may_reach=self._is_peer if self.settings.exposed else None,
                max_allocations_per_user=self.settings.allocations_per_user,
                quota_name=user_of_rest,
            ),
        )
        with claims.chosen_by("--turn-port, or with --tls for TLS"):
            await self._turn.start({host.name for host in self._turn if self.names.exists(host.name)})
        self._ends("TURN hosts", self._turn.stop)

    def _is_peer(self, address: Address) -> bool:
        """True for what clients have voice with. Others on this machine are none of the business of who is remote."""
        return self._turn is not None and (self._turn.relays(address) or self._hoot_at(address))

    async def switch_host(self, name: str, *, on: bool) -> None:
        """Let a host of the catalog exist or not, from now on. Raises KeyError for other names, OperatorError."""
        self.names.switch(name, on=on)
        if self._turn is not None and name in self._turn:
            turn = self._turn[name]
            await (turn.start() if on else turn.stop())
            self.faults.follow_hosts()

    @property
    def turn_allocations(self) -> int:
        """Allocations in all TURN hosts of this process."""
        return 0 if self._turn is None else sum(host.allocations for host in self._turn)

    def running_hosts(self) -> Sequence[RunningHost]:
        """The TURN hosts that run, here or in another process of the same cloud."""
        if self._turn is None:
            return [
                RunningHost(host.name, host.region, Address(host.host, self.settings.turn_port), self.tls.port)
                for host in media_hosts(self.settings.catalog)
                if self.names.exists(host.name)
            ]
        return [
            RunningHost(
                turn.name,
                turn.region,
                turn.address,
                turn.tls_address.port if turn.tls_address else self.tls.port,
                self.faults.udp_port(turn.name),
            )
            for turn in self._turn
            if turn.running
        ]

    async def _start_faults(self) -> None:
        self.faults = FaultHops(self.site, self._turn)
        self._ends("faults", self.faults.stop)
        await self.faults.start(
            udp_hop_port=self.settings.udp_hop_port,
            web_proxy=self.settings.bad_web_proxy,
            issuer=tls.authority(self.settings.folder),
            trust=ssl.create_default_context(cafile=str(self.files.ca)),
            fronts=lambda: (self.tls, self.http),
        )

    # The site

    def _add_roles(self) -> None:
        plan = self.settings.relay
        media = Media(
            secret=self.turn_secret,
            hosts=self.running_hosts,
            relay=RelayView(tls=str(plan.tls), web_proxy=str(plan.web_proxy)),
            lifetime_s=lambda: self.faults.cloud.credentials_lifetime_s(self.settings.credentials_lifetime_s),
        )
        logs = ClientLogs(self.store, self.settings.folder / "client-logs")
        passwords = Passwords()
        self.login = LoginService(self.store, self.names, media, logs, passwords)
        self.login.register(self.site)
        self._add_signaling(self.login.tokens)
        self._add_apis()
        self._add_portal(passwords)
        softphone_page.register(self.site)
        Welcome(self.site).register()

    def _add_signaling(self, tokens: Tokens) -> None:
        self.directory = StoreDirectory(self.store, tokens)
        self.signaling = SignalingServer(
            self.directory,
            self.directory.on_call_ended,
            redis_url=self.settings.redis_url,
            event_log=EventLog(self.settings.event_log),
        )
        serve_signaling(self._route_signaling, self.signaling)
        self.hoots = HootMedia(self.signaling.hub)

    def _route_signaling(self, method: str, path: str, handler: Handler) -> None:
        # A GET is a WebSocket, or a poll, which the server ends with the next ping.
        timeout_s = NO_DEADLINE if method == "GET" else None
        self.site.route(HostRole.SIGNALING, method, path, handler, timeout_s=timeout_s)

    async def _start_hoots(self) -> None:
        # An SFU of one process knows nothing of the users of another.
        if self.settings.redis_url is not None:
            return
        sfu = Sfu(on_key=self.hoots.on_key, on_vanished=self.hoots.on_vanished)
        await sfu.start()
        self._ends("SFU", sfu.stop)
        self._ends("hoots", self.hoots.stop)
        self.hoots.start(sfu)
        self._hoot_at = self.hoots.serves

    def _add_apis(self) -> None:
        keys = Keys(self.store)
        for api in (Management(self.store, keys), CallData(self.store, keys), Audit(self.store, keys)):
            api.register(self.site)
        self.cti = CtiServer(self.store, keys, self.signaling.hub)
        self.cti.register(self.site)
        RecordingUpload(self.recordings, self.login.bearer).register(self.site)
        entitlement = VoiceEntitlement(self.store, self.entitlement_token)
        self.site.add(entitlement.for_relay())
        self.site.add(entitlement.for_users(self.login.bearer, lambda principal: principal.user_id))

    def _add_portal(self, passwords: Passwords) -> None:
        hub = self.signaling.hub
        listener = HubListener(hub)
        portal = Portal(
            self.store,
            self.login.tokens,
            passwords,
            self.recordings,
            live=hub,
            faults=self.faults.board,
            listener=listener,
        )
        portal.register(self.site)

    @property
    def entitlement_token(self) -> str:
        """The relay's token for the entitlement service. It follows from the TURN secret: one less to keep."""
        return hashlib.sha256(b"entitlement " + self.turn_secret.encode()).hexdigest()

    async def _listen(self) -> None:
        runner = web.AppRunner(self.site.app, shutdown_timeout=SHUTDOWN_S)
        await runner.setup()
        self._ends("handlers", functools.partial(self.site.finish, SHUTDOWN_S), left=lambda: self.site.running)
        self._ends("HTTP", runner.cleanup)
        front = Front(runner, self._handshakes)
        self._running.push_async_callback(front.close)
        self.tls = await front.serve(self._sockets["--tls"], tls.server_context(self.files, self.names))
        self.http = await front.serve(self._sockets["--http"], None)


def _keep_private(database: str) -> None:
    """Make the file of SQLite ours alone. SQLite gives its neighbours, -wal and -shm, the same mode."""
    if not is_file(database):
        return
    # If it cannot be opened, Store.open says why.
    with contextlib.suppress(OSError):
        os.close(os.open(database, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, FILE_MODE))
    for name in (database, f"{database}-wal", f"{database}-shm"):
        with contextlib.suppress(OSError):
            os.chmod(name, FILE_MODE)
