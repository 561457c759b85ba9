"""Media descriptions of Python softphones: SDP (RFC 8866) with one audio stream, an SDES key and one relayed candidate.

The key is in ``a=crypto`` (RFC 4568), the relayed address in ``a=candidate`` (RFC 8839), the SSRC in ``a=ssrc``
(RFC 5576). The SFU describes a hoot: with its own address, and the group key. A browser describes itself differently:
WebRTC takes no key from signaling. Its description is refused, and the error says why.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from dataclasses import dataclass, field

from relay.addresses import Address, canonical
from relay.emulator.sfu import GroupKey
from relay.errors import PeerError

# AES-128 key and salt (RFC 3711 section 8.2).
MASTER_KEY_BYTES = 30
SUITE = "AES_CM_128_HMAC_SHA1_80"
PROFILE = "RTP/SAVP"
PCMU = 0
# Ours have 400 bytes. A browser's have up to 6 KB; beyond that nobody means a softphone.
MAX_BYTES = 16 * 1024
MAX_LINES = 400
# RFC 8445 section 5.1.2.1: type preference 0 for relayed, local preference 65535, component 1.
_RELAYED_PRIORITY = (65535 << 8) + 255
_LINE = re.compile(r"([a-z])=(\S.*)")
_CNAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
# In this order and number (RFC 8866 section 9). Other lines of the session are allowed in between, and ignored.
_REQUIRED = "vost"


class SdpError(PeerError):
    """A description that a softphone cannot use. The message says what was expected."""


class BrowserSdpError(SdpError):
    """The other side is a browser: it agrees on keys with DTLS, which this softphone does not speak."""

    def __init__(self, profile: str) -> None:
        super().__init__(f"the other side offers {profile}, as a browser does; expected {PROFILE} with a=crypto")


@dataclass(frozen=True)
class Description:
    """What one side tells the other: where it hears, with which key it protects what it says, and its SSRC.

    ``version`` grows by one with each new description of the same side in the same call.
    """

    relayed: Address
    ssrc: int
    master_key: bytes = field(repr=False)
    cname: str
    session_id: int
    version: int = 1


def build(description: Description) -> str:
    """Write a description. Raises ValueError for what cannot be one."""
    address = canonical(description.relayed)
    if not _CNAME.fullmatch(description.cname):
        raise ValueError(f"cname {description.cname[:64]!r}: expected letters, digits and ._@-")
    if len(description.master_key) != MASTER_KEY_BYTES:
        raise ValueError(f"a key of {len(description.master_key)} bytes; expected {MASTER_KEY_BYTES}")
    where = f"IN {'IP6' if address.is_ipv6 else 'IP4'} {address.host}"
    key = base64.b64encode(description.master_key).decode()
    lines = (
        "v=0",
        f"o=- {description.session_id} {description.version} {where}",
        "s=-",
        f"c={where}",
        "t=0 0",
        f"m=audio {address.port} {PROFILE} {PCMU}",
        f"a=rtpmap:{PCMU} PCMU/8000",
        "a=ptime:20",
        f"a=crypto:1 {SUITE} inline:{key}",
        f"a=ssrc:{description.ssrc} cname:{description.cname}",
        f"a=candidate:1 1 udp {_RELAYED_PRIORITY} {address.host} {address.port} typ relay raddr 0.0.0.0 rport 9",
        "",
    )
    return "\r\n".join(lines)


def parse(text: str) -> Description:
    """Read a description. Raises SdpError."""
    session, media = _sections(text)
    session_id, version = _origin(session["o"])
    attributes = _attributes(media)
    port = _media_line(media[0][1])
    candidate = _candidate(_only(attributes, "candidate"), "relay")
    if candidate.port != port:
        raise SdpError(f"m=audio has port {port}, and a=candidate {candidate.port}; expected the same")
    ssrc, cname = _ssrc(_only(attributes, "ssrc"))
    master_key = _crypto(_only(attributes, "crypto"))
    return Description(candidate, ssrc, master_key, cname, session_id, version)


@dataclass(frozen=True)
class HootDescription:
    """What the SFU tells of a hoot: where it is, and the group key. It has no SSRC, because it only copies packets."""

    address: Address
    key: GroupKey


def parse_hoot(text: str) -> HootDescription:
    """Read the description of a hoot. Raises SdpError."""
    session, media = _sections(text)
    _origin(session["o"])
    attributes = _attributes(media)
    port = _media_line(media[0][1])
    candidate = _candidate(_only(attributes, "candidate"), "host")
    if candidate.port != port:
        raise SdpError(f"m=audio has port {port}, and a=candidate {candidate.port}; expected the same")
    try:
        key = GroupKey.parse(_only(attributes, "crypto"))
    except ValueError as error:
        raise SdpError(str(error)) from None
    return HootDescription(candidate, key)


def _sections(text: str) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """The lines of the session by letter, and those of its only media section in order."""
    if len(text) > MAX_BYTES:
        raise SdpError(f"{len(text)} characters; expected at most {MAX_BYTES}")
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    if len(lines) > MAX_LINES:
        raise SdpError(f"{len(lines)} lines; expected at most {MAX_LINES}")
    session: dict[str, str] = {}
    order = ""
    media: list[tuple[str, str]] = []
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise SdpError(f"line {number}: expected a letter, = and a value")
        letter, value = match.groups()
        if letter == "m" and media:
            raise SdpError(f"line {number}: a second m=; expected one audio stream")
        if letter == "m" or media:
            media.append((letter, value))
        elif letter in _REQUIRED:
            order += letter
            session[letter] = value
    if order != _REQUIRED or session["v"] != "0":
        raise SdpError("expected v=0, o=, s= and t=, once each and in this order")
    if not media:
        raise SdpError("expected m=audio")
    return session, media


def _origin(value: str) -> tuple[int, int]:
    words = value.split(" ")
    if len(words) != 6:
        raise SdpError("o=: expected a user, two numbers and an address")
    return _number(words[1], 64, "o="), _number(words[2], 64, "o=")


def _media_line(value: str) -> int:
    words = value.split(" ")
    if len(words) < 4 or words[0] != "audio":
        raise SdpError("expected m=audio, a port, a profile and formats")
    if words[2] != PROFILE:
        browser = "DTLS" in words[2] or "TLS" in words[2] or words[2].endswith("F")
        raise BrowserSdpError(words[2][:40]) if browser else SdpError(f"m=: expected {PROFILE}")
    if str(PCMU) not in words[3:]:
        raise SdpError(f"m=: expected the format {PCMU} (PCMU)")
    return _number(words[1], 16, "m=")


def _attributes(media: list[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for letter, value in media:
        if letter == "a":
            name, _, rest = value.partition(":")
            found.setdefault(name, []).append(rest)
    return found


def _only(attributes: dict[str, list[str]], name: str) -> str:
    values = attributes.get(name, [])
    if len(values) != 1:
        raise SdpError(f"{len(values)} lines a={name}; expected one")
    return values[0]


def _candidate(value: str, kind: str) -> Address:
    words = value.split(" ")
    if len(words) < 8 or words[1] != "1" or words[2].lower() != "udp" or words[6:8] != ["typ", kind]:
        raise SdpError(f"a=candidate: expected component 1, udp, and typ {kind}")
    port = _number(words[5], 16, "a=candidate")
    try:
        host = ipaddress.ip_address(words[4])
    except ValueError:
        raise SdpError("a=candidate: expected a literal address") from None
    if not port or host.is_multicast or host.is_unspecified or "%" in words[4]:
        raise SdpError("a=candidate: expected the address and port of one host")
    return canonical(Address(words[4], port))


def _ssrc(value: str) -> tuple[int, str]:
    number, _, rest = value.partition(" ")
    name, _, cname = rest.partition(":")
    if name != "cname" or not _CNAME.fullmatch(cname):
        raise SdpError("a=ssrc: expected a number and cname:")
    return _number(number, 32, "a=ssrc"), cname


def _crypto(value: str) -> bytes:
    words = value.split(" ")
    if len(words) != 3 or not words[0].isdigit() or words[1] != SUITE:
        raise SdpError(f"a=crypto: expected a tag, {SUITE} and one key")
    method, _, rest = words[2].partition(":")
    # A lifetime or an MKI may follow (RFC 4568 section 6.1). An MKI would change the packets.
    key, *parameters = rest.split("|")
    if method != "inline" or any(":" in parameter for parameter in parameters):
        raise SdpError("a=crypto: expected inline: and a key without MKI")
    try:
        master_key = base64.b64decode(key, validate=True)
    except (binascii.Error, ValueError):
        raise SdpError("a=crypto: the key is not Base64") from None
    if len(master_key) != MASTER_KEY_BYTES:
        raise SdpError(f"a=crypto: a key of {len(master_key)} bytes; expected {MASTER_KEY_BYTES}")
    return master_key


def _number(text: str, bits: int, where: str) -> int:
    # 20 digits are what 64 bits need. int() of a long text takes quadratic time.
    if not (text.isascii() and text.isdigit() and len(text) <= 20) or int(text) >> bits:
        raise SdpError(f"{where}: expected a number of {bits} bits")
    return int(text)
