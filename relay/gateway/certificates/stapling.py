"""Staples OCSP responses to handshakes: asks the issuers of certificates, and keeps what they say (RFC 6066 section 8).

A client then need not ask the issuer itself, which a firm's desktops often cannot. Only the compiled plane staples:
Python's own TLS has no way to.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import aiohttp
import structlog

from relay import __version__, deadlines
from relay.bodies import read_body
from relay.errors import OperatorError
from relay.gateway.certificates.findings import labels_of
from relay.gateway.certificates.ocsp import (
    AnswerError,
    Question,
    Revoked,
    Staple,
    is_must_staple,
    question_of,
    read_answer,
)
from relay.plane.certificates import ServerCertificate
from relay.tasks import Tasks

log = structlog.get_logger()

# How often it is looked whether something is to be asked.
LOOK_INTERVAL_S = 60.0
# After a failure the responder is left alone for this long. Answers hold for days.
RETRY = datetime.timedelta(minutes=10)
# A certificate that clients refuse without a staple.
RETRY_MUST_STAPLE = datetime.timedelta(minutes=1)
# Of a whole answer. A start waits this long for the staples without which clients refuse the relay.
ANSWER_TIMEOUT_S = 10.0
# Hundreds of media hosts have one issuer, whose responder is not to be stormed.
ASKED_AT_ONCE = 4
# An answer has some hundred bytes, and with a signer's certificate some thousand.
MAX_ANSWER_BYTES = 64 * 1024
_HEADERS = {
    "Content-Type": "application/ocsp-request",
    "Accept": "application/ocsp-response",
    "Accept-Encoding": "identity",
    "User-Agent": f"cloud9-relay/{__version__}",
}


@dataclass
class _Entry:
    """One certificate: what is asked about it and when, and what was said last."""

    certificate: ServerCertificate
    question: Question
    must_staple: bool
    # By which names operators know it.
    labels: Sequence[str]
    ask_at: datetime.datetime
    staple: Staple | None = None
    trouble: str = ""

    def is_due(self, now: datetime.datetime) -> bool:
        return now >= self.ask_at


class Stapler:
    """Keeps the staples of the certificates in service. ``on_change`` takes the certificates with their staples."""

    def __init__(
        self, on_change: Callable[[Sequence[ServerCertificate]], None], now: Callable[[], datetime.datetime]
    ) -> None:
        """``now`` is the time in UTC."""
        self._on_change = on_change
        self._now = now
        self._certificates: Sequence[ServerCertificate] = ()
        self._entries: dict[bytes, _Entry] = {}
        self._changed = asyncio.Event()
        self._tasks = Tasks()

    def take(self, certificates: Sequence[ServerCertificate], *, asks: bool = True) -> Sequence[ServerCertificate]:
        """These serve from now on: returned with the staples that are known. If not ``asks``, there are none."""
        now, before = self._now(), self._entries
        self._certificates, self._entries = certificates, {}
        for certificate in certificates if asks else ():
            key = _key(certificate)
            entry = before.get(key) or _entry_of(certificate, now)
            if entry is not None:
                self._entries[key] = entry
        self._changed.set()
        return self._stapled()

    def expiries_s(self) -> dict[str, float]:
        """For each name of a certificate with a responder, how long its staple holds; 0 without one."""
        now, found = self._now(), dict[str, float]()
        for entry in self._entries.values():
            left_s = (entry.staple.until - now).total_seconds() if entry.staple is not None else 0.0
            for label in entry.labels:
                found[label] = min(max(left_s, 0.0), found.get(label, float("inf")))
        return found

    async def start(self) -> None:
        """Ask for what clients insist on, and go on asking in the background until ``stop``."""
        await self._look(lambda entry: entry.must_staple)
        self._tasks.start(self._run(), "OCSP")

    async def stop(self) -> None:
        """Ask no longer."""
        await self._tasks.cancel()

    async def _run(self) -> None:
        while True:
            self._changed.clear()
            await self._look(lambda _: True)
            with contextlib.suppress(TimeoutError):
                async with deadlines.timeout(LOOK_INTERVAL_S):
                    await self._changed.wait()

    async def _look(self, wanted: Callable[[_Entry], bool]) -> None:
        """Ask what is due, and put in service what has changed."""
        now = self._now()
        before = self._stapled()
        for entry in self._entries.values():
            # An old staple is worse than none: clients refuse it.
            if entry.staple is not None and now >= entry.staple.until:
                entry.staple = None
        due = [entry for entry in self._entries.values() if wanted(entry) and entry.is_due(now)]
        if due:
            await self._ask_all(due)
        after = self._stapled()
        if after != before:
            try:
                self._on_change(after)
            except OperatorError as error:
                log.error("OCSP responses not taken into service", cause=str(error))

    async def _ask_all(self, due: Sequence[_Entry]) -> None:
        # Proxies and credentials of the environment are not for this: ``trust_env`` stays off.
        connector = aiohttp.TCPConnector(limit=ASKED_AT_ONCE)
        async with aiohttp.ClientSession(
            connector=connector, headers=_HEADERS, cookie_jar=aiohttp.DummyCookieJar(), timeout=aiohttp.ClientTimeout()
        ) as http:
            slots = asyncio.Semaphore(ASKED_AT_ONCE)
            async with asyncio.TaskGroup() as group:
                for entry in due:
                    group.create_task(self._ask(http, slots, entry))

    async def _ask(self, http: aiohttp.ClientSession, slots: asyncio.Semaphore, entry: _Entry) -> None:
        try:
            async with slots, deadlines.timeout(ANSWER_TIMEOUT_S):
                answer = await _post(http, entry.question)
            entry.staple = read_answer(entry.question, answer, self._now())
        except (aiohttp.ClientError, OSError, ValueError, AnswerError) as error:
            # TimeoutError is an OSError, without words.
            self._note_trouble(entry, error)
            return
        entry.ask_at = entry.staple.renew_at
        if entry.trouble:
            log.info("OCSP response stapled again", certificate=str(entry.certificate.files.chain))
        entry.trouble = ""

    def _note_trouble(self, entry: _Entry, error: Exception) -> None:
        cause = str(error) or f"no answer within {ANSWER_TIMEOUT_S:g} s"
        entry.ask_at = self._now() + (RETRY_MUST_STAPLE if entry.must_staple else RETRY)
        if isinstance(error, Revoked):
            entry.staple = None
        if cause == entry.trouble:
            return
        entry.trouble = cause
        urgent = isinstance(error, Revoked) or (entry.must_staple and entry.staple is None)
        level = log.error if urgent else log.warning
        refused = " Clients that know must-staple refuse the relay until there is one." if entry.must_staple else ""
        level(
            "no new OCSP response",
            certificate=str(entry.certificate.files.chain),
            responder=entry.question.url,
            cause=f"{cause}.{refused}",
        )

    def _stapled(self) -> list[ServerCertificate]:
        return [self._with_staple(certificate) for certificate in self._certificates]

    def _with_staple(self, certificate: ServerCertificate) -> ServerCertificate:
        entry = self._entries.get(_key(certificate))
        staple = entry.staple if entry is not None else None
        return certificate if staple is None else replace(certificate, staple=staple.answer)


def _key(certificate: ServerCertificate) -> bytes:
    return hashlib.sha256(certificate.chain).digest()


def _entry_of(certificate: ServerCertificate, now: datetime.datetime) -> _Entry | None:
    question = question_of(certificate)
    if question is None:
        return None
    return _Entry(certificate, question, is_must_staple(certificate), labels_of(certificate), ask_at=now)


async def _post(http: aiohttp.ClientSession, question: Question) -> bytes:
    async with http.post(question.url, data=question.request, allow_redirects=False) as response:
        return await read_body(response, MAX_ANSWER_BYTES)
