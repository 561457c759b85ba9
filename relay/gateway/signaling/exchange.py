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
from enum import StrEnum
from typing import Any
from zlib import crc32

from aiohttp import web

from relay.config import HealthSettings, SignalingSettings
from relay.gateway.lines import Lines
from relay.gateway.routing.lookups import Lookup
from relay.gateway.routing.upstreams import Health
from relay.gateway.signaling import engineio
from relay.gateway.signaling.answer import PassedOn, pass_informational, pass_switch
from relay.gateway.signaling.connections import ConnectFailed, Connections, Lost, UpstreamConnection
from relay.gateway.signaling.health import SignalingHealth
from relay.gateway.signaling.http_rules import Accepted, BadRequest, Forwarding, check
from relay.gateway.signaling.polling_only import PollingOnly
from relay.gateway.signaling.pools import CheckedResolver, Pool, Pools, Sessions, SignalingUpstream, open_trust
from relay.gateway.signaling.splice import Splice
from relay.gateway.signaling.upload import Upload
from relay.wire.http1 import AnswerError, AnswerHead, Body, body_of, build_head

# More servers than this are not asked for one request: the client has its own patience.
MAX_ATTEMPTS = 3
# Of one request: an upstream that only ever says 102 or 103 does not answer.
MAX_INFORMATIONAL = 32
# Lines a second, for each kind: clients that are pinned to polling, and requests that are refused.
LINES_PER_S = 5
# What engine.io servers answer to a request they do not understand; clients know it.
_BAD_REQUEST = '{"code":3,"message":"Bad request"}'
# RFC 9110 section 9.2.2: these may be sent again when the connection was closed before the answer.
_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})


class RefusalReason(StrEnum):
    """Why the front answered by itself."""

    BAD_REQUEST = "bad_request"
    TOO_LARGE = "too_large"
    NO_ROUTE = "no_route"
    NO_UPGRADE = "no_upgrade"
    POLLING_ONLY = "polling_only"
    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"


class SignalingProxy:
    """``configure`` it, ``start`` it, let it answer requests, and ``stop`` it. It may be configured again meanwhile.

    ``refusals``, ``watchdog_hits`` and ``pools`` are there to be counted.
    """

    def __init__(self, lookup: Lookup) -> None:
        """``lookup`` resolves the names of upstreams."""
        self.pools = Pools()
        self.sessions = Sessions()
        self.polling_only = PollingOnly()
        self.refusals: Counter[RefusalReason] = Counter()
        self.watchdog_hits = 0
        self._settings = SignalingSettings()
        self._trust: ssl.SSLContext | None = None
        self._forwarding = Forwarding()
        self._resolver = CheckedResolver(lookup)
        self.connections = Connections(self._resolver)
        self._health: SignalingHealth | None = None
        self._stopped = False
        self._turns = itertools.count()
        self._running: set[asyncio.Task[Any]] = set()
        self._lines = Lines(LINES_PER_S)

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
        self.connections.forget_names()
        self.sessions.max_sessions, self.sessions.idle_s = settings.max_sessions, settings.session_idle_s
        self.polling_only.max_entries = settings.max_sessions
        self.pools.configure(settings, health)
        self._watch()

    def _watch(self) -> None:
        if self._health is not None and self._trust is not None:
            self._health.configure(self._settings, self._trust)

    async def start(self) -> None:
        """Be ready for requests."""
        self._health = SignalingHealth(self.connections, self.pools)
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
        self.connections.close()

    # Requests

    async def on_request(self, request: web.Request) -> web.StreamResponse:
        """Answer a request: with what an upstream says, or with why there is no answer."""
        if self._stopped:  # of a connection that is still open
            return self.refuse(RefusalReason.UNREACHABLE, 503, "the relay is about to stop")
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
        except BadRequest as refused:
            return self.refuse_bad(refused, request.remote or "")
        finally:
            self._running.discard(task)

    def refuse_bad(self, refused: BadRequest, client: str) -> web.Response:
        """The page for a request that is not forwarded, with a line in the log, if there have not been many."""
        large = refused.status in {413, 414, 431}
        refusal = RefusalReason.TOO_LARGE if large else RefusalReason.BAD_REQUEST
        self._lines.info(
            "signaling request refused", refusal.value, cause=refused.reason, client=client, status=refused.status
        )
        return self.refuse(refusal, refused.status, refused.reason)

    def refuse(self, refusal: RefusalReason, status: int, reason: str, *, json: str = "") -> web.Response:
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

    @property
    def trust(self) -> ssl.SSLContext:
        """What https:// upstreams are checked against."""
        assert self._trust is not None
        return self._trust

    def on_swallowed(self, now: float, pool: Pool, sid: str, client: object, remote: str) -> None:
        """A client's upgrade was answered, and then nothing came from it: it stays with polling."""
        self.watchdog_hits += 1
        session = (pool.host, pool.path, sid)
        several = self.polling_only.on_swallowed(now, self._settings.polling_only_s, session, sid, client)
        what = "client stays" if several else "session stays"
        self._lines.info(f"{what} with polling: no frame came through its WebSocket", client=remote)


class _Exchange:
    """One request and its answer."""

    def __init__(self, proxy: SignalingProxy, request: web.Request, accepted: Accepted) -> None:
        self._proxy = proxy
        self._request = request
        self._accepted = accepted
        self._settings = proxy.settings
        self._asked = engineio.parse_query(accepted.query)
        self._client = proxy.forwarding.client(request)
        self._loop = asyncio.get_running_loop()

    async def run(self) -> web.StreamResponse:
        accepted, proxy = self._accepted, self._proxy
        pool = proxy.pools.match(accepted.host, accepted.path)
        if pool is None:
            return proxy.refuse(RefusalReason.NO_ROUTE, 404, "no signaling upstream serves this host and path")
        if not accepted.upgrades and engineio.asks_for_websocket(accepted.query):
            # Some web proxy has taken the upgrade away: socket.io stays with polling then.
            return proxy.refuse(RefusalReason.NO_UPGRADE, 400, "no Upgrade", json=_BAD_REQUEST)
        if accepted.upgrades and self._stays_with_polling(pool):
            return proxy.refuse(RefusalReason.POLLING_ONLY, 400, "polling only", json=_BAD_REQUEST)
        return await self._try_upstreams(pool)

    @property
    def _client_key(self) -> tuple[str, str]:
        # A firm's clients share an address; those of one kind behind one middlebox fare alike.
        return self._client, self._request.headers.get("User-Agent", "")[:256]

    @property
    def _sid(self) -> str:
        """The session that it belongs to; other servers' ``sid`` is their own affair."""
        return self._asked.sid if self._asked.is_of_session else ""

    def _stays_with_polling(self, pool: Pool) -> bool:
        # Without a session there is no polling to stay with.
        keys = ((pool.host, pool.path, self._sid), self._client_key)
        return self._asked.is_upgrade_of_session and self._proxy.polling_only.holds(self._loop.time(), *keys)

    async def _try_upstreams(self, pool: Pool) -> web.StreamResponse:
        proxy, cause = self._proxy, ""
        for upstream in proxy.candidates(self._loop.time(), pool, self._sid):
            upstream.requests += 1
            try:
                return await self._ask(pool, upstream)
            except ConnectFailed as failed:
                # No connection: nothing was sent, and the next one may be asked.
                upstream.answers["failed"] += 1
                cause = failed.cause
                upstream.on_failure(cause, certain=failed.certain)
                if self._sid:
                    proxy.sessions.forget(pool, self._sid)
            except TimeoutError:
                upstream.answers["failed"] += 1
                reason = f"the signaling upstream said nothing for {self._settings.response_timeout_s:g} s"
                return proxy.refuse(RefusalReason.TIMEOUT, 504, reason)
            except (Lost, AnswerError) as error:
                upstream.answers["failed"] += 1
                return proxy.refuse(RefusalReason.UNREACHABLE, 502, f"signaling upstream: {error}")
            finally:
                upstream.requests -= 1
        return proxy.refuse(RefusalReason.UNREACHABLE, 502, f"no signaling upstream could be reached: {cause}")

    async def _ask(self, pool: Pool, upstream: SignalingUpstream) -> web.StreamResponse:
        idle = self._proxy.connections.find_idle(upstream.origin, self._proxy.trust)
        if idle is not None:
            try:
                return await self._ask_over(idle, pool, upstream)
            except Lost:
                # It was closed while the request was on its way: RFC 9112 section 9.3.1.
                again = self._request.method in _IDEMPOTENT and self._accepted.body_bytes == 0
                if idle.answering or not again:
                    raise
        fresh = await self._proxy.connections.open(upstream.origin, self._proxy.trust, self._settings.connect_timeout_s)
        return await self._ask_over(fresh, pool, upstream)

    async def _ask_over(
        self, connection: UpstreamConnection, pool: Pool, upstream: SignalingUpstream
    ) -> web.StreamResponse:
        upload = Upload(self._request, self._accepted, self._settings)
        reusable = False
        try:
            connection.write(self._head())
            upload.start(connection)
            head = await self._await_answer(connection, upload)
            upstream.answers[f"{head.status // 100}xx"] += 1
            if head.status == 101:
                return await self._upgrade(pool, upstream, connection, head)
            body = body_of(head, self._request.method)
            passed = await self._pass_on(pool, upstream, connection, head, body)
            await self._await_upload(connection, upload)
            reusable = body.done and head.keeps_alive and not body.ends_with_the_connection and upload.complete
            return passed
        finally:
            await upload.stop()
            if reusable and connection.is_idle:
                self._proxy.connections.keep(upstream.origin, self._proxy.trust, connection)
            else:
                connection.abort()

    def _head(self) -> bytes:
        accepted = self._accepted
        fields = list(self._proxy.forwarding.fields(self._request))
        if self._asked.is_handshake:
            # The session's id has to be read from the answer.
            fields = [one for one in fields if one[0].lower() != b"accept-encoding"]
            fields.append((b"Accept-Encoding", b"identity"))
        if accepted.upgrades:
            fields += [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
        if accepted.body_bytes is None:
            fields.append((b"Transfer-Encoding", b"chunked"))
        return build_head(b"%b %b HTTP/1.1" % (self._request.method.encode("ascii"), accepted.target), fields)

    # The answer

    async def _await_answer(self, connection: UpstreamConnection, upload: Upload) -> AnswerHead:
        """The final head, or that of a 101. Raises Lost, AnswerError, TimeoutError, and BadRequest for a bad body."""
        for _ in range(MAX_INFORMATIONAL):
            head = await self._await_head(connection, upload)
            if head.status >= 200 or head.status == 101:
                return head
            await pass_informational(self._request, head, expects=self._accepted.expects)
        raise AnswerError(f"more than {MAX_INFORMATIONAL} answers before the one that counts")

    async def _await_head(self, connection: UpstreamConnection, upload: Upload) -> AnswerHead:
        reading = self._loop.create_task(connection.read_head(), name="answer")
        try:
            # While a body is on its way it has deadlines of its own.
            await upload.finish(reading)
            async with asyncio.timeout(self._settings.response_timeout_s):
                return await reading
        except Lost:
            if upload.fault is not None:
                raise upload.fault from None
            if upload.stalled:
                raise TimeoutError from None
            raise
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _await_upload(self, connection: UpstreamConnection, upload: Upload) -> None:
        """The answer has ended before the body: the rest goes on, if the upstream takes it."""
        if upload.running and self._accepted.expects and not upload.begun:
            return  # the client was answered instead of being asked for it
        if upload.running:
            # An upstream that has said all, and ends the connection, takes no more.
            ended = self._loop.create_task(connection.wait_for_end(), name="end of answer")
            try:
                await upload.finish(ended)
            finally:
                ended.cancel()
                await asyncio.gather(ended, return_exceptions=True)

    async def _pass_on(
        self,
        pool: Pool,
        upstream: SignalingUpstream,
        connection: UpstreamConnection,
        head: AnswerHead,
        body: Body,
    ) -> web.StreamResponse:
        accepted, settings = self._accepted, self._settings
        passed = PassedOn(self._request, head, body, last=accepted.upgrades or accepted.ignores_upgrade)
        seen = b""
        try:
            await passed.begin()
            while not body.done:
                async with asyncio.timeout(settings.response_timeout_s):
                    data = await connection.read()
                if not data:
                    body.end()
                    break
                piece = body.feed(data)
                if head.status == 200 and len(seen) < engineio.MAX_OPEN_BYTES:
                    seen += piece[: engineio.MAX_OPEN_BYTES]
                    self._learn(pool, upstream, seen)
                async with asyncio.timeout(settings.body_timeout_s):
                    await passed.send(piece)
            await passed.finish(body.trailers)
            connection.put_back(body.rest)
        except (Lost, AnswerError, TimeoutError, ConnectionError):
            # The head has gone: only an end without an end says that something is missing.
            self._request.protocol.force_close()
        return passed

    def _learn(self, pool: Pool, upstream: SignalingUpstream, seen: bytes) -> None:
        """Only what socket.io answers teaches where sessions are: made-up ids must not push others out."""
        sid = ""
        if self._asked.is_handshake:
            sid = engineio.sid_of_polling(seen)
        elif engineio.is_answer(seen):
            sid = self._sid
        self._learn_sid(pool, upstream, sid)

    def _learn_sid(self, pool: Pool, upstream: SignalingUpstream, sid: str) -> None:
        if sid:
            self._proxy.sessions.learn(self._loop.time(), pool, sid, upstream)

    # WebSockets

    async def _upgrade(
        self, pool: Pool, upstream: SignalingUpstream, connection: UpstreamConnection, head: AnswerHead
    ) -> web.StreamResponse:
        if not self._accepted.upgrades or head.elements(b"upgrade") != [b"websocket"]:
            return self._proxy.refuse(RefusalReason.UNREACHABLE, 502, "signaling upstream: unexpected 101")
        done = PassedOn(self._request, head, Body(0), last=True)
        client = self._request.protocol
        try:
            await pass_switch(self._request, head, head.values(b"upgrade")[0])
        except ConnectionError:
            client.force_close()
            return done
        if client.transport is None or not connection.is_open:  # one of them has gone already
            client.force_close()
            return done
        self._learn_sid(pool, upstream, self._sid)
        client_tail = _Tail()
        ends = (client.transport, client), (connection.transport, connection)
        client.set_parser(client_tail)  # type: ignore[arg-type]
        await self._splice(pool, upstream, ends, bytes(client_tail.data), connection.take())
        return done

    async def _splice(
        self, pool: Pool, upstream: SignalingUpstream, ends: Any, client_tail: bytes, upstream_tail: bytes
    ) -> None:
        observed = bytearray()

        def observe(data: bytes) -> bool:
            observed.extend(data[: engineio.MAX_OPEN_BYTES])
            sid = engineio.sid_of_websocket(bytes(observed))
            self._learn_sid(pool, upstream, sid or "")
            return sid is not None or len(observed) >= engineio.MAX_OPEN_BYTES

        polling_only, client_key = self._proxy.polling_only, self._client_key
        splice = Splice(
            *ends,
            idle_timeout_s=self._settings.websocket_idle_timeout_s,
            observe=observe if self._asked.is_handshake else None,
            on_client_speaks=lambda: polling_only.on_working(client_key),
        )
        watchdog = self._watch(pool, splice)
        upstream.upgrades += 1
        upstream.websockets += 1
        try:
            await splice.run(client_tail, upstream_tail)
        finally:
            upstream.websockets -= 1
            if watchdog is not None:
                watchdog.cancel()
            if splice.client_bytes:
                polling_only.on_ended(client_key)

    def _watch(self, pool: Pool, splice: Splice) -> asyncio.TimerHandle | None:
        """After an upgrade of a session its client speaks first; if it does not, something swallows its frames."""
        if not self._asked.is_upgrade_of_session:
            return None

        def look() -> None:
            if not splice.client_bytes:
                self._proxy.on_swallowed(self._loop.time(), pool, self._sid, self._client_key, self._client)
                splice.close()

        return self._loop.call_later(self._settings.upgrade_timeout_s, look)


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
