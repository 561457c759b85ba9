"""The signaling reverse proxy: socket.io and REST to the configured upstreams, by host and path.

A request's life: its head is checked (``http_rules``) → the upstream is chosen, that of its socket.io session first →
head and body go on as they come → the answer comes back as it comes. After a 101 both connections become one
(``splice``). What has no answer gets 502 or 504 and a line that says why.
"""

from __future__ import annotations

import asyncio
import itertools
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from enum import StrEnum
from typing import Any
from zlib import crc32

import aiohttp
from aiohttp import web
from aiohttp.streams import EMPTY_PAYLOAD
from multidict import CIMultiDict
from yarl import URL

from relay.config import Health as HealthSettings
from relay.config import Signaling as SignalingSettings
from relay.gateway.lines import Lines
from relay.gateway.lookups import Lookup
from relay.gateway.signaling import engineio
from relay.gateway.signaling.http_rules import TOLD_BY_US, Accepted, Forwarding, Refused, check, end_to_end
from relay.gateway.signaling.splice import Splice
from relay.gateway.signaling.upstreams import (
    CheckedResolver,
    Pool,
    Pools,
    Sessions,
    SignalingHealth,
    SignalingUpstream,
    explain,
    is_refused,
    open_trust,
)
from relay.gateway.upstreams import Health

# Node's servers close a connection that is idle for 5 s: it must not be used a moment after.
UPSTREAM_KEEPALIVE_S = 4.0
# More servers than this are not asked for one request: the client has its own patience.
MAX_ATTEMPTS = 3
# Of an upstream's answer: Set-Cookie of some portals is long.
MAX_ANSWER_FIELD_BYTES = 32 * 1024
# Clients that are pinned to polling have one line each in the log, at most so many a second.
PINNED_LINES_PER_S = 5
# What engine.io servers answer to a request they do not understand; clients know it.
_BAD_REQUEST = '{"code":3,"message":"Bad request"}'

# Handled by the front itself, or put there by aiohttp unless it is told not to.
_NEVER_AUTOMATIC = frozenset({"Accept", "Accept-Encoding", "User-Agent", "Content-Type"})


class Refusal(StrEnum):
    """Why the front answered by itself."""

    BAD_REQUEST = "bad_request"
    TOO_LARGE = "too_large"
    NO_ROUTE = "no_route"
    NO_UPGRADE = "no_upgrade"
    POLLING_ONLY = "polling_only"
    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"


class _Body:
    """A request's body on its way, and what was wrong with it."""

    def __init__(self, request: web.BaseRequest, settings: SignalingSettings) -> None:
        self.fault: Refused | None = None
        # For the next piece to come and to be taken; then for the answer.
        self.patience_s = settings.body_timeout_s + settings.response_timeout_s
        self.deadline: asyncio.Timeout | None = None
        self._request = request
        self._settings = settings

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises Refused, which ``fault`` keeps."""
        sent = 0
        try:
            while True:
                async with asyncio.timeout(self._settings.body_timeout_s):
                    piece = await self._request.content.readany()
                if not piece:
                    return
                sent += len(piece)
                if sent > self._settings.max_body_bytes:
                    raise Refused(413, f"the body is larger than {self._settings.max_body_bytes} bytes")
                if self.deadline is not None:
                    self.deadline.reschedule(asyncio.get_running_loop().time() + self.patience_s)
                yield piece
        except TimeoutError:
            self.fault = Refused(408, "the body did not come in time")
        except Refused as refused:
            self.fault = refused
        except (aiohttp.ClientError, web.RequestPayloadError, ValueError) as error:
            self.fault = Refused(400, f"the body is broken: {type(error).__name__}")
        raise self.fault


class SignalingProxy:
    """``configure`` it, ``start`` it, let it answer requests, and ``stop`` it. It may be configured again meanwhile.

    ``refusals``, ``watchdog_hits`` and ``pools`` are there to be counted.
    """

    def __init__(self, lookup: Lookup) -> None:
        """``lookup`` resolves the names of upstreams."""
        self.pools = Pools()
        self.sessions = Sessions()
        self.refusals: Counter[Refusal] = Counter()
        self.watchdog_hits = 0
        self._settings = SignalingSettings()
        self._trust: ssl.SSLContext | None = None
        self._forwarding = Forwarding()
        self._resolver = CheckedResolver(lookup)
        self._session: aiohttp.ClientSession | None = None
        self._health: SignalingHealth | None = None
        self._stopped = False
        self._turns = itertools.count()
        self._running: set[asyncio.Task[Any]] = set()
        self._lines = Lines(PINNED_LINES_PER_S)

    @property
    def configured(self) -> bool:
        """True if requests that are not the relay's own go on."""
        return self._settings.configured

    @property
    def websockets(self) -> int:
        """Spliced connections."""
        return sum(upstream.websockets for upstream in self.pools)

    # Life

    def configure(self, settings: SignalingSettings, health: HealthSettings) -> None:
        """Take new settings; what is in progress goes on with the old. Raises OperatorError, then nothing changes."""
        # What is in progress may still need it when there are no upstreams any more.
        self._trust = open_trust(settings) if settings.configured else self._trust
        self._settings = settings
        self._forwarding = Forwarding(settings.trusted_networks)
        self._resolver.configure(settings.allowed_networks)
        self.sessions.max_sessions, self.sessions.idle_s = settings.max_sessions, settings.session_idle_s
        self.pools.configure(settings, health)
        self._watch()

    def _watch(self) -> None:
        if self._health is not None and self._trust is not None:
            self._health.configure(self._settings, self._trust)

    async def start(self) -> None:
        """Be ready for requests."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                # A client's connection has one request at a time, and their number is limits.connections.
                limit=0,
                keepalive_timeout=UPSTREAM_KEEPALIVE_S,
                resolver=self._resolver,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            skip_auto_headers=_NEVER_AUTOMATIC,
            max_field_size=MAX_ANSWER_FIELD_BYTES,
        )
        self._health = SignalingHealth(self._session, self._resolver, self.pools)
        self._watch()

    async def stop(self) -> None:
        """End all requests and WebSockets, and take no new ones."""
        self._stopped = True
        if self._health is not None:
            await self._health.stop()
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running)
        if self._session is not None:
            await self._session.close()

    # Requests

    async def on_request(self, request: web.Request) -> web.StreamResponse:
        """Answer a request: with what an upstream says, or with why there is no answer."""
        if self._stopped:  # of a connection that is still open
            return self.refuse(Refusal.UNREACHABLE, 503, "the relay is about to stop")
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            accepted = check(
                request,
                max_header_bytes=self._settings.max_header_bytes,
                max_body_bytes=self._settings.max_body_bytes,
            )
            return await _Exchange(self, request, accepted).run()
        except Refused as refused:
            large = refused.status in {413, 431}
            return self.refuse(Refusal.TOO_LARGE if large else Refusal.BAD_REQUEST, refused.status, refused.reason)
        finally:
            self._running.discard(task)

    def refuse(self, refusal: Refusal, status: int, reason: str, *, json: str = "") -> web.Response:
        """A plain page that says why; the connection ends with it, and what has come behind is not read."""
        self.refusals[refusal] += 1
        text, content_type = (json, "application/json") if json else (f"{status}: {reason}\n", "text/plain")
        response = web.Response(status=status, text=text, content_type=content_type)
        response.headers["Cache-Control"] = "no-store"
        response.force_close()
        return response

    # What an exchange needs

    @property
    def settings(self) -> SignalingSettings:
        """As they are now."""
        return self._settings

    @property
    def forwarding(self) -> Forwarding:
        """Who is believed."""
        return self._forwarding

    def candidates(self, now: float, pool: Pool, sid: str) -> list[SignalingUpstream]:
        """Whom to ask, in this order: the holder of the session; another one only tells the client to begin anew."""
        order = pool.order(next(self._turns))
        holder = self.sessions.find(now, pool, sid) if sid else None
        if holder is not None:
            if holder.health is Health.DOWN:
                self.sessions.forget(pool, sid)
            else:
                order.remove(holder)
                order.insert(0, holder)
        elif sid:
            # Of a session from before our start nothing is known: all of its requests go the same way at least.
            order.sort(key=lambda one: (one.health is Health.DOWN, crc32(f"{sid} {one.url}".encode())))
        return order[:MAX_ATTEMPTS]

    async def send(
        self,
        upstream: SignalingUpstream,
        request: web.Request,
        accepted: Accepted,
        headers: CIMultiDict[str],
        body: _Body,
    ) -> aiohttp.ClientResponse:
        """Send a request on, and wait for the head of the answer. Raises aiohttp.ClientError or TimeoutError."""
        assert self._session is not None
        assert self._trust is not None
        settings, origin = self._settings, upstream.origin
        path, _, query = accepted.target.partition("?")
        url = URL.build(
            scheme=origin.scheme, host=origin.host or "", port=origin.port, path=path, query_string=query, encoded=True
        )
        return await self._session.request(
            request.method,
            url,
            headers=headers,
            data=None if accepted.body_bytes == 0 else body.pieces(),
            allow_redirects=False,
            ssl=self._trust,
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=settings.connect_timeout_s, sock_read=settings.response_timeout_s
            ),
        )

    def on_swallowed(self, now: float, pool: Pool, sid: str, client: object, remote: str) -> None:
        """A client's upgrade was answered, and then nothing came from it: it stays with polling."""
        self.watchdog_hits += 1
        self.sessions.pin(now + self._settings.polling_only_s, (pool.host, pool.path, sid), client)
        self._lines.info("client stays with polling: no frame came through its WebSocket", client=remote)


class _Exchange:
    """One request and its answer."""

    def __init__(self, proxy: SignalingProxy, request: web.Request, accepted: Accepted) -> None:
        self._proxy = proxy
        self._request = request
        self._accepted = accepted
        self._asked = engineio.parse_query(accepted.query)
        self._client = proxy.forwarding.client(request)
        self._body = _Body(request, proxy.settings)
        self._loop = asyncio.get_running_loop()

    async def run(self) -> web.StreamResponse:
        accepted, proxy = self._accepted, self._proxy
        pool = proxy.pools.match(accepted.host, accepted.path)
        if pool is None:
            return proxy.refuse(Refusal.NO_ROUTE, 404, "no signaling upstream serves this host and path")
        if not accepted.upgrades and engineio.asks_for_websocket(accepted.query):
            # Some web proxy has taken the upgrade away: socket.io stays with polling then.
            return proxy.refuse(Refusal.NO_UPGRADE, 400, "no Upgrade", json=_BAD_REQUEST)
        if accepted.upgrades and self._is_pinned(pool):
            return proxy.refuse(Refusal.POLLING_ONLY, 400, "polling only", json=_BAD_REQUEST)
        return await self._try_upstreams(pool)

    @property
    def _client_key(self) -> tuple[str, str]:
        # A firm's clients share an address; those of one kind behind one middlebox fare alike.
        return self._client, self._request.headers.get("User-Agent", "")[:256]

    def _is_pinned(self, pool: Pool) -> bool:
        # Without a session there is no polling to stay with.
        sid = self._asked.sid
        keys = ((pool.host, pool.path, sid), self._client_key)
        return bool(sid) and self._proxy.sessions.is_pinned(self._loop.time(), *keys)

    async def _try_upstreams(self, pool: Pool) -> web.StreamResponse:
        proxy, cause = self._proxy, ""
        for upstream in proxy.candidates(self._loop.time(), pool, self._asked.sid):
            upstream.requests += 1
            try:
                return await self._ask(pool, upstream)
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
                # No connection: nothing was sent, and the next one may be asked.
                upstream.answers["failed"] += 1
                cause = explain(error)
                upstream.on_failure(cause, certain=is_refused(error))
                if self._asked.sid:
                    proxy.sessions.forget(pool, self._asked.sid)
            except TimeoutError:
                upstream.answers["failed"] += 1
                reason = f"the signaling upstream said nothing for {proxy.settings.response_timeout_s:g} s"
                return proxy.refuse(Refusal.TIMEOUT, 504, reason)
            except aiohttp.ClientError as error:
                if self._body.fault is not None:
                    raise self._body.fault from None
                upstream.answers["failed"] += 1
                return proxy.refuse(Refusal.UNREACHABLE, 502, f"signaling upstream: {explain(error)}")
            finally:
                upstream.requests -= 1
        return proxy.refuse(Refusal.UNREACHABLE, 502, f"no signaling upstream could be reached: {cause}")

    async def _ask(self, pool: Pool, upstream: SignalingUpstream) -> web.StreamResponse:
        # The answer is waited for once the body has gone; until then each piece of it has to be taken in time.
        async with asyncio.timeout(self._proxy.settings.connect_timeout_s + self._body.patience_s) as deadline:
            self._body.deadline = deadline
            answer = await self._proxy.send(upstream, self._request, self._accepted, self._headers(), self._body)
        try:
            upstream.answers[f"{answer.status // 100}xx"] += 1
            # An id that no upstream knows must not push others out of the table.
            if self._asked.sid and answer.status < 400:
                self._proxy.sessions.learn(self._loop.time(), pool, self._asked.sid, upstream)
            if answer.status == 101:
                return await self._upgrade(pool, upstream, answer)
            return await self._pass_on(pool, upstream, answer)
        finally:
            # Read to its end it has left already; else its connection is of no more use.
            answer.close()

    def _headers(self) -> CIMultiDict[str]:
        accepted = self._accepted
        headers = CIMultiDict(end_to_end(self._request.raw_headers, b"expect", *TOLD_BY_US))
        self._proxy.forwarding.add(self._request, headers)
        if accepted.upgrades:
            headers["Connection"], headers["Upgrade"] = "Upgrade", "websocket"
        if self._asked.is_handshake:
            # The session's id has to be read from the answer.
            headers["Accept-Encoding"] = "identity"
        return headers

    # The answer

    def _answer(self, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        reason = answer.reason if answer.reason and answer.reason.isascii() and answer.reason.isprintable() else None
        response = web.StreamResponse(status=answer.status, reason=reason)
        response.headers.extend(end_to_end(answer.raw_headers))
        if "chunked" in answer.headers.get("Transfer-Encoding", "").lower():
            response.headers.popall("Content-Length", None)
        if self._accepted.upgrades:
            response.force_close()
        return response

    async def _pass_on(
        self, pool: Pool, upstream: SignalingUpstream, answer: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        response = self._answer(answer)
        seen = b"" if self._asked.is_handshake and answer.status == 200 else None
        if not await self._begin(response):
            return response
        try:
            while piece := await answer.content.readany():
                if seen is not None and len(seen) < engineio.MAX_OPEN_BYTES:
                    seen += piece[: engineio.MAX_OPEN_BYTES]
                    self._learn(pool, upstream, engineio.sid_of_polling(seen))
                async with asyncio.timeout(self._proxy.settings.body_timeout_s):
                    await response.write(piece)
        except (aiohttp.ClientError, TimeoutError):
            # The head has gone: only an end without an end says that something is missing.
            self._request.protocol.force_close()
        return response

    async def _begin(self, response: web.StreamResponse) -> bool:
        """Send the head; False if the client has gone, which is no fault of the upstream."""
        try:
            await response.prepare(self._request)
        except ConnectionError:
            self._request.protocol.force_close()
            return False
        return True

    def _learn(self, pool: Pool, upstream: SignalingUpstream, sid: str) -> None:
        if sid:
            self._proxy.sessions.learn(self._loop.time(), pool, sid, upstream)

    async def _upgrade(
        self, pool: Pool, upstream: SignalingUpstream, answer: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        connection = answer.connection
        offered = answer.headers.get("Upgrade", "").lower()
        if connection is None or connection.protocol is None or not self._accepted.upgrades or offered != "websocket":
            return self._proxy.refuse(Refusal.UNREACHABLE, 502, "signaling upstream: unexpected 101")
        response = self._answer(answer)
        response.headers["Connection"], response.headers["Upgrade"] = "Upgrade", "websocket"
        client, server = self._request.protocol, connection.protocol
        if not await self._begin(response):
            return response
        if client.transport is None or server.transport is None:  # one of them has gone already
            client.force_close()
            return response
        client_tail, upstream_tail = _Tail(), _Tail()
        ends = (client.transport, client), (server.transport, server)
        client.set_parser(client_tail)  # type: ignore[arg-type]
        server.set_parser(upstream_tail, EMPTY_PAYLOAD)
        observed = bytearray()

        def observe(data: bytes) -> bool:
            observed.extend(data[: engineio.MAX_OPEN_BYTES])
            sid = engineio.sid_of_websocket(bytes(observed))
            self._learn(pool, upstream, sid or "")
            return sid is not None or len(observed) >= engineio.MAX_OPEN_BYTES

        splice = Splice(
            *ends,
            idle_timeout_s=self._proxy.settings.websocket_idle_timeout_s,
            observe=observe if self._asked.is_handshake else None,
        )
        watchdog = self._watch(pool, splice)
        upstream.upgrades += 1
        upstream.websockets += 1
        try:
            await splice.run(bytes(client_tail.data), bytes(upstream_tail.data))
        finally:
            upstream.websockets -= 1
            if watchdog is not None:
                watchdog.cancel()
        return response

    def _watch(self, pool: Pool, splice: Splice) -> asyncio.TimerHandle | None:
        """After an upgrade of a session its client speaks first; if it does not, something swallows its frames."""
        sid = self._asked.sid
        if not sid:
            return None

        def look() -> None:
            if not splice.client_bytes:
                self._proxy.on_swallowed(self._loop.time(), pool, sid, self._client_key, self._client)
                splice.close()

        return self._loop.call_later(self._proxy.settings.upgrade_timeout_s, look)


class _Tail:
    """Takes what has come behind a head, as aiohttp gives it to parsers."""

    def __init__(self) -> None:
        self.data = bytearray()

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Keep it."""
        self.data += data
        return False, b""

    def feed_eof(self) -> None:
        """It ends; the transport says so, too."""
