"""One client of the CTI API: its messages, what waits for it, and when it is cut off.

What it is told waits in a queue with a bound. A client that does not read is closed with a reason, and holds up nobody.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

import structlog
from aiohttp import ClientError, WSCloseCode, WSMsgType, web

from relay import deadlines
from relay.emulator.apis.cti import messages
from relay.emulator.apis.cti.envelope import Opened, open_envelope, read_body, seal
from relay.emulator.apis.cti.floor import Floor, Person
from relay.emulator.apis.cti.messages import Rejected, RejectionCode
from relay.emulator.apis.cti.rejections import Rejections
from relay.emulator.apis.cti.statuses import statuses_of
from relay.emulator.apis.models import ApiModel
from relay.emulator.apis.security import Keys, client_address
from relay.emulator.apis.signing import SignedRequest, http_date, new_nonce
from relay.emulator.apis.verifying import ApiKey, SignatureRefused, check_allowed
from relay.emulator.names import Api
from relay.emulator.signaling.messages import PresenceStatus
from relay.emulator.signaling.state import Line, LineSpec
from relay.emulator.store import Store
from relay.emulator.store.store import audit, is_full, is_unavailable
from relay.rate_limit import RateLimit
from relay.tasks import Tasks

log = structlog.get_logger()

# Changes that wait for one client. The busiest floor has 50 a second, so this is 20 s of it.
MAX_QUEUED = 1000
# How long a client may take to read why it is closed.
LINGER_S = 5.0
# A message that is not sent by then: the client does not read.
SEND_TIMEOUT_S = 10.0
# A program that watches a firm sends a few; one that places calls for a floor after a cut sends some hundred.
MESSAGES_PER_SECOND = 50.0
# A client that goes on in spite of this many rejections in a row is broken, or guesses.
MAX_REJECTED_IN_A_ROW = 100
# How soon a client loses its connection after its key was disabled or kept to other addresses, and learns of new users.
RECHECK_S = 30.0
# Of a database that does not answer. All connections notice it.
WARNINGS_PER_S = 0.1
# Who was begun with privacy. More calls than this do not go on at once.
MAX_PRIVATE = 10_000

_IDLE = (int(messages.CallStatusCode.IDLE), None)

LineChange = tuple[LineSpec, Line]
PresenceChange = tuple[str, PresenceStatus]
Item = LineChange | PresenceChange | ApiModel


@dataclass(frozen=True)
class Shared:
    """What all connections use."""

    floor: Floor
    keys: Keys
    store: Store
    rejections: Rejections
    # The calls that were begun with privacy, the latest last.
    private: dict[str, None] = field(default_factory=dict)
    clock: Callable[[], float] = time.time
    warnings: RateLimit = field(default_factory=lambda: RateLimit(WARNINGS_PER_S))

    def is_not_now(self, error: Exception) -> bool:
        """True if the database or the disk has failed, not the emulator. The log has it then."""
        if not (is_unavailable(error) or is_full(error)):
            return False
        if self.warnings.allows(time.monotonic(), ""):
            log.warning("CTI: the database fails", error=str(getattr(error, "orig", None) or error)[:200])
        return True


class Closed(Exception):
    """The connection is to be closed, with this code and reason."""

    def __init__(self, code: WSCloseCode, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


class Connection:
    """A client that was let in with a key. ``handshake`` is what the signature of its handshake covered."""

    def __init__(
        self, shared: Shared, socket: web.WebSocketResponse, key: ApiKey, handshake: SignedRequest, request: web.Request
    ) -> None:
        self.key = key
        self._transport = request.transport
        self._shared = shared
        self._socket = socket
        self._handshake = handshake
        self._address = client_address(request)
        self._queue: asyncio.Queue[Item] = asyncio.Queue(MAX_QUEUED)
        self._people: dict[str, Person] = {}
        # What the client was told of each user on each line, so that it hears of changes only.
        self._told: dict[tuple[str, str], tuple[int, str | None]] = {}
        self._closed: asyncio.Future[Closed] = asyncio.get_running_loop().create_future()
        self._rate = RateLimit(MESSAGES_PER_SECOND)
        self._rejected_in_a_row = 0

    # What others call

    def on_line(self, spec: LineSpec, line: Line) -> None:
        """A line has changed."""
        self._put((spec, line))

    def on_presence(self, user_id: str, presence: PresenceStatus) -> None:
        """A user has come, gone, or changed their presence."""
        self._put((user_id, presence))

    def close(self, code: WSCloseCode, reason: str) -> None:
        """End the connection soon."""
        if not self._closed.done():
            self._closed.set_result(Closed(code, reason))

    def _put(self, item: Item) -> None:
        try:
            self._queue.put_nowait(item)
        except asyncio.QueueFull:
            self.close(WSCloseCode.TRY_AGAIN_LATER, f"too slow: {MAX_QUEUED} messages wait")

    async def load(self) -> None:
        """Learn who is in the firm. Before the handshake is answered: what fails here is an answer over HTTP."""
        self._people = await self._shared.floor.people(self.key.firm)

    async def run(self) -> None:
        """Serve the client to its end."""
        tasks = Tasks()
        for work in (self._read, self._write, self._recheck_forever):
            tasks.start(self._end_of(work), "CTI connection")
        closed = Closed(WSCloseCode.GOING_AWAY, "the emulator stops")
        try:
            closed = await self._closed
        finally:
            await tasks.cancel()
            await self._say_goodbye(closed)

    async def _end_of(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Whatever ends one of the tasks ends the connection."""
        try:
            await work()
        except Closed as closed:
            self.close(closed.code, closed.reason)
        except (ClientError, ConnectionError):
            self.close(WSCloseCode.GOING_AWAY, "")
        except Exception:
            log.exception("CTI connection failed", key=self.key.key)
            self.close(WSCloseCode.INTERNAL_ERROR, "a fault of the emulator's own")
        else:
            self.close(WSCloseCode.OK, "")

    async def _say_goodbye(self, closed: Closed) -> None:
        if closed.reason:
            log.info("CTI connection closed", key=self.key.key, reason=closed.reason)
        try:
            async with deadlines.timeout(LINGER_S):
                await self._socket.close(code=closed.code, message=closed.reason.encode()[:120], drain=False)
        except (TimeoutError, ClientError, ConnectionError):
            # What it has not read would be kept for it until it does.
            if self._transport is not None:
                self._transport.abort()

    # From the client

    async def _read(self) -> None:
        while True:
            message = await self._socket.receive()
            if message.type is WSMsgType.TEXT:
                await self._on_text(message.data)
            elif message.type is WSMsgType.BINARY:
                raise Closed(WSCloseCode.UNSUPPORTED_DATA, "expected text messages")
            else:
                # Closed by the client, lost, or too large, which aiohttp has answered.
                return

    async def _on_text(self, text: str) -> None:
        opened: Opened | None = None
        try:
            if not self._rate.allows(asyncio.get_running_loop().time(), ""):
                expected = f"at most {MESSAGES_PER_SECOND:.0f} a second"
                raise Rejected(RejectionCode.TOO_MANY, "too many messages", expected=expected)
            opened = open_envelope(text, self._handshake)
            await self._do(opened)
        except Rejected as rejected:
            self._rejected_in_a_row += 1
            if self._rejected_in_a_row > MAX_REJECTED_IN_A_ROW:
                raise Closed(WSCloseCode.POLICY_VIOLATION, "too many rejected messages") from None
            known = {} if opened is None else {"message_type": opened.message_type[:64], "nonce": opened.nonce}
            self._put(rejected.message(**known))
        else:
            self._rejected_in_a_row = 0

    async def _do(self, opened: Opened) -> None:
        try:
            await self._check_signature(opened)
            await self._on_message(opened.message_type, read_body(opened))
        except Rejected:
            raise
        except Exception as error:
            if not self._shared.is_not_now(error):
                raise
            reason, expected = "the database does not answer", "a snapshot, and then the same message if it is needed"
            raise Rejected(RejectionCode.UNAVAILABLE, reason, expected=expected) from None

    async def _check_signature(self, opened: Opened) -> None:
        try:
            key = await self._shared.keys.check(
                opened.signed, opened.authorization, opened.date, address=self._address, api=Api.CTI
            )
        except SignatureRefused as refused:
            raise Rejected(refused.status, refused.message, where=refused.where, expected=refused.expected) from None
        if key.key != self.key.key:
            reason = "the message is signed with another key than the connection"
            raise Rejected(RejectionCode.WRONG_SIGNATURE, reason, where="api key", expected=self.key.key)

    async def _on_message(self, message_type: str, message: object) -> None:
        user_id = message.user_id if isinstance(message, messages.InitiateCall | messages.ReleaseCall) else None
        self._shared.rejections.check(self.key.firm, message_type, user_id)
        if isinstance(message, messages.InitiateCall):
            await self._initiate(message)
        elif isinstance(message, messages.ReleaseCall):
            person = await self._person(message.user_id)
            await self._shared.floor.release(person, message)
            await self._audit("cti.release_call", person.user_id)
        elif isinstance(message, messages.SnapshotRequest):
            users = {user_id: await self._person(user_id) for user_id in message.user_ids or ()}
            people = self._people if message.user_ids is None else users
            is_of_calls = message_type == "callStatusSnapshot"
            self._put(await (self._calls_of(people) if is_of_calls else self._presence_of(people)))

    async def _initiate(self, message: messages.InitiateCall) -> None:
        person = await self._person(message.user_id)
        call_id = await self._shared.floor.initiate(person, message)
        if message.privacy_on and call_id is not None:
            private = self._shared.private
            private[call_id] = None
            while len(private) > MAX_PRIVATE:
                del private[next(iter(private))]
        await self._audit("cti.initiate_call", person.user_id, far_end=message.far_end_number)

    async def _person(self, user_id: str) -> Person:
        """A user of the key's firm. Raises Rejected for all others, whether they exist or not."""
        if user_id not in self._people:
            self._people = await self._shared.floor.people(self.key.firm)
        if (person := self._people.get(user_id)) is None:
            reason = f"your firm has no user {user_id!a}"
            raise Rejected(RejectionCode.UNKNOWN, reason, where="userId", expected="a userId of the Management API")
        return person

    async def _calls_of(self, people: dict[str, Person]) -> messages.CallStatusSnapshot:
        offline = people.keys() - await self._shared.floor.presence(people)
        statuses = [
            status
            for spec, line in await self._shared.floor.lines(self.key.firm)
            for status in statuses_of(spec, line, people.keys(), offline=offline, private=self._shared.private)
        ]
        return messages.CallStatusSnapshot(call_statuses=statuses)

    async def _presence_of(self, people: dict[str, Person]) -> messages.UserStatusSnapshot:
        known = await self._shared.floor.presence(people)
        offline = PresenceStatus.OFFLINE
        return messages.UserStatusSnapshot(
            user_statuses=[_user_status(each, known.get(each.user_id, offline)) for each in people.values()]
        )

    async def _audit(self, action: str, target: str, **details: str) -> None:
        async with self._shared.store.writing() as session:
            audit(session, self.key.firm, f"key:{self.key.key}", action, target, **details)

    # To the client

    async def _write(self) -> None:
        while True:
            item = await self._queue.get()
            for message in self._messages_of(item):
                await self._send(message)

    def _messages_of(self, item: Item) -> list[ApiModel]:
        if isinstance(item, ApiModel):
            return [item]
        first, second = item
        if isinstance(first, str):
            person = self._people.get(first)
            return [] if person is None else [_user_status(person, PresenceStatus(second))]  # type: ignore[arg-type]
        assert isinstance(second, Line)
        return list(self._changes(first, second))

    def _changes(self, spec: LineSpec, line: Line) -> Iterator[ApiModel]:
        number, private = spec.number, self._shared.private
        guests = [user for user, told_of in self._told if told_of == number and user not in spec.firm_of]
        for status in statuses_of(spec, line, self._people.keys(), private=private, guests=guests):
            at, now = (status.user_id, number), (int(status.call_status_code), status.call_id)
            if self._told.get(at, _IDLE) != now:
                self._told[at] = now
                yield status
        for user in guests:
            if user not in line.parties:
                del self._told[user, number]

    async def _send(self, message: ApiModel) -> None:
        now = self._shared.clock()
        text = seal(message, self._handshake, self.key.key, self.key.secret, nonce=new_nonce(), date=http_date(now))
        try:
            async with deadlines.timeout(SEND_TIMEOUT_S):
                await self._socket.send_str(text)
        except TimeoutError:
            reason = f"too slow: a message was not read in {SEND_TIMEOUT_S:.0f} s"
            raise Closed(WSCloseCode.TRY_AGAIN_LATER, reason) from None

    async def _recheck_forever(self) -> None:
        while True:
            await asyncio.sleep(RECHECK_S)
            try:
                await self._recheck()
            except Exception as error:
                if not self._shared.is_not_now(error):
                    raise

    async def _recheck(self) -> None:
        self._people = await self._shared.floor.people(self.key.firm)
        key = await self._shared.keys.find(self.key.key)
        if key is None or not key.enabled:
            raise Closed(WSCloseCode.POLICY_VIOLATION, "the API key was disabled")
        try:
            check_allowed(key, self._address, Api.CTI)
        except SignatureRefused as refused:
            raise Closed(WSCloseCode.POLICY_VIOLATION, refused.message) from None


def _user_status(person: Person, presence: PresenceStatus) -> messages.UserStatusUpdate:
    return messages.UserStatusUpdate(
        user_id=person.user_id,
        user_name=person.name,
        logged_in=presence is not PresenceStatus.OFFLINE,
        status=str(presence),
    )
