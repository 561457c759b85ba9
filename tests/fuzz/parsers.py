"""What parsers without a compiled twin must do with any bytes: give a value, or raise the error that they document.

Each reads what comes from the network: from clients, balancers, upstreams, and services that the relay asks. Where more
is known of a parser, more is checked: what it says of the beginning of a stream does not change with what follows, and
what it has read can be written again.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import itertools
from collections.abc import Callable, Sequence
from enum import Enum
from types import SimpleNamespace
from typing import Any, TypeVar, cast
from unittest.mock import Mock

from aiohttp import web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpRequestParser, RawRequestMessage
from aiohttp.http_exceptions import HttpProcessingError
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509 import ocsp
from pydantic import SecretStr

from relay.gateway.certificates.ocsp import AnswerError as OcspError
from relay.gateway.certificates.ocsp import Question, read_answer
from relay.gateway.entitlement.policy_http import _Answer as Entitled
from relay.gateway.signaling import engineio
from relay.gateway.signaling.http_rules import BadRequest, check
from relay.gateway.web_proxy.basic_auth import BasicAuth
from relay.gateway.web_proxy.destinations import parse_authority
from relay.gateway.web_proxy.http import MAX_FIELDS, MAX_HEAD_BYTES
from relay.plane.reference.allocation import error_code
from relay.plane.reference.traffic import find_attribute
from relay.plane.reference.turn_flow import _whole_unit
from relay.wire import channeldata, http1, media_v1, rtp, upgrade
from relay.wire.client_hello import parse_client_hello
from relay.wire.proxy_header import V1_PREFIX, V2_SIGNATURE, ProxyHeader, ProxyHeaderError, parse_proxy_header
from relay.wire.stun import (
    HEADER_BYTES,
    MAGIC_COOKIE_BYTES,
    AttributeType,
    Message,
    StunError,
    build_message,
    parse_message,
)
from tests.fuzz import _leaves
from tests.support.certificates_made import NOW, authority, signed
from tests.support.peers.client_hello import build_client_hello
from tests.support.peers.ocsp import answer_about

Found = TypeVar("Found")
WEBSOCKET_KEY = "dGhlIHNhbXBsZSBub25jZQ=="
KEY = b"a key of long-term credentials"


class Outcome(Enum):
    """Instead of a value."""

    REFUSED = "refused"


def _verdict(parse: Callable[[], Found], error: type[Exception]) -> Found | Outcome:
    try:
        return parse()
    except error:
        return Outcome.REFUSED


def _of_stream(
    parse: Callable[[bytes], Found | None], error: type[Exception], data: bytes, cut: int
) -> Found | Outcome | None:
    """What a parser says of bytes. Of their beginning it must say the same, or that it needs more."""
    whole, part = _verdict(lambda: parse(data), error), _verdict(lambda: parse(data[:cut]), error)
    assert part is None or part == whole, (data[:cut], data[cut:])
    return whole


def _led(data: bytes, count: int) -> tuple[list[int], bytes]:
    """So many numbers that lead a scenario, 0 where there are none, and the rest of it."""
    return [*data[:count], *[0] * (count - len(data))], data[count:]


# ---- STUN, ChannelData, RTP


def check_stun(data: bytes) -> None:
    """Bytes: how the message is made, then the message; or its type and attributes, with whatever makes it good."""
    message = _stun_message(data)
    unit = _whole_unit(message)
    assert _leaves.datagram_unit(message) == (0 if unit is None else len(unit)), message
    for kind in (AttributeType.ERROR_CODE, AttributeType.LIFETIME, AttributeType.USERNAME, AttributeType.DATA):
        assert _leaves.find_attribute(message, kind) == find_attribute(message, kind), (message, kind)
    assert _leaves.error_code(message) == error_code(message), message
    for allow_faults in (False, True):
        with contextlib.suppress(StunError):
            _read_message(parse_message(message, allow_faults=allow_faults))


def _stun_message(data: bytes) -> bytes:
    (how,), rest = _led(data, 1)
    if not how & 1:
        return rest
    body = rest[2:65_000] + bytes(-len(rest[2:65_000]) & 3)
    head = (int.from_bytes(rest[:2]) & 0x3FFF).to_bytes(2) + len(body).to_bytes(2)
    made = head + MAGIC_COOKIE_BYTES + bytes(12) + body
    if how & 2:
        with contextlib.suppress(StunError):
            parsed = parse_message(made)
            key = KEY if how & 4 else None
            made = build_message(
                parsed.method, parsed.message_class, bytes(12), parsed.attributes, integrity_key=key, fingerprint=True
            )
            assert parse_message(made).has_integrity(KEY) is (key is not None), made
    return made


def _read_message(message: Message) -> None:
    """Read all that can be asked of it. Raises StunError where that is documented, and nothing else."""
    kinds = {attribute.type for attribute in message.attributes}
    readers: tuple[Callable[[int], object], ...] = (
        message.address,
        message.addresses,
        message.uint32,
        message.family,
        message.text,
    )
    for kind, read in itertools.product(kinds, readers):
        _verdict(functools.partial(read, kind), StunError)
    _verdict(lambda: message.error, StunError)
    assert message.alternate_server is None or message.alternate_server.port
    assert set(message.unknown_required(frozenset())) == {kind for kind in kinds if kind < 0x8000}
    for kind in (AttributeType.MESSAGE_INTEGRITY, AttributeType.MESSAGE_INTEGRITY_SHA256):
        message.has_integrity(KEY, kind)
    again = build_message(message.method, message.message_class, message.transaction_id, message.attributes)
    assert parse_message(again, allow_faults=True).attributes == message.attributes, message.raw
    assert len(message.raw) >= HEADER_BYTES


def check_packet(data: bytes) -> None:
    """Bytes: ChannelData, a packet of RTP, or a session's binary message: whoever can read them can write them."""
    with contextlib.suppress(channeldata.ChannelDataError):
        number, payload = channeldata.parse_channel_data(data)
        assert data.startswith(channeldata.build_channel_data(number, payload)), data
    with contextlib.suppress(rtp.RtpError):
        header = rtp.parse_header(data)
        assert rtp.build_packet(header, data[rtp.HEADER_BYTES :]) == data
    with contextlib.suppress(media_v1.MediaV1Error):
        number, payload = media_v1.parse_media(data)
        assert media_v1.build_media(number, payload) == data


# ---- What comes first: PROXY, ClientHello


def check_proxy_header(data: bytes) -> None:
    """Bytes: how it begins, where it is cut, and the rest."""
    (how, cut), rest = _led(data, 2)
    family, values = (rest[:1] or b"\0"), rest[1:65_000]
    beginnings = (b"", V1_PREFIX, V2_SIGNATURE, V2_SIGNATURE + bytes([0x20 | how >> 7]) + family)
    stream = beginnings[how & 3] + (len(values).to_bytes(2) + values if how & 3 == 3 else rest)
    found = _of_stream(parse_proxy_header, ProxyHeaderError, stream, cut)
    if isinstance(found, ProxyHeader):
        assert parse_proxy_header(stream[: found.size]) == found
        assert parse_proxy_header(stream[: found.size - 1]) is None
        assert found.client is None or ipaddress.ip_address(found.client.host)


def check_client_hello(data: bytes) -> None:
    """Bytes: how it is made, then a whole ClientHello, or its extensions."""
    (how,), rest = _led(data, 1)
    message = build_client_hello(rest[:65_000]) if how & 1 else rest
    found = parse_client_hello(message)
    assert found is None or all(name in message for name in (found.server_name, *(found.protocols or ())))


# ---- HTTP


def check_http_answer(data: bytes) -> None:
    """Bytes: how the answer of an upstream begins, where head and body are cut, and the rest."""
    (how, cut), rest = _led(data, 2)
    beginnings = (
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 206 P\r\nContent-Length: 5\r\n\r\n",
    )
    stream = beginnings[how & 3] + rest
    found = _of_stream(http1.parse_answer_head, http1.AnswerError, stream, cut)
    if found is None or isinstance(found, Outcome):
        return
    head, size = found
    again = http1.build_head(b"HTTP/1.%d %d %b" % (head.minor, head.status, head.reason), head.fields)
    assert _plain(http1.parse_answer_head(again)) == _plain((head, len(again))), stream
    method, body = ("HEAD" if how & 4 else "GET"), stream[size:]
    in_two = _payload(head, method, (body[:cut], body[cut:]))
    assert in_two == _payload(head, method, (body,)), (body[:cut], body[cut:])


def _plain(found: tuple[http1.AnswerHead, int] | None) -> object:
    """To compare: a value that was folded may begin with spaces."""
    return found and (*found[0][:3], [(name, value.strip(b" \t")) for name, value in found[0].fields], found[1])


def _payload(head: http1.AnswerHead, method: str, parts: Sequence[bytes]) -> object:
    """What a body that comes in these parts is, whether it ends, and what follows it."""
    try:
        body, payload, behind = http1.body_of(head, method), b"", b""
        for part in parts:
            if body.done:
                behind += part
            else:
                payload += body.feed(part)
        return payload, body.done, body.rest + behind, list(body.trailers)
    except http1.AnswerError:
        return Outcome.REFUSED


def check_upgrade_answer(data: bytes) -> None:
    """Bytes: how the answer to an upgrade begins, where it is cut, and the rest."""
    (how, cut), rest = _led(data, 2)
    beginning = b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" if how & 1 else b""
    found = _of_stream(upgrade.parse_response, upgrade.UpgradeError, beginning + rest, cut)
    if isinstance(found, upgrade.Response):
        assert found.reason.isprintable()
        with contextlib.suppress(upgrade.UpgradeError):
            upgrade.check_upgrade(found, "connect-udp")
        with contextlib.suppress(upgrade.UpgradeError):
            upgrade.check_websocket(found, WEBSOCKET_KEY, "turn")
            assert found.status == 101


# The parser makes bodies, which could wait for a loop. Nothing waits here.
LOOP: Any = Mock(spec=asyncio.AbstractEventLoop)
USERS = BasicAuth({"trader": SecretStr("secret")})
HEAD_BOUNDS = {"max_header_bytes": 4096, "max_body_bytes": 4096}


def check_request(data: bytes) -> None:
    """Bytes: how a client's request begins, and the rest: what the web proxy and the signaling proxy make of it."""
    (how,), rest = _led(data, 1)
    beginnings = (
        b"",
        b"GET /socket.io/?EIO=4&transport=polling HTTP/1.1\r\nHost: relay.test\r\n",
        b"CONNECT ",
        b"POST /",
    )
    for message in _requests(beginnings[how & 3] + rest):
        _verdict(functools.partial(parse_authority, message.path), ValueError)
        credentials = message.headers.get("Proxy-Authorization")
        assert USERS.name_of(credentials) or not USERS.permits(credentials)
        found = _verdict(functools.partial(check, _request(message), **HEAD_BOUNDS), BadRequest)
        if not isinstance(found, Outcome):
            assert found.target.startswith(b"/"), message
            assert not any(one in found.target for one in (b"\r", b"\n", b"\0", b" ")), message
            engineio.parse_query(found.query)


def _request(message: RawRequestMessage) -> web.BaseRequest:
    """What the rules of signaling ask of a request."""
    given = SimpleNamespace(
        raw_headers=message.raw_headers, method=message.method, version=message.version, raw_path=message.path
    )
    return cast("web.BaseRequest", given)


def _requests(stream: bytes) -> list[RawRequestMessage]:
    """The heads in a stream, as the web proxy's parser reads them."""
    parser = HttpRequestParser(
        BaseProtocol(LOOP),
        LOOP,
        2**16,
        max_line_size=MAX_HEAD_BYTES,
        max_field_size=MAX_HEAD_BYTES,
        max_headers=MAX_FIELDS,
    )
    try:
        messages, _, _ = parser.feed_data(stream)
    except (HttpProcessingError, ValueError):
        return []
    return [message for message, _ in messages]


def check_engineio(data: bytes) -> None:
    """Bytes: where it is cut, then what a server of socket.io says after its 101, or to a poll, or a client's query."""
    (cut,), stream = _led(data, 1)
    whole, part = engineio.sid_of_websocket(stream), engineio.sid_of_websocket(stream[:cut])
    assert part is None or part == whole, (stream[:cut], stream[cut:])
    assert len(engineio.sid_of_polling(stream)) <= engineio.MAX_SID_CHARACTERS
    engineio.is_answer(stream)
    query = stream.decode("latin-1")
    asked = engineio.parse_query(query)
    assert len(asked.sid) <= engineio.MAX_SID_CHARACTERS
    if asked.version and asked.transport == "websocket":
        assert engineio.asks_for_websocket(query), query


# ---- Sessions, and services that are asked


def check_media_v1(data: bytes) -> None:
    """Bytes: a control message, of either end."""
    text = data.decode(errors="replace")
    parsers: tuple[Callable[[str], media_v1.ClientMessage | media_v1.RelayMessage], ...] = (
        media_v1.parse_client_message,
        media_v1.parse_relay_message,
    )
    for parse in parsers:
        with contextlib.suppress(media_v1.MediaV1Error):
            message = parse(text)
            assert parse(media_v1.build_control(message)) == message, text


def check_entitlement(data: bytes) -> None:
    """Bytes: what a service says of a user."""
    with contextlib.suppress(ValueError):
        found = Entitled.model_validate_json(data)
        assert found.calls is None or found.calls >= 1


@functools.cache
def _ocsp() -> tuple[Question, bytes]:
    """A question, and a good answer to it."""
    issuer = authority()
    leaf, _ = signed(issuer, "relay.test")
    builder = ocsp.OCSPRequestBuilder().add_certificate(leaf, issuer.certificate, hashes.SHA1())
    request = builder.build().public_bytes(serialization.Encoding.DER)
    return Question("http://ca.test/", request, leaf, issuer.certificate), answer_about(leaf, issuer, with_signer=True)


def check_ocsp(data: bytes) -> None:
    """Bytes: an answer in DER; or, after a first odd one, where a good answer is changed (two bytes), and to what."""
    question, good = _ocsp()
    (how,), answer = _led(data, 1)
    if how & 1:
        changed = bytearray(good)
        for at in range(0, len(answer) - 2, 3):
            changed[int.from_bytes(answer[at : at + 2]) % len(changed)] = answer[at + 2]
        answer = bytes(changed)
    with contextlib.suppress(OcspError):
        found = read_answer(question, answer, NOW)
        assert NOW < found.renew_at < found.until


PARSERS: dict[str, Callable[[bytes], None]] = {
    "stun": check_stun,
    "packet": check_packet,
    "proxy_header": check_proxy_header,
    "client_hello": check_client_hello,
    "http_answer": check_http_answer,
    "upgrade_answer": check_upgrade_answer,
    "request": check_request,
    "engineio": check_engineio,
    "media_v1": check_media_v1,
    "entitlement": check_entitlement,
    "ocsp": check_ocsp,
}
