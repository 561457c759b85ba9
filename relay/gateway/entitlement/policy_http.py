"""Asks a service of the firm what a user may do, over HTTP, and remembers the answers for a while.

``GET url?user=…&region=…&client=…`` is answered 200 with JSON: ``{"allowed": true, "calls": 2, "regions": ["use1"]}``.
Only ``allowed`` is required. Everything else is a failure: another status, a redirect, an answer that is late or too
long. Proxies and credentials in the environment are ignored.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from yarl import URL

from relay import __version__, deadlines
from relay.addresses import source_of
from relay.bodies import read_body
from relay.config import EntitlementSettings, Name
from relay.errors import OperatorError
from relay.gateway.entitlement.policies import PolicyUnavailable, Question, Rule, Trouble
from relay.tasks import Tasks

# Requests on the wire at once. Further questions wait for their turn, within their deadline.
MAX_CONNECTIONS = 32
# A trading floor that logs in asks 500 at once.
MAX_QUESTIONS = 2000
# One client address has at most half of both: a client that invents names leaves room for others. Through a web proxy a
# whole floor comes from one address, and half is enough for it.
SHARE = 2
# An answer has some hundred bytes.
MAX_ANSWER_BYTES = 64 * 1024
# After a failure the same question is not asked for this long, because its client may try again at once.
FAILURE_CACHE_S = 1.0


class _Answer(BaseModel):
    """What the service says. Other keys are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore")

    allowed: bool
    calls: int | None = Field(default=None, ge=1)
    regions: list[Name] | None = None


def trust(ca: Path | None) -> ssl.SSLContext:
    """Verifies the service by this CA, or by those of the system. Raises OperatorError."""
    try:
        return ssl.create_default_context(cafile=ca)
    except ssl.SSLError as error:
        raise OperatorError(f"{ca} (entitlement.ca): expected certificates in PEM: {error.reason or error}") from None
    except OSError as error:
        raise OperatorError(f"{ca} (entitlement.ca): {(error.strerror or str(error)).lower()}") from None


# When a question is to be asked again, and what was said; None for a failure. The one used longest ago goes first.
_Answers = OrderedDict[Question, tuple[float, Rule | None]]


@dataclass
class _Source:
    """A client address that has questions under way."""

    questions: int = 0
    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_CONNECTIONS // SHARE))


class UserService:
    """The service at ``entitlement.url``. Clients that ask the same at the same time share one request."""

    def __init__(self, settings: EntitlementSettings) -> None:
        """Raises OperatorError for a CA that cannot be used."""
        self._settings = settings
        self._url = URL(settings.url or "")
        self._trust = trust(settings.ca)
        self._trouble = Trouble("entitlement service fails", "entitlement service answers again")
        # Users who may call, and users who may not: invented names push out only other names that may not.
        self._answers: tuple[_Answers, _Answers] = OrderedDict(), OrderedDict()
        self._asked: dict[Question, asyncio.Future[Rule | None]] = {}
        # Client addresses that have questions under way.
        self._sources: dict[str, _Source] = {}
        self._tasks = Tasks()
        self._http_client: aiohttp.ClientSession | None = None

    @property
    def trouble(self) -> str:
        """Why the last question had no answer; empty if it had one."""
        return self._trouble.cause

    def rule_now(self, question: Question) -> Rule | None:
        """The rule, if it is remembered. Raises PolicyUnavailable if the question has just failed."""
        now = asyncio.get_running_loop().time()
        for answers in self._answers:
            until, rule = answers.get(question, (0.0, None))
            if now < until:
                answers.move_to_end(question)
                if rule is None:
                    raise PolicyUnavailable(self.trouble)
                return rule
        return None

    async def rule(self, question: Question) -> Rule:
        """The rule, remembered or asked for. Raises PolicyUnavailable within ``timeout_s``."""
        if (known := self.rule_now(question)) is not None:
            return known
        answer = self._asked.get(question)
        if answer is None:
            if len(self._asked) >= MAX_QUESTIONS:
                raise PolicyUnavailable(f"{MAX_QUESTIONS} questions wait already")
            address = source_of(question.client)
            source = self._sources.get(address) or _Source()
            if source.questions >= MAX_QUESTIONS // SHARE:
                raise PolicyUnavailable(f"{source.questions} questions of {address} wait already")
            source.questions += 1
            self._sources[address] = source
            answer = self._asked[question] = asyncio.get_running_loop().create_future()
            self._tasks.start(self._answer(question, answer, source), "entitlement")
        # A client that goes away must not take the answer from the others.
        rule = await asyncio.shield(answer)
        if rule is None:
            raise PolicyUnavailable(self.trouble)
        return rule

    async def _answer(self, question: Question, answer: asyncio.Future[Rule | None], source: _Source) -> None:
        rule: Rule | None = None
        try:
            async with deadlines.timeout(self._settings.timeout_s), source.slots:
                rule = await self._ask(question)
        except TimeoutError:
            self._trouble.begin(f"no answer within {self._settings.timeout_s:g} s")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            self._trouble.begin(_cause(error))
        else:
            self._trouble.end()
        finally:
            source.questions -= 1
            if not source.questions:
                del self._sources[source_of(question.client)]
            del self._asked[question]
            self._remember(question, rule)
            answer.set_result(rule)

    async def _ask(self, question: Question) -> Rule:
        url = self._url.update_query(user=question.user, region=question.region, client=question.client)
        async with self._open_http_client().get(url, allow_redirects=False) as response:
            content = await read_body(response, MAX_ANSWER_BYTES)
        answer = _Answer.model_validate_json(content)
        return Rule(answer.allowed, answer.calls, None if answer.regions is None else frozenset(answer.regions))

    def _open_http_client(self) -> aiohttp.ClientSession:
        if self._http_client is None:
            headers = {"Accept": "application/json", "User-Agent": f"cloud9-relay/{__version__}"}
            # A small compressed answer could become a very large one.
            headers["Accept-Encoding"] = "identity"
            if self._settings.token is not None:
                headers["Authorization"] = "Bearer " + self._settings.token.get_secret_value()
            self._http_client = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self._trust, limit=MAX_CONNECTIONS),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                headers=headers,
                # The deadline is for the whole question, including the wait for a connection.
                timeout=aiohttp.ClientTimeout(),
                trust_env=False,
            )
        return self._http_client

    def _remember(self, question: Question, rule: Rule | None) -> None:
        settings = self._settings
        keep_s = FAILURE_CACHE_S if rule is None else settings.cache_s if rule.allowed else settings.refused_cache_s
        may, may_not = self._answers
        known = may if rule is not None and rule.allowed else may_not
        for answers in self._answers:
            answers.pop(question, None)
        known[question] = (asyncio.get_running_loop().time() + keep_s, rule)
        while len(known) > settings.cache_answers:
            known.popitem(last=False)

    async def close(self) -> None:
        """Wait for the questions under way; each has a deadline."""
        await self._tasks.finish()
        if self._http_client is not None:
            await self._http_client.close()


def _cause(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_input=False, include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        return f"not the expected JSON: {key + ': ' if key else ''}{first['msg']}"
    return str(error) or type(error).__name__
