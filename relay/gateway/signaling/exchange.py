"""One request of signaling and its answer, after its head has been checked.

A request's life: its pool is found by host and path → an upstream is chosen, the holder of its socket.io session first
→ head and body go on as they come → the answer comes back as it comes. After a 101 both connections become one
(``splice``). A request that no upstream answers gets 502 or 504, with a line that says why.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, field

from aiohttp import web

from relay import deadlines
from relay.config import SignalingSettings
from relay.gateway import descriptors
from relay.gateway.lines import Lines
from relay.gateway.signaling import engineio
from relay.gateway.signaling.affinity import Affinity
from relay.gateway.signaling.answer import PassedOn, pass_informational, pass_switch, take_tail
from relay.gateway.signaling.connections import ConnectFailed, Connections, Lost, UpstreamConnection
from relay.gateway.signaling.http_rules import CONNECTION, Accepted, Forwarding
from relay.gateway.signaling.polling_only import PollingOnly
from relay.gateway.signaling.pools import Pool, Pools, SignalingUpstream
from relay.gateway.signaling.refusals import RefusalReason, Refusals
from relay.gateway.signaling.splice import Owner, Splice
from relay.gateway.signaling.upload import Upload
from relay.wire.http1 import AnswerError, AnswerHead, Body, body_of, build_head

# Servers that are asked for one request. The client does not wait for more.
MAX_ATTEMPTS = 3
# Answers 1xx to one request. An upstream that only ever says 102 or 103 does not answer.
MAX_INFORMATIONAL = 32
# A client's User-Agent counts to this length: it is a key of a table.
MAX_USER_AGENT = 256
# RFC 9110 section 9.2.2: these may be sent again when the connection was closed before the answer.
_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})


# The client's and the upstream's transport, each with the protocol that is told of its end.
_Ends = tuple[tuple[asyncio.Transport, Owner], tuple[asyncio.Transport, Owner]]


@dataclass
class Shared:
    """What all exchanges use. A reload replaces ``settings``, ``trust`` and ``forwarding``."""

    pools: Pools
    affinity: Affinity
    polling_only: PollingOnly
    connections: Connections
    refusals: Refusals
    lines: Lines
    settings: SignalingSettings
    # What https:// upstreams are checked against; None until there are upstreams.
    trust: ssl.SSLContext | None = None
    # Which proxies are believed about their clients.
    forwarding: Forwarding = field(default_factory=Forwarding)
    # No new sessions of socket.io then. The others belong to calls that run.
    memory_is_short: bool = False


class Exchange:
    """One request and its answer."""

    def __init__(self, shared: Shared, request: web.Request, accepted: Accepted) -> None:
        self._shared = shared
        self._request = request
        self._accepted = accepted
        # A reload does not change them for a request that is under way.
        self._settings = shared.settings
        self._asked = engineio.parse_query(accepted.query)
        self._client = shared.forwarding.client(request)
        self._loop = asyncio.get_running_loop()

    async def run(self) -> web.StreamResponse:
        """Returns the answer. An upstream's has gone to the client by then; the relay's own is still to be sent."""
        accepted, refusals = self._accepted, self._shared.refusals
        pool = self._shared.pools.match(accepted.host, accepted.path)
        if pool is None:
            return refusals.refuse(RefusalReason.NO_ROUTE, 404, "no signaling upstream serves this host and path")
        if self._shared.memory_is_short and self._asked.is_handshake:
            return refusals.refuse(RefusalReason.NO_MEMORY, 503, "the relay is short of memory: try again in a minute")
        if not accepted.upgrades and engineio.asks_for_websocket(accepted.query):
            # Some web proxy has taken the upgrade away. After this answer socket.io stays with polling.
            return refusals.refuse_upgrade(RefusalReason.NO_UPGRADE)
        if accepted.upgrades and self._stays_with_polling(pool):
            return refusals.refuse_upgrade(RefusalReason.POLLING_ONLY)
        return await self._try_upstreams(pool)

    @property
    def _client_key(self) -> tuple[str, str]:
        # A firm's clients share an address. Programs of one kind behind one middlebox fare alike.
        return self._client, self._request.headers.get("User-Agent", "")[:MAX_USER_AGENT]

    @property
    def _sid(self) -> str:
        """The session of socket.io that the request belongs to; empty if there is none.

        A ``sid`` in a request that is not of socket.io means something else.
        """
        return self._asked.sid if self._asked.is_of_session else ""

    def _stays_with_polling(self, pool: Pool) -> bool:
        # Without a session there is no polling to stay with.
        keys = (pool.key_of(self._sid), self._client_key)
        return self._asked.is_upgrade_of_session and self._shared.polling_only.holds(self._loop.time(), *keys)

    # To an upstream

    async def _try_upstreams(self, pool: Pool) -> web.StreamResponse:
        affinity, refusals, cause = self._shared.affinity, self._shared.refusals, ""
        await affinity.look_up(self._loop.time(), pool, self._sid)
        for upstream in affinity.candidates(self._loop.time(), pool, self._sid)[:MAX_ATTEMPTS]:
            upstream.requests += 1
            try:
                return await self._ask(pool, upstream)
            except ConnectFailed as failed:
                # Nothing was sent, so the next one may be asked.
                upstream.answers["failed"] += 1
                cause = failed.cause
                upstream.on_failure(cause, certain=failed.certain)
                if self._sid:
                    affinity.forget(pool, self._sid)
            except TimeoutError:
                upstream.answers["failed"] += 1
                reason = f"the signaling upstream said nothing for {self._settings.response_timeout_s:g} s"
                return refusals.refuse(RefusalReason.TIMEOUT, 504, reason)
            except (Lost, AnswerError) as error:
                upstream.answers["failed"] += 1
                return refusals.refuse(RefusalReason.UNREACHABLE, 502, f"signaling upstream: {error}")
            finally:
                upstream.requests -= 1
        return refusals.refuse(RefusalReason.UNREACHABLE, 502, f"no signaling upstream could be reached: {cause}")

    async def _ask(self, pool: Pool, upstream: SignalingUpstream) -> web.StreamResponse:
        connections = self._shared.connections
        idle = connections.find_idle(upstream.origin, self._trust)
        if idle is not None:
            try:
                return await self._ask_over(idle, pool, upstream)
            except Lost:
                # It was closed while the request was on its way (RFC 9112 section 9.3.1).
                again = self._request.method in _IDEMPOTENT and self._accepted.body_bytes == 0
                if idle.answering or not again:
                    raise
        if not descriptors.has_room():
            # Those that are left are for operators. It is no failure of the upstream's.
            return self._shared.refusals.refuse(
                RefusalReason.NO_DESCRIPTORS, 503, "the relay has no file descriptor left for this request"
            )
        fresh = await connections.open(upstream.origin, self._trust, self._settings.connect_timeout_s)
        return await self._ask_over(fresh, pool, upstream)

    @property
    def _trust(self) -> ssl.SSLContext:
        trust = self._shared.trust
        assert trust is not None  # there are upstreams
        return trust

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
                self._shared.connections.keep(upstream.origin, self._trust, connection)
            else:
                connection.abort()

    def _head(self) -> bytes:
        accepted = self._accepted
        fields = list(self._shared.forwarding.fields(self._request))
        if self._asked.is_handshake:
            # The session's id is read from the answer, which must not be compressed for that.
            fields = [one for one in fields if one[0].lower() != b"accept-encoding"]
            fields.append((b"Accept-Encoding", b"identity"))
        if accepted.upgrades:
            fields += [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
        if accepted.body_bytes is None:
            fields.append((b"Transfer-Encoding", b"chunked"))
        return build_head(b"%b %b HTTP/1.1" % (self._request.method.encode("ascii"), accepted.target), fields)

    # The answer

    async def _await_answer(self, connection: UpstreamConnection, upload: Upload) -> AnswerHead:
        """The final head, or the head of a 101.

        Raises Lost, AnswerError, TimeoutError, and BadRequest for a bad body.
        """
        for _ in range(MAX_INFORMATIONAL):
            head = await self._await_head(connection, upload)
            if head.status >= 200 or head.status == 101:
                return head
            await pass_informational(self._request, head, expects=self._accepted.expects)
        raise AnswerError(f"more than {MAX_INFORMATIONAL} interim answers")

    async def _await_head(self, connection: UpstreamConnection, upload: Upload) -> AnswerHead:
        reading = self._loop.create_task(connection.read_head(), name="answer")
        try:
            # A body has deadlines of its own while it is on its way.
            await upload.finish(reading)
            async with deadlines.timeout(self._settings.response_timeout_s):
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
            return  # the client was answered, instead of being asked for the body
        if upload.running:
            # An upstream that has said everything, and ends the connection, takes no more.
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
                async with deadlines.timeout(settings.response_timeout_s):
                    data = await connection.read()
                if not data:
                    body.end()
                    break
                piece = body.feed(data)
                if head.status == 200 and len(seen) < engineio.MAX_OPEN_BYTES:
                    seen += piece[: engineio.MAX_OPEN_BYTES]
                    await self._learn(pool, upstream, seen)
                async with deadlines.timeout(settings.body_timeout_s):
                    await passed.send(piece)
            await passed.finish(body.trailers)
            connection.put_back(body.rest)
        except (Lost, AnswerError, TimeoutError, ConnectionError):
            # The head has gone already, so only a connection that breaks off says that something is missing.
            self._request.protocol.force_close()
        return passed

    async def _learn(self, pool: Pool, upstream: SignalingUpstream, seen: bytes) -> None:
        """Only answers of socket.io teach where sessions are: ids that clients make up must not push others out."""
        sid = ""
        if self._asked.is_handshake:
            sid = engineio.sid_of_polling(seen)
        elif engineio.is_answer(seen):
            sid = self._sid
        self._learn_sid(pool, upstream, sid)
        if sid:
            # Before the client has its answer: its next request may come to another relay.
            await self._shared.affinity.tell(self._loop.time(), pool, sid)

    def _learn_sid(self, pool: Pool, upstream: SignalingUpstream, sid: str) -> None:
        if sid:
            self._shared.affinity.learn(self._loop.time(), pool, sid, upstream)

    # WebSockets

    async def _upgrade(
        self, pool: Pool, upstream: SignalingUpstream, connection: UpstreamConnection, head: AnswerHead
    ) -> web.StreamResponse:
        if not self._accepted.upgrades or head.elements(b"upgrade") != [b"websocket"]:
            return self._shared.refusals.refuse(RefusalReason.UNREACHABLE, 502, "signaling upstream: unexpected 101")
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
        ends = (client.transport, client), (connection.transport, connection)
        await self._splice(pool, upstream, ends, (take_tail(client), connection.take()))
        return done

    async def _splice(self, pool: Pool, upstream: SignalingUpstream, ends: _Ends, tails: tuple[bytes, bytes]) -> None:
        observed = bytearray()

        def observe(data: bytes) -> bool:
            observed.extend(data[: engineio.MAX_OPEN_BYTES])
            sid = engineio.sid_of_websocket(bytes(observed))
            self._learn_sid(pool, upstream, sid or "")
            return sid is not None or len(observed) >= engineio.MAX_OPEN_BYTES

        polling_only, client_key = self._shared.polling_only, self._client_key
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
            await splice.run(*tails)
        finally:
            upstream.websockets -= 1
            if watchdog is not None:
                watchdog.cancel()
            if splice.client_bytes:
                polling_only.on_ended(client_key)

    def _watch(self, pool: Pool, splice: Splice) -> asyncio.TimerHandle | None:
        """After the upgrade of a session its client speaks first. If it does not, something swallows its frames."""
        if not self._asked.is_upgrade_of_session:
            return None

        def look() -> None:
            if not splice.client_bytes:
                self._on_swallowed(pool)
                splice.close()

        return self._loop.call_later(self._settings.upgrade_timeout_s, look)

    def _on_swallowed(self, pool: Pool) -> None:
        hold_s, session = self._shared.settings.polling_only_s, pool.key_of(self._sid)
        several = self._shared.polling_only.on_swallowed(
            self._loop.time(), hold_s, session, self._sid, self._client_key
        )
        what = "client stays" if several else "session stays"
        self._shared.lines.info(
            f"{what} with polling: no frame came through its WebSocket",
            connection=self._request.get(CONNECTION),
            client=self._client,
        )
