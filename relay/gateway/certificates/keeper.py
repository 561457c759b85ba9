"""The certificates in service. Their files are watched. Where the new ones cannot be used, the old one stays.

A certificate leaves service only when the configuration is reloaded: a folder that is gone, because a file system is
not mounted, must not take a hundred hosts out of service.
"""

from __future__ import annotations

import asyncio
import datetime
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from relay.config import CertificateFiles, Route
from relay.errors import OperatorError
from relay.gateway.certificates.files import State, pairs_of, state_of
from relay.gateway.certificates.findings import URGENT, Finding, expiry_of, find_all, labels_of
from relay.gateway.file_state import Watched
from relay.plane.certificates import Certificate, ServerCertificate, read_certificate
from relay.tasks import Tasks, in_daemon_thread

log = structlog.get_logger()

# How often the files are looked at.
WATCH_INTERVAL_S = 2.0
# How often it is asked whether a certificate is about to end.
FINDINGS_INTERVAL_S = 3600.0

Now = Callable[[], datetime.datetime]


def utc_now() -> datetime.datetime:
    """The time of this machine's clock."""
    return datetime.datetime.now(datetime.UTC)


@dataclass
class _Pair(Watched[State]):
    """One pair of files, what serves of it, and what is wrong with it."""

    serving: ServerCertificate | None = None
    trouble: str = ""


class CertificateKeeper:
    """Keeps the certificates of one gateway. ``on_change`` puts others in service, and may raise OperatorError."""

    def __init__(self, on_change: Callable[[Sequence[ServerCertificate]], None], now: Now = utc_now) -> None:
        self._on_change = on_change
        self._now = now
        self._entries: Sequence[CertificateFiles] = ()
        self._routes: Sequence[Route] = ()
        self._pairs: dict[Certificate, _Pair] = {}
        # How often the configuration was taken. What was read for an older one is not used.
        self._takes = 0
        # By name as operators know it.
        self._expiries: dict[str, datetime.datetime] = {}
        self._told: set[tuple[str, str]] = set()
        self._tasks = Tasks()

    # What operators see

    @property
    def troubles(self) -> int:
        """How many pairs of files cannot be used now."""
        return sum(bool(pair.trouble) for pair in self._pairs.values())

    def expiries_s(self) -> dict[str, float]:
        """For each name, in how many seconds its certificate ends; negative after that."""
        now = self._now()
        return {name: (end - now).total_seconds() for name, end in self._expiries.items()}

    # What serves

    def take(
        self, entries: Sequence[CertificateFiles], routes: Sequence[Route], certificates: Sequence[ServerCertificate]
    ) -> None:
        """These serve from now on, as they were read for these entries of the configuration."""
        self._entries, self._routes = entries, routes
        self._takes += 1
        # How the files were then is not known, so the watch reads them once more.
        self._pairs = {certificate.files: _Pair(certificate) for certificate in certificates}
        self._note_expiries()

    def serving(self) -> list[ServerCertificate]:
        """Those in service, in the order of the configuration."""
        return [pair.serving for pair in self._pairs.values() if pair.serving is not None]

    def start(self) -> None:
        """Tell what is wrong, and watch, until ``stop``."""
        self.tell()
        self._tasks.start(self._watch(), "certificates")
        self._tasks.start(self._look_for_findings(), "certificates about to end")

    async def stop(self) -> None:
        """Watch no longer."""
        await self._tasks.cancel()

    # Findings

    def tell(self) -> None:
        """Log what is wrong with the certificates that serve, each problem once while it lasts."""
        found = find_all(self.serving(), self._routes, self._now())
        for finding in found:
            if _key(finding) not in self._told:
                level = log.error if finding.problem in URGENT else log.warning
                level("certificate needs attention", problem=finding.problem.value, cause=str(finding))
        self._told = set(map(_key, found))

    async def _look_for_findings(self) -> None:
        while True:
            await asyncio.sleep(FINDINGS_INTERVAL_S)
            self.tell()

    # Files

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            takes = self._takes
            look = functools.partial(_look, self._entries, list(self._pairs))
            states = await in_daemon_thread(look, "certificates")
            if self._takes != takes or not (due := self._due(states)):
                continue
            read = await in_daemon_thread(functools.partial(_read, due), "certificates")
            if self._takes == takes:
                self._take_read(read, states)

    def _due(self, states: dict[Certificate, State]) -> list[Certificate]:
        before = self._pairs
        # New files of a pattern have their place among the others.
        self._pairs = {files: before.get(files) or _Pair() for files in states}
        return [files for files, state in states.items() if self._pairs[files].is_due(state)]

    def _take_read(self, read: dict[Certificate, ServerCertificate | str], states: dict[Certificate, State]) -> None:
        renewed: dict[Certificate, ServerCertificate | None] = {}
        for files, result in read.items():
            pair = self._pairs[files]
            pair.note_read(states[files])
            if isinstance(result, str):
                self._note_trouble(files, result)
                continue
            if result != pair.serving:
                renewed[files], pair.serving = pair.serving, result
            elif pair.trouble:
                log.info("certificate can be used again", certificate=str(files.chain))
            pair.trouble = ""
        if renewed:
            self._put_in_service(renewed)

    def _put_in_service(self, renewed: dict[Certificate, ServerCertificate | None]) -> None:
        """``renewed`` has what served before, by files."""
        try:
            self._on_change(self.serving())
        except OperatorError as error:
            for files, before in renewed.items():
                self._pairs[files].serving = before
                self._note_trouble(files, str(error))
            return
        self._note_expiries()
        for files in renewed:
            serving = self._pairs[files].serving
            assert serving is not None
            log.info("certificate taken into service", certificate=str(files.chain), until=str(expiry_of(serving)))
        self.tell()

    def _note_trouble(self, files: Certificate, cause: str) -> None:
        pair = self._pairs[files]
        if cause != pair.trouble:
            stays = "the old one stays" if pair.serving is not None else "there is no old one"
            log.error(f"certificate not taken into service: {stays}", certificate=str(files.chain), cause=cause)
        pair.trouble = cause

    def _note_expiries(self) -> None:
        self._expiries = {}
        for certificate in self.serving():
            end = expiry_of(certificate)
            for label in labels_of(certificate):
                self._expiries[label] = min(end, self._expiries.get(label, end))


def _key(finding: Finding) -> tuple[str, str]:
    return finding.where, finding.problem


def _look(entries: Sequence[CertificateFiles], known: Sequence[Certificate]) -> dict[Certificate, State]:
    """How all pairs of files are: those of the configuration first, then those that it no longer matches."""
    return {files: state_of(files) for files in dict.fromkeys([*pairs_of(entries), *known])}


def _read(pairs: Sequence[Certificate]) -> dict[Certificate, ServerCertificate | str]:
    """Each certificate, or why it cannot be used."""
    return {files: _read_one(files) for files in pairs}


def _read_one(files: Certificate) -> ServerCertificate | str:
    try:
        return read_certificate(files)
    except OperatorError as error:
        return str(error)
