"""This relay's part in the cluster: its lease in Redis, what it knows of the others, and the task that keeps both."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence

import structlog

from relay import __version__, deadlines
from relay.addresses import Address
from relay.config import ClusterSettings
from relay.gateway.cluster.calls import SharedCalls
from relay.gateway.cluster.client import StoreError
from relay.gateway.cluster.opening import open_client
from relay.gateway.cluster.records import RelayRecord
from relay.gateway.cluster.returns import SharedReturns
from relay.gateway.cluster.sessions import SharedSessions
from relay.gateway.cluster.store import Store
from relay.tasks import Tasks

log = structlog.get_logger()

# Three renewals in a row may fail before a lease ends.
RENEWALS_PER_LEASE = 4
# Every so many renewals all is written anew, in case a number has been overtaken by an older one.
RENEWALS_PER_REWRITE = 8
# A Redis that is away is asked this often whether it works again.
RETRY_S = 1.0
# While there are sessions, Redis is asked this often whether their clients are elsewhere. These try again each quarter
# of a second, and should go on within two.
LOOK_S = 0.5


class Cluster:
    """``start`` it before anybody is accepted, and ``stop`` it at the end.

    ``relays`` are those that are up, as far as this one knows; ``calls``, ``sessions`` and ``returns`` are what they
    share. Without ``cluster.redis`` these three are None.
    """

    def __init__(
        self,
        settings: ClusterSettings,
        identity: str,
        addresses: Callable[[], Sequence[Address]],
        draining: Callable[[], bool],
    ) -> None:
        """``identity`` belongs to this run of the relay. Raises OperatorError for a file that cannot be used."""
        self.store: Store | None = None
        self.calls: SharedCalls | None = None
        self.sessions: SharedSessions | None = None
        self.returns: SharedReturns | None = None
        self.relays: list[RelayRecord] = []
        self.identity = identity
        self._settings = settings
        self._addresses = addresses
        self._draining = draining
        self._wake = asyncio.Event()
        self._tasks = Tasks()
        self._written = b""
        self._renewals = 0
        if settings.redis is not None:
            store = Store(open_client(settings, identity), settings.timeout_s, str(settings.address))
            self.store = store
            self.calls = SharedCalls(store, settings.lease_s, self._wake.set)
            self.sessions = SharedSessions(store)
            self.returns = SharedReturns(store)

    async def start(self) -> None:
        """Take part, at once if Redis works. This takes a few deadlines at most."""
        if self.store is not None and self.calls is not None:
            await self._renew(self.store, self.calls)
            self._tasks.start(self._run(self.store, self.calls), "cluster")

    async def stop(self) -> None:
        """Leave: the others need not wait for the end of the lease. May be repeated."""
        await self._tasks.cancel()
        if self.returns is not None:
            await self.returns.stop()
        store, self.store = self.store, None
        if store is None:
            return
        if store.up:
            with contextlib.suppress(StoreError):
                await store.ask(store.client.leave)
            # Whoever asks still is told at once that it is away.
            store.up = False
        with contextlib.suppress(StoreError):
            await store.client.close()

    # The task

    async def _run(self, store: Store, calls: SharedCalls) -> None:
        loop = asyncio.get_running_loop()
        while True:
            until = loop.time() + (self._settings.lease_s / RENEWALS_PER_LEASE if store.up else RETRY_S)
            while loop.time() < until:
                with contextlib.suppress(TimeoutError):
                    async with deadlines.timeout_at(min(until, loop.time() + LOOK_S)):
                        await self._wake.wait()
                self._wake.clear()
                await self._write(store, calls)
            await self._renew(store, calls)

    async def _write(self, store: Store, calls: SharedCalls) -> None:
        if not store.up:
            return  # all is written when it works again
        try:
            if self.returns is not None and self.returns.any_sessions:
                await self.returns.listen()
            await calls.write_changed()
        except StoreError:
            return
        except Exception:
            # A mistake of ours. The lease must not end because of it.
            log.exception("shared state was not written")

    async def _renew(self, store: Store, calls: SharedCalls) -> None:
        """Renew the lease, or write all if it has ended, and look who else is up."""
        record = self._record().dump()
        try:
            if not await self._is_renewed(store, calls, record):
                await calls.write_all(record)
                self._written = record
            found = await store.ask(store.client.relays)
        except StoreError:
            self._written, self.relays = b"", []
            return
        except Exception:
            log.exception("shared state was not renewed")
            self._written, store.up = b"", False
            return
        store.on_working()
        self.relays = sorted((RelayRecord.load(*one) for one in found.items()), key=lambda one: (one.name, one.id))

    async def _is_renewed(self, store: Store, calls: SharedCalls, record: bytes) -> bool:
        self._renewals += 1
        # After a failure all is written, so that a full Redis shows.
        if not store.up or record != self._written or self._renewals % RENEWALS_PER_REWRITE == 0:
            return False
        renewed = await store.ask(lambda: store.client.renew(self._settings.lease_s))
        return renewed.record and (renewed.counts or not len(calls))

    def _record(self) -> RelayRecord:
        name = self._settings.name or socket.gethostname()[:63]
        address = ",".join(map(str, self._addresses()[:1]))
        return RelayRecord(self.identity, name, address, __version__, self._draining())
