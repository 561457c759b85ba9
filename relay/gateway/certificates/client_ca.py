"""Who may sign the certificates that clients show (``listen.client_ca``): the file is read, judged and watched.

Where the new file cannot be used, the authorities of the old one stay.
"""

from __future__ import annotations

import asyncio
import datetime
import functools
from collections.abc import Callable
from pathlib import Path

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from relay.errors import OperatorError
from relay.gateway.certificates.findings import URGENT, find_in_authorities, shown_name
from relay.gateway.certificates.keeper import FINDINGS_INTERVAL_S, Now, utc_now
from relay.gateway.file_state import FileState, Watched, state_of
from relay.plane.certificates import read_file
from relay.plane.client_certificates import ClientAuthorities
from relay.tasks import Tasks, in_daemon_thread

log = structlog.get_logger()

KEY = "listen.client_ca"
# How often the file is looked at, as those of the relay's own certificates.
WATCH_INTERVAL_S = 2.0
# Their names, some 100 bytes each, go to each client that is asked for a certificate.
MAX_AUTHORITIES = 100


def read_authorities(path: Path) -> ClientAuthorities:
    """Read the file. Raises OperatorError, which names key and file, and says what was expected."""
    content = read_file(path, f"{KEY}:")
    try:
        found = x509.load_pem_x509_certificates(content)
    except ValueError:
        raise OperatorError(f"{KEY}: {path}: no PEM certificate in it, or one that cannot be read") from None
    if len(found) > MAX_AUTHORITIES:
        raise OperatorError(f"{KEY}: {path}: {len(found)} certificates: expected at most {MAX_AUTHORITIES}")
    for certificate in found:
        if not _is_authority(certificate):
            expected = "expected certificates of authorities (basicConstraints CA:TRUE)"
            raise OperatorError(f"{KEY}: {path}: {shown_name(certificate)}: {expected}")
    return ClientAuthorities(path, tuple(dict.fromkeys(one.public_bytes(Encoding.DER) for one in found)))


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False


class ClientCa:
    """The authorities in service. ``on_change`` puts others in service, and may raise OperatorError."""

    def __init__(
        self, path: Path | None, on_change: Callable[[ClientAuthorities | None], None], now: Now = utc_now
    ) -> None:
        """Read the file; None if there is none. Raises OperatorError."""
        self.authorities = None if path is None else read_authorities(path)
        # Why the file cannot be used now; empty if it can.
        self.trouble = ""
        self._path = path
        self._on_change = on_change
        self._now = now
        self._file = Watched[tuple[FileState]]()
        self._told: set[str] = set()
        # How often some were put in service. What was read before the last time is not used.
        self._takes = 0
        self._tasks = Tasks()

    def expiry_s(self) -> float | None:
        """In how many seconds the first of them ends, negative after that; None if there are none."""
        if self.authorities is None:
            return None
        return (_first_end(self.authorities) - self._now()).total_seconds()

    def read(self) -> ClientAuthorities | None:
        """As the file has them now, for ``take``. Raises OperatorError, and then the old ones stay."""
        return None if self._path is None else read_authorities(self._path)

    def take(self, authorities: ClientAuthorities | None) -> None:
        """Put these in service. Raises OperatorError, and then the old ones stay."""
        if authorities != self.authorities:
            self._on_change(authorities)
            self.authorities = authorities
            count = 0 if authorities is None else len(authorities.certificates)
            log.info("client authorities taken into service", path=str(self._path), count=count)
        elif self.trouble:
            log.info("client authorities can be used again", path=str(self._path))
        self.trouble = ""
        self._takes += 1

    def start(self) -> None:
        """Tell what is wrong with them, and watch the file, until ``stop``."""
        if self._path is not None:
            self.tell()
            self._tasks.start(self._watch(self._path), "client authorities")
            self._tasks.start(self._look_for_findings(), "client authorities about to end")

    async def stop(self) -> None:
        """Watch no longer."""
        await self._tasks.cancel()

    def tell(self) -> None:
        """Log what is wrong with those in service, each problem once while it lasts."""
        found = find_in_authorities(self.authorities, self._now())
        for finding in found:
            if str(finding) not in self._told:
                level = log.error if finding.problem in URGENT else log.warning
                level("client authority needs attention", problem=finding.problem.value, cause=str(finding))
        self._told = set(map(str, found))

    async def _look_for_findings(self) -> None:
        while True:
            await asyncio.sleep(FINDINGS_INTERVAL_S)
            self.tell()

    async def _watch(self, path: Path) -> None:
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            state = (await in_daemon_thread(functools.partial(state_of, path), "client authorities"),)
            if not self._file.is_due(state):
                continue
            takes = self._takes
            read = await in_daemon_thread(functools.partial(_read, path), "client authorities")
            if self._takes == takes:
                self._file.note_read(state)
                self._take_read(read)

    def _take_read(self, read: ClientAuthorities | str) -> None:
        cause = read if isinstance(read, str) else ""
        if not isinstance(read, str):
            try:
                self.take(read)
            except OperatorError as error:
                cause = str(error)
            else:
                self.tell()
        if cause and cause != self.trouble:
            log.error("client authorities not taken into service: the old ones stay", path=str(self._path), cause=cause)
        self.trouble = cause


# Each scrape of the metrics asks for it.
@functools.lru_cache(maxsize=1)
def _first_end(authorities: ClientAuthorities) -> datetime.datetime:
    return min(x509.load_der_x509_certificate(one).not_valid_after_utc for one in authorities.certificates)


def _read(path: Path) -> ClientAuthorities | str:
    """The authorities, or why they cannot be used."""
    try:
        return read_authorities(path)
    except OperatorError as error:
        return str(error)
