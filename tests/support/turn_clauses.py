"""What a STUN and TURN server must do, clause by clause: what is sent, and what comes of it.

Each clause is tried on the emulator's server, over UDP and through a relay, and on coturn. An outcome is an error code,
0 for a success, None for silence, or words. Where ours and coturn differ, the clause says why.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum

from relay.addresses import Address
from relay.turn.credentials import long_term_key
from relay.wire.channeldata import build_channel_data
from relay.wire.stun import (
    HEADER_BYTES,
    AttributeType,
    MessageClass,
    Method,
    build_message,
    build_uint32,
    parse_message,
)
from tests.support.peers.coturn import PASSWORD, REALM, USERNAME
from tests.support.peers.turn_asker import CLOSED, MALFORMED, UDP, Asker, Attributes, Outcome

IPV4: Attributes = (AttributeType.REQUESTED_ADDRESS_FAMILY, b"\x01\0\0\0")
IPV6: Attributes = (AttributeType.REQUESTED_ADDRESS_FAMILY, b"\x02\0\0\0")
BOTH: Attributes = (AttributeType.ADDITIONAL_ADDRESS_FAMILY, b"\x02\0\0\0")
EVEN: Attributes = (AttributeType.EVEN_PORT, b"\0")
EVEN_WITH_NEXT: Attributes = (AttributeType.EVEN_PORT, b"\x80")
TOKEN: Attributes = (AttributeType.RESERVATION_TOKEN, bytes(8))
TCP: Attributes = (AttributeType.REQUESTED_TRANSPORT, b"\x06\0\0\0")
# RFC 8656 section 18.9.
DONT_FRAGMENT: Attributes = (0x001A, b"")
CHANNEL: Attributes = (AttributeType.CHANNEL_NUMBER, b"\x40\0\0\0")
PEER = Address("127.0.0.1", 4000)
NO_PORT = Address("127.0.0.1", 0)
PEER6 = Address("2a00::1", 1)
MULTICAST = Address("224.0.0.1", 1)
# A user whom the servers let have this many allocations, and no more.
OF_A_QUOTA = "quota"
QUOTA = 60
VOICE = b"a datagram of voice"
COUNTS_PADDING = "no: ERROR-CODE counts its padding"


class Where(Enum):
    """How a clause differs over a stream."""

    SAME = "same"
    UDP_ONLY = "UDP only"


Step = Callable[[Asker], Awaitable[Outcome]]


@dataclass(frozen=True)
class Clause:
    """What is sent, what must come of it, and what coturn makes of it, with the reason if that differs.

    ``stream`` is what must come of it through TLS, where that is something else.
    """

    what: str
    step: Step
    ours: Outcome
    coturn: Outcome | Where = Where.SAME
    why: str = ""
    stream: Outcome | Where = Where.SAME

    @property
    def of_coturn(self) -> Outcome | Where:
        """What coturn makes of it over UDP."""
        return self.ours if self.coturn is Where.SAME else self.coturn

    @property
    def on_stream(self) -> Outcome | Where:
        """What must come of it through TLS; UDP_ONLY if it cannot be asked there."""
        return self.ours if self.stream is Where.SAME else self.stream


@dataclass(frozen=True)
class Section:
    """Clauses of one topic."""

    name: str
    clauses: tuple[Clause, ...]


def bare(method: int, *attributes: Attributes) -> Step:
    return lambda client: client.bare(method, *attributes)


def ask(method: int, *attributes: Attributes, **how: str | bytes) -> Step:
    return lambda client: client.ask(method, *attributes, **how)


def on_allocation(method: int, *attributes: Attributes, **how: str | bytes) -> Step:
    async def step(client: Asker) -> Outcome:
        await client.allocate()
        return await client.ask(method, *attributes, **how)

    return step


def about(method: int, *attributes: Attributes, peers: tuple[Address, ...] = (PEER,)) -> Step:
    async def step(client: Asker) -> Outcome:
        await client.allocate()
        return await client.about(method, *attributes, peers=peers)

    return step


def said(holds: bool, otherwise: str = "no") -> Outcome:
    """A clause that is not about a code."""
    return "yes" if holds else otherwise


# ---- Messages


def raw(message: bytes) -> Step:
    return lambda client: client.send(message)


def binding(*attributes: Attributes, fingerprint: bool = False) -> bytes:
    return build_message(Method.BINDING, MessageClass.REQUEST, os.urandom(12), attributes, fingerprint=fingerprint)


def _changed(message: bytes, at: int, value: bytes) -> bytes:
    return message[:at] + value + message[at + len(value) :]


def _with_behind(message: bytes, attribute: bytes) -> bytes:
    """The message with an attribute behind its integrity, which does not cover it."""
    return _changed(message, 2, (len(message) - HEADER_BYTES + len(attribute)).to_bytes(2)) + attribute


async def _behind_integrity(client: Asker) -> Outcome:
    await client.challenge()
    return await client.send(_with_behind(client.signed(Method.ALLOCATE, UDP), b"\x7f\xfe\0\0"))


async def _first_of_two(client: Asker) -> Outcome:
    return await client.ask(Method.ALLOCATE, UDP, TCP)


async def _padding_is_zero(client: Asker) -> Outcome:
    """Of all attributes of a 401 and of a 420, and the length of ERROR-CODE is that of the reason."""
    for unknown in ((), ((0x7FFE, b""),)):
        await (client.ask(Method.ALLOCATE, UDP, *unknown) if unknown else client.bare(Method.ALLOCATE, UDP))
        assert client.answer is not None
        message, offset = client.answer.raw, HEADER_BYTES
        while offset < len(message):
            size = int.from_bytes(message[offset + 2 : offset + 4])
            end = offset + 4 + size
            if any(message[end : end + (-size & 3)]):
                return "no: padding is not zero"
            if message[offset : offset + 2] == b"\0\x09" and message[offset + 4 : end].endswith(b"\0"):
                return COUNTS_PADDING
            offset = end + (-size & 3)
    return "yes"


# ---- Credentials


async def _challenge_has(client: Asker) -> Outcome:
    await client.challenge()
    assert client.answer is not None
    return said(all(client.answer.get(kind) for kind in (AttributeType.REALM, AttributeType.NONCE)))


async def _refused_alike(client: Asker) -> Outcome:
    """But for transaction id and nonce."""
    shapes = []
    for who in ({"password": "wrong"}, {"user": "nobody"}):
        await client.ask(Method.ALLOCATE, UDP, **who)
        assert client.answer is not None
        kept = [one for one in client.answer.attributes if one.type != AttributeType.NONCE]
        shapes.append((client.answer.error, len(client.answer.raw), kept))
    return said(shapes[0] == shapes[1])


async def _stale_nonce_is_replaced(client: Asker) -> Outcome:
    if (code := await client.ask(Method.ALLOCATE, UDP, nonce=b"f" * 16)) != 438:
        return code
    assert client.answer is not None
    client.nonce = client.answer.get(AttributeType.NONCE) or b""
    return said(await client.ask(Method.ALLOCATE, UDP) == 0)


def answered_with_integrity(method: int, *attributes: Attributes) -> Step:
    async def step(client: Asker) -> Outcome:
        await client.allocate()
        await client.ask(method, *attributes)
        assert client.answer is not None
        return said(client.answer.has_integrity(client.key))

    return step


async def _without_a_nonce_twice(client: Asker) -> Outcome:
    """A server that kept something for a client without credentials would know the second request."""
    transaction_id = os.urandom(12)
    if (code := await client.bare(Method.ALLOCATE, UDP, transaction_id=transaction_id)) != 401:
        return code
    await client.challenge()
    return await client.send(client.signed(Method.ALLOCATE, UDP, transaction_id=transaction_id))


async def _integrity_without(client: Asker, missing: int) -> Outcome:
    await client.challenge()
    whole = parse_message(client.signed(Method.ALLOCATE, UDP))
    kept = [attribute for attribute in whole.attributes if attribute.type != missing]
    key = long_term_key(USERNAME, REALM, PASSWORD)
    return await client.send(build_message(3, MessageClass.REQUEST, os.urandom(12), kept, integrity_key=key))


def integrity_without(missing: int) -> Step:
    return lambda client: _integrity_without(client, missing)


# ---- Allocations


async def _copy_of_allocate(client: Asker) -> Outcome:
    await client.challenge()
    request = client.signed(Method.ALLOCATE, UDP)
    assert await client.send(request) == 0
    return await client.send(request)


async def _same_answer_again(client: Asker) -> Outcome:
    await client.challenge()
    request = client.signed(Method.ALLOCATE, UDP)
    answers = []
    for _ in range(2):
        if (code := await client.send(request)) != 0:
            return code
        assert client.answer is not None
        answers.append(client.answer.address(AttributeType.XOR_RELAYED_ADDRESS))
    return said(answers[0] == answers[1])


async def _same_id_other_method(client: Asker) -> Outcome:
    await client.challenge()
    transaction_id = os.urandom(12)
    assert await client.send(client.signed(Method.ALLOCATE, UDP, transaction_id=transaction_id)) == 0
    code = await client.send(client.signed(Method.REFRESH, transaction_id=transaction_id))
    assert client.answer is not None
    return code if client.answer.method == Method.REFRESH else -1


def granted_lifetime(asked_s: int) -> Step:
    async def step(client: Asker) -> Outcome:
        await client.allocate((AttributeType.LIFETIME, build_uint32(asked_s)))
        assert client.answer is not None
        return f"{client.answer.uint32(AttributeType.LIFETIME)} s"

    return step


async def _ports(client: Asker) -> Outcome:
    ports = {(await client.allocate()).port}
    for _ in range(3):
        async with client.another() as other:
            ports.add((await other.allocate()).port)
    in_range = all(49152 <= port <= 65535 for port in ports)
    in_a_row = max(ports) - min(ports) < 8
    return said(in_range and not in_a_row, f"no: {sorted(ports)}")


async def _even_port(client: Asker) -> Outcome:
    return said((await client.allocate(EVEN)).port % 2 == 0)


async def _reserved_port(client: Asker) -> Outcome:
    first = await client.allocate(EVEN_WITH_NEXT)
    assert client.answer is not None
    token = client.answer.get(AttributeType.RESERVATION_TOKEN)
    if token is None:
        return "no token"
    async with client.another() as other:
        second = await other.allocate((AttributeType.RESERVATION_TOKEN, token))
        return said((second.port, first.port % 2) == (first.port + 1, 0))


async def _beyond_the_quota(client: Asker) -> Outcome:
    """Of a user who has as many as the servers let."""
    others = [client.another() for _ in range(QUOTA)]
    try:
        for other in others:
            opened = await other.__aenter__()
            assert await opened.ask(Method.ALLOCATE, UDP, user=OF_A_QUOTA) == 0
        return await client.ask(Method.ALLOCATE, UDP, user=OF_A_QUOTA)
    finally:
        for other in others:
            await other.__aexit__(None, None, None)


async def _after_release(client: Asker) -> Outcome:
    await client.allocate()
    assert await client.ask(Method.REFRESH, (AttributeType.LIFETIME, build_uint32(0))) == 0
    return await client.ask(Method.REFRESH)


# ---- Permissions, channels, data


async def _all_or_nothing(client: Asker) -> Outcome:
    """A good peer beside one that is refused has no permission."""
    await client.allocate()
    if (code := await client.about(Method.CREATE_PERMISSION, peers=(client.peer, PEER6))) == 0:
        return code
    await client.send_to_peer(VOICE)
    return said(not await client.hears(VOICE))


async def _port_is_ignored(client: Asker) -> Outcome:
    await client.allocate()
    assert await client.about(Method.CREATE_PERMISSION, peers=(Address(client.peer.host, 9),)) == 0
    await client.send_to_peer(VOICE)
    return said(await client.hears(VOICE))


async def _without_permission(client: Asker) -> Outcome:
    await client.allocate()
    await client.send_to_peer(VOICE)
    await client.say(build_channel_data(0x4000, VOICE))
    return said(not await client.hears(VOICE) and await client.ask(Method.REFRESH) == 0)


async def _by_channel(client: Asker) -> Outcome:
    await client.allocate()
    assert await client.about(Method.CHANNEL_BIND, CHANNEL, peers=(client.peer,)) == 0
    await client.say(build_channel_data(0x4000, VOICE))
    return said(await client.hears(VOICE))


async def _second_channel_of_a_peer(client: Asker) -> Outcome:
    await client.allocate()
    assert await client.about(Method.CHANNEL_BIND, CHANNEL, peers=(PEER,)) == 0
    other = (AttributeType.CHANNEL_NUMBER, b"\x40\x01\0\0")
    return await client.about(Method.CHANNEL_BIND, other, peers=(PEER,))


async def _second_peer_of_a_channel(client: Asker) -> Outcome:
    await client.allocate()
    assert await client.about(Method.CHANNEL_BIND, CHANNEL, peers=(PEER,)) == 0
    return await client.about(Method.CHANNEL_BIND, CHANNEL, peers=(Address(PEER.host, PEER.port + 1),))


def channel(number: int) -> Attributes:
    return AttributeType.CHANNEL_NUMBER, number.to_bytes(2) + bytes(2)


def lifetime_of(size: int) -> Attributes:
    return AttributeType.LIFETIME, bytes(size)


MESSAGES = (
    Clause("Binding", bare(Method.BINDING), 0),
    Clause("Binding with an unknown required attribute", bare(Method.BINDING, (0x7FFE, b"")), 420),
    Clause("Binding with an unknown optional attribute", bare(Method.BINDING, (0xFFFE, b"")), 0),
    Clause(
        "an unknown method",
        bare(0x00A),
        None,
        401,
        "coturn asks for credentials before it looks at the method; a method that nobody has is malformed",
    ),
    Clause("the top bits 10", raw(_changed(binding(), 0, b"\x80")), None, stream=CLOSED),
    Clause(
        "another cookie",
        raw(_changed(binding(), 4, b"\x21\x12\xa4\x43")),
        None,
        MALFORMED,
        "coturn answers as the older RFC 3489 has it, which knows no cookie",
        stream=CLOSED,
    ),
    Clause(
        "a length that is no multiple of 4",
        raw(_changed(binding((0xFFFE, b"")), 2, b"\0\3")),
        None,
        stream=CLOSED,
    ),
    Clause("a length that is too short", raw(binding((0xFFFE, b""))[:-4]), None, stream=Where.UDP_ONLY),
    Clause("bytes behind the message", raw(binding() + bytes(4)), None, stream=Where.UDP_ONLY),
    Clause("FINGERPRINT", raw(binding(fingerprint=True)), 0),
    Clause("a wrong FINGERPRINT", raw(binding(fingerprint=True)[:-4] + bytes(4)), None),
    Clause("FINGERPRINT that is not the last", raw(_with_behind(binding(fingerprint=True), b"\xff\xfe\0\0")), None),
    Clause(
        "an unknown required attribute behind the integrity",
        _behind_integrity,
        0,
        420,
        "RFC 8489 section 14.5: what is behind the integrity is ignored",
    ),
    Clause(
        "an attribute twice: the first counts",
        _first_of_two,
        0,
        400,
        "coturn refuses a second REQUESTED-TRANSPORT; section 14 lets the first count",
    ),
    Clause(
        "zero padding, and ERROR-CODE without it",
        _padding_is_zero,
        "yes",
        COUNTS_PADDING,
        "section 14: the length of a value is that without padding",
    ),
)
CREDENTIALS = (
    Clause("Allocate without credentials", bare(Method.ALLOCATE, UDP), 401),
    Clause("Refresh without credentials", bare(Method.REFRESH), 401),
    Clause("REALM and NONCE in a 401", _challenge_has, "yes"),
    Clause("nothing is kept for a client without credentials", _without_a_nonce_twice, 0),
    Clause("a wrong password", ask(Method.ALLOCATE, UDP, password="wrong"), 401),
    Clause("an unknown user", ask(Method.ALLOCATE, UDP, user="nobody"), 401),
    Clause(
        "both are refused with the same bytes",
        _refused_alike,
        "yes",
        "no",
        "coturn's answers tell whether there is such a user",
    ),
    Clause("a foreign nonce", ask(Method.ALLOCATE, UDP, nonce=b"f" * 16), 438),
    Clause("a good nonce in the 438", _stale_nonce_is_replaced, "yes"),
    Clause("integrity without USERNAME", integrity_without(AttributeType.USERNAME), 400),
    Clause("integrity without REALM", integrity_without(AttributeType.REALM), 400),
    Clause("integrity without NONCE", integrity_without(AttributeType.NONCE), 400),
    Clause("an unknown required attribute, with credentials", ask(Method.ALLOCATE, UDP, (0x7FFE, b"")), 420),
    Clause("an unknown required attribute, without", bare(Method.ALLOCATE, UDP, (0x7FFE, b"")), 401),
    Clause("USERHASH", ask(Method.ALLOCATE, UDP, (AttributeType.USERHASH, bytes(32))), 420),
    Clause("USE-CANDIDATE in a Refresh", on_allocation(Method.REFRESH, (AttributeType.USE_CANDIDATE, b"")), 420),
    Clause(
        "PASSWORD-ALGORITHM alone",
        ask(Method.ALLOCATE, UDP, (AttributeType.PASSWORD_ALGORITHM, b"\0\1\0\0")),
        400,
        420,
        "coturn knows none of RFC 8489's algorithms; we know them, and that none were offered",
    ),
    Clause("integrity in a success", answered_with_integrity(Method.REFRESH), "yes"),
    Clause(
        "integrity in an error",
        answered_with_integrity(Method.ALLOCATE, UDP),
        "yes",
        "no",
        "coturn signs its successes only; section 9.2.4 asks for all answers to authentic requests",
    ),
)
# RFC 8656 section 7.2.
ALLOCATE = (
    Clause("Allocate", ask(Method.ALLOCATE, UDP), 0),
    Clause("a copy of an Allocate", _copy_of_allocate, 0),
    Clause("the same answer to the copy", _same_answer_again, "yes"),
    Clause("the id of an Allocate in a Refresh", _same_id_other_method, 0),
    Clause("a second Allocate", on_allocation(Method.ALLOCATE, UDP), 437),
    Clause("no REQUESTED-TRANSPORT", ask(Method.ALLOCATE), 400),
    Clause(
        "REQUESTED-TRANSPORT of TCP",
        ask(Method.ALLOCATE, TCP),
        442,
        400,
        "coturn relays TCP, but only for clients that come over TCP",
    ),
    Clause(
        "REQUESTED-TRANSPORT of 99",
        ask(Method.ALLOCATE, (AttributeType.REQUESTED_TRANSPORT, b"\x63\0\0\0")),
        442,
        400,
        "RFC 8656 section 7.2 asks for 442",
    ),
    Clause("REQUESTED-TRANSPORT of one byte", ask(Method.ALLOCATE, (AttributeType.REQUESTED_TRANSPORT, b"\x11")), 400),
    Clause("DONT-FRAGMENT, which is not served", ask(Method.ALLOCATE, UDP, DONT_FRAGMENT), 420, 0, "coturn serves it"),
    Clause("LIFETIME of three bytes", ask(Method.ALLOCATE, UDP, lifetime_of(3)), 400),
    Clause("LIFETIME of five bytes", ask(Method.ALLOCATE, UDP, lifetime_of(5)), 400),
    Clause("LIFETIME of 10 s", granted_lifetime(10), "600 s"),
    Clause("LIFETIME of a day", granted_lifetime(86_400), "3600 s"),
    Clause("ports of 49152 to 65535, at random", _ports, "yes"),
    Clause("EVEN-PORT", _even_port, "yes"),
    Clause(
        "EVEN-PORT of four bytes",
        ask(Method.ALLOCATE, UDP, (AttributeType.EVEN_PORT, bytes(4))),
        400,
        0,
        "coturn reads the first byte only",
    ),
    Clause("EVEN-PORT with a reservation, and its port for another client", _reserved_port, "yes"),
    Clause(
        "an unknown token",
        ask(Method.ALLOCATE, UDP, TOKEN),
        508,
        0,
        "coturn lets the token be; section 7.2 asks for 508",
    ),
    Clause("a token of seven bytes", ask(Method.ALLOCATE, UDP, (AttributeType.RESERVATION_TOKEN, bytes(7))), 400),
    Clause(
        "a token with EVEN-PORT",
        ask(Method.ALLOCATE, UDP, TOKEN, EVEN),
        400,
        0,
        "coturn lets the token be; section 7.2 asks for 400",
    ),
    Clause(
        "a token with a family",
        ask(Method.ALLOCATE, UDP, TOKEN, IPV4),
        400,
        0,
        "coturn lets the token be; section 7.2 asks for 400",
    ),
    Clause("the family IPv4", ask(Method.ALLOCATE, UDP, IPV4), 0),
    Clause("the family IPv6, which is not relayed", ask(Method.ALLOCATE, UDP, IPV6), 440),
    Clause("a family of 3", ask(Method.ALLOCATE, UDP, (AttributeType.REQUESTED_ADDRESS_FAMILY, b"\x03\0\0\0")), 440),
    Clause("an additional family, which is not relayed", ask(Method.ALLOCATE, UDP, BOTH), 0),
    Clause(
        "an additional family with a family",
        ask(Method.ALLOCATE, UDP, BOTH, IPV4),
        400,
        0,
        "coturn lets one of them be; section 7.2 asks for 400",
    ),
    Clause(
        "an additional family with a reservation",
        ask(Method.ALLOCATE, UDP, BOTH, EVEN_WITH_NEXT),
        400,
        0,
        "coturn lets one of them be; section 7.2 asks for 400",
    ),
    Clause(
        "the additional family IPv4",
        ask(Method.ALLOCATE, UDP, (AttributeType.ADDITIONAL_ADDRESS_FAMILY, b"\x01\0\0\0")),
        400,
        0,
        "coturn lets it be; section 7.2 asks for 400",
    ),
    Clause("one more than the quota of a user", _beyond_the_quota, 486, stream=Where.UDP_ONLY),
)
# Section 8.2.
REFRESH = (
    Clause("Refresh", on_allocation(Method.REFRESH), 0),
    Clause("Refresh without an allocation", ask(Method.REFRESH), 437),
    Clause(
        "Refresh after a release",
        _after_release,
        437,
        0,
        "coturn remembers the 5-tuple for a while; section 8.2 asks for 437",
    ),
    Clause("Refresh of another family", on_allocation(Method.REFRESH, IPV6), 443),
    Clause("Refresh with LIFETIME of three bytes", on_allocation(Method.REFRESH, lifetime_of(3)), 400),
    Clause("Refresh by another user", on_allocation(Method.REFRESH, user="other"), 441),
)
# Section 10.2.
PERMISSIONS = (
    Clause("CreatePermission", about(Method.CREATE_PERMISSION), 0),
    Clause("CreatePermission for port 0", about(Method.CREATE_PERMISSION, peers=(NO_PORT,)), 0),
    Clause("a permission for another port of the peer", _port_is_ignored, "yes"),
    Clause("CreatePermission without a peer", about(Method.CREATE_PERMISSION, peers=()), 400),
    Clause("CreatePermission for IPv6", about(Method.CREATE_PERMISSION, peers=(PEER6,)), 443),
    Clause("no permission for a good peer beside a refused one", _all_or_nothing, "yes"),
    Clause(
        "CreatePermission for a multicast address",
        about(Method.CREATE_PERMISSION, peers=(MULTICAST,)),
        403,
        0,
        "coturn refuses it only with no-multicast-peers",
    ),
    Clause("silence for data without a permission", _without_permission, "yes"),
)
# Section 12.2.
CHANNELS = (
    Clause("ChannelBind", about(Method.CHANNEL_BIND, CHANNEL), 0),
    Clause("data by a channel", _by_channel, "yes"),
    Clause("ChannelBind without a number", about(Method.CHANNEL_BIND), 400),
    Clause("ChannelBind without a peer", about(Method.CHANNEL_BIND, CHANNEL, peers=()), 400),
    Clause("ChannelBind of 0x3FFF", about(Method.CHANNEL_BIND, channel(0x3FFF)), 400),
    Clause("ChannelBind of 0x4FFF", about(Method.CHANNEL_BIND, channel(0x4FFF)), 0),
    Clause(
        "ChannelBind of 0x5000",
        about(Method.CHANNEL_BIND, channel(0x5000)),
        400,
        0,
        "coturn takes the numbers of RFC 5766, up to 0x7FFF",
    ),
    Clause(
        "ChannelBind of two bytes",
        about(Method.CHANNEL_BIND, (AttributeType.CHANNEL_NUMBER, b"\x40\0")),
        400,
        0,
        "coturn reads the first two bytes only",
    ),
    Clause("ChannelBind to port 0", about(Method.CHANNEL_BIND, CHANNEL, peers=(NO_PORT,)), 400),
    Clause("a second channel of a peer", _second_channel_of_a_peer, 400),
    Clause("a second peer of a channel", _second_peer_of_a_channel, 400),
    Clause("ChannelBind to IPv6", about(Method.CHANNEL_BIND, CHANNEL, peers=(PEER6,)), 443),
)
SECTIONS = (
    Section("Messages", MESSAGES),
    Section("Credentials", CREDENTIALS),
    Section("Allocate", ALLOCATE),
    Section("Refresh", REFRESH),
    Section("Permissions", PERMISSIONS),
    Section("Channels and data", CHANNELS),
)
