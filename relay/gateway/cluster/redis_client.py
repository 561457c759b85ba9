"""The questions of ``client`` in the words of Redis, and the names of its keys.

    PREFIX:1:relays           the ids of all relays
    PREFIX:1:relay:ID         what a relay says of itself (``records``)
    PREFIX:1:calls:ID         how many calls each user has there: a hash, whose fields are hashes of user names
    PREFIX:1:session:HASH     which server of signaling holds a session of socket.io, as a hash of its URL
    PREFIX:1:returned         a stream: hashes of tokens that were shown to another relay than their own (``returns``)

All except the first end by themselves, when a relay has not renewed them: Redis counts down, so no clock of any relay
matters. A relay writes only what is its own, and always the whole number, so a question that is asked twice does no
harm. The 1 is the version of all this: a relay of another version that keeps other things is another cluster.

Two questions are Lua scripts, which Redis runs as one step. ``CLAIM``: otherwise two relays that grant a call at the
same moment would both see that there is room. ``RELAYS``: otherwise it might remove a relay that has just come back.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, OutOfMemoryError, RedisError
from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import TimeoutError as LateAnswer

from relay.config import ClusterSettings
from relay.gateway.cluster.client import Failure, Renewed, StoreError
from relay.gateway.cluster.records import MAX_RECORD_BYTES
from relay.gateway.cluster.store import MAX_QUESTIONS

VERSION = "1"
# The library's types are unions of what its synchronous and asynchronous clients take and return.
Untyped = Any
# More relays than a firm has. Each question about calls looks at all of them.
MAX_RELAYS = 64
HASH_BYTES = 16
# Entries of the stream: a whole floor that comes back at once, three times. What is older is forgotten.
MAX_RETURNED = 1000
# Of a secret that is longer, BLAKE2 takes a hash.
_MAX_KEY_BYTES = 64
# A connection of the pool that Redis has closed meanwhile is opened again, and the question is asked once more.
_RETRIES = 1
# Also for closing. It is the longest that ``cluster.timeout_s`` may be.
CONNECT_TIMEOUT_S = 1.0
# The longest text of an error that is logged.
_MAX_CAUSE_CHARACTERS = 200
# The library puts the command, with all its arguments, in front of this.
_CAUSED = " caused error: "

# KEYS: relays, this relay's calls. ARGV: id, prefix of calls, user, count, max_calls, lease in ms, MAX_RELAYS.
CLAIM = """
local elsewhere = 0
for _, id in ipairs(redis.call('SRANDMEMBER', KEYS[1], ARGV[7])) do
  if id ~= ARGV[1] then
    elsewhere = elsewhere + (tonumber(redis.call('HGET', ARGV[2] .. id, ARGV[3])) or 0)
  end
end
if ARGV[6] ~= '0' and elsewhere + tonumber(ARGV[4]) <= tonumber(ARGV[5]) then
  redis.call('HSET', KEYS[2], ARGV[3], ARGV[4])
  redis.call('PEXPIRE', KEYS[2], ARGV[6])
end
return elsewhere
"""
# KEYS: relays. ARGV: prefix of records, MAX_RELAYS, the last byte that is read of each.
RELAYS = """
local found = {}
for _, id in ipairs(redis.call('SRANDMEMBER', KEYS[1], ARGV[2])) do
  local record = redis.call('GETRANGE', ARGV[1] .. id, 0, ARGV[3])
  if record == '' then
    redis.call('SREM', KEYS[1], id)
  else
    found[#found + 1] = id
    found[#found + 1] = record
  end
end
return found
"""


class RedisClient:
    """One relay's questions. ``Store`` gives each its deadline; the library has none of its own for answers."""

    def __init__(self, settings: ClusterSettings, identity: str) -> None:
        """Connects to nothing yet. Raises OperatorError for a file of the settings that cannot be used."""
        address = settings.address
        self._redis = Redis(
            host=address.host,
            port=address.port,
            db=settings.database,
            username=settings.username,
            password=settings.read_password(),
            protocol=2,
            ssl=settings.has_tls,
            ssl_ca_certs=None if settings.ca_file is None else str(settings.ca_file),
            socket_timeout=None,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            max_connections=MAX_QUESTIONS,
            retry=Retry(NoBackoff(), _RETRIES, supported_errors=(LostConnection,)),
        )
        self._claim = self._redis.register_script(CLAIM)
        self._relays = self._redis.register_script(RELAYS)
        secret = b"" if settings.secret is None else settings.secret.get_secret_value().encode()
        self._secret = secret if len(secret) <= _MAX_KEY_BYTES else hashlib.blake2b(secret).digest()
        self._id = identity
        self._prefix = f"{settings.prefix}:{VERSION}:"

    def hashed(self, *parts: str) -> str:
        """See ``Client``; the other methods too."""
        text = "\0".join(parts).encode("utf-8", "surrogatepass")
        return hashlib.blake2b(text, key=self._secret, digest_size=HASH_BYTES).hexdigest()

    def _key(self, *parts: str) -> str:
        return self._prefix + ":".join(parts)

    def _pipeline(self, *, transaction: bool = False) -> Untyped:
        return self._redis.pipeline(transaction=transaction)

    async def renew(self, lease_s: float) -> Renewed:
        """Takes no memory, so a full Redis does it as well."""
        async with _told(), self._pipeline() as pipe:
            for kind in ("relay", "calls"):
                pipe.pexpire(self._key(kind, self._id), _ms(lease_s))
            record, counts = await pipe.execute()
        return Renewed(bool(record), bool(counts))

    async def rewrite(self, record: bytes, counts: Mapping[str, int], lease_s: float) -> None:
        """In one transaction: others must not see a relay without its calls."""
        key = self._key("calls", self._id)
        async with _told(), self._pipeline(transaction=True) as pipe:
            pipe.set(self._key("relay", self._id), record, px=_ms(lease_s))
            pipe.sadd(self._key("relays"), self._id)
            pipe.delete(key)
            if counts:
                pipe.hset(key, mapping=dict(counts))
                pipe.pexpire(key, _ms(lease_s))
            await pipe.execute()

    async def write_counts(self, counts: Mapping[str, int], lease_s: float) -> None:
        """A user without calls has no field."""
        key = self._key("calls", self._id)
        some = {user: count for user, count in counts.items() if count}
        none = [user for user in counts if user not in some]
        async with _told(), self._pipeline() as pipe:
            if none:
                pipe.hdel(key, *none)
            if some:
                pipe.hset(key, mapping=some)
            pipe.pexpire(key, _ms(lease_s))
            await pipe.execute()

    async def claim(self, user: str, count: int, max_calls: int, lease_s: float) -> int:
        """One step, see above."""
        keys = [self._key("relays"), self._key("calls", self._id)]
        arguments: Untyped = [self._id, self._key("calls", ""), user, count, max_calls, _ms(lease_s), MAX_RELAYS]
        async with _told():
            answer: Untyped = await self._claim(keys=keys, args=arguments)
        return int(answer)

    async def relays(self) -> Mapping[str, bytes]:
        """One step, see above. Relays whose record has ended are removed from the list."""
        arguments: Untyped = [self._key("relay", ""), MAX_RELAYS, MAX_RECORD_BYTES - 1]
        async with _told():
            answer: Untyped = await self._relays(keys=[self._key("relays")], args=arguments)
        return {key.decode(errors="replace"): value for key, value in zip(answer[::2], answer[1::2], strict=True)}

    async def leave(self) -> None:
        """In one transaction, so that nobody sees half of it."""
        async with _told(), self._pipeline(transaction=True) as pipe:
            pipe.delete(self._key("relay", self._id), self._key("calls", self._id))
            pipe.srem(self._key("relays"), self._id)
            await pipe.execute()

    async def find_session(self, session: str) -> str | None:
        """No more is read than can be an answer."""
        async with _told():
            answer: Untyped = await self._redis.getrange(self._key("session", session), 0, 2 * HASH_BYTES)
        return answer.decode(errors="replace") or None

    async def keep_session(self, session: str, value: str, for_s: float) -> None:
        """The key ends by itself."""
        async with _told():
            await self._redis.set(self._key("session", session), value, px=_ms(for_s))

    async def say_returned(self, token: str, for_s: float) -> None:
        """The stream is bounded, and ends when nobody says anything."""
        key = self._key("returned")
        async with _told(), self._pipeline() as pipe:
            pipe.xadd(key, {b"token": token}, maxlen=MAX_RETURNED)
            pipe.pexpire(key, _ms(for_s))
            await pipe.execute()

    async def find_returned(self, since: str) -> tuple[list[str], str]:
        """``since`` is the id of the last entry that was read; Redis makes them."""
        async with _told():
            found: Untyped = await self._redis.xrange(self._key("returned"), f"({since}" if since else "-")
        tokens = [fields.get(b"token", b"").decode(errors="replace") for _, fields in found]
        return tokens, found[-1][0].decode() if found else since

    async def probe(self) -> None:
        """Read, write and run a script, as at work."""
        async with _told():
            await self._redis.set(self._key("probe", self._id), b"", px=1)
        await self.claim(self.hashed(""), 0, 0, 0)

    async def close(self) -> None:
        """Close all connections."""
        async with _told():
            await self._redis.aclose()


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


@contextlib.asynccontextmanager
async def _told() -> AsyncIterator[None]:
    """What goes wrong with Redis, as StoreError."""
    try:
        yield
    except (RedisError, OSError) as error:
        cause = str(error).rpartition(_CAUSED)[2][:_MAX_CAUSE_CHARACTERS]
        raise StoreError(_failure_of(error), cause or type(error).__name__) from error


def _failure_of(error: Exception) -> Failure:
    match error:
        case OutOfMemoryError():
            return Failure.FULL
        # What a script is told, in older versions.
        case RedisError() if "-OOM " in str(error):
            return Failure.FULL
        # The first is a kind of lost connection to the library.
        case AuthenticationError() | NoPermissionError():
            return Failure.REFUSED
        # Without a password, what has more than ten arguments is not even read.
        case RedisError() if "unauthenticated" in str(error):
            return Failure.REFUSED
        case LateAnswer() | TimeoutError():
            return Failure.TIMEOUT
        case LostConnection() | OSError():
            return Failure.UNREACHABLE
        case _:
            return Failure.ERROR
