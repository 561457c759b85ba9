"""Descriptions come back as they were written; anything else is an SdpError that says what was expected."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.addresses import Address
from relay.emulator.sfu import Sfu
from relay.emulator.softphone.sdp import (
    BrowserSdpError,
    Description,
    HootDescription,
    SdpError,
    build,
    parse,
    parse_hoot,
)

KEY = bytes(range(30))
GIVEN = Description(Address("127.0.1.2", 50000), 0xDEADBEEF, KEY, "anna", 7, 2)
TEXT = (
    "v=0\r\n"
    "o=- 7 2 IN IP4 127.0.1.2\r\n"
    "s=-\r\n"
    "c=IN IP4 127.0.1.2\r\n"
    "t=0 0\r\n"
    "m=audio 50000 RTP/SAVP 0\r\n"
    "a=rtpmap:0 PCMU/8000\r\n"
    "a=ptime:20\r\n"
    "a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwd\r\n"
    "a=ssrc:3735928559 cname:anna\r\n"
    "a=candidate:1 1 udp 16777215 127.0.1.2 50000 typ relay raddr 0.0.0.0 rport 9\r\n"
)


def test_as_it_is_written() -> None:
    assert build(GIVEN) == TEXT
    assert parse(TEXT) == GIVEN


@given(
    st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).filter(lambda host: not host.is_multicast and int(host)),
    st.integers(1, 65535),
    st.integers(0, 2**32 - 1),
    st.binary(min_size=30, max_size=30),
    st.integers(0, 2**64 - 1),
)
def test_round_trip(host: object, port: int, ssrc: int, key: bytes, session_id: int) -> None:
    text = str(host)
    if "%" in text or text.startswith("::ffff:"):
        return
    given_ = Description(Address(text, port), ssrc, key, "a.b_c@d-1", session_id)
    assert parse(build(given_)) == given_


@pytest.mark.parametrize("changed", [TEXT.replace("\r\n", "\n"), TEXT.removesuffix("\r\n"), TEXT + "a=sendrecv\r\n"])
def test_what_other_writers_do_is_read(changed: str) -> None:
    assert parse(changed) == GIVEN


def test_unknown_lines_are_ignored() -> None:
    assert parse(TEXT.replace("t=0 0", "b=AS:80\r\nt=0 0\r\na=group:BUNDLE 0")) == GIVEN


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("v=0", "v=1", "expected v=0"),
        ("s=-\r\n", "", "expected v=0, o=, s= and t="),
        ("s=-", "s=-\r\ns=-", "once each"),
        ("v=0\r\n", "v 0\r\n", "line 1"),
        ("o=- 7 2 IN", "o=- 7 2 x IN", "o="),
        ("o=- 7 2", "o=- 7 -2", "number of 64 bits"),
        ("o=- 7 2", "o=- 18446744073709551616 2", "number of 64 bits"),
        ("m=audio 50000 RTP/SAVP 0", "m=video 50000 RTP/SAVP 0", "m=audio"),
        ("m=audio 50000 RTP/SAVP 0", "m=audio 50000 RTP/AVP 0", "expected RTP/SAVP"),
        ("m=audio 50000 RTP/SAVP 0", "m=audio 50000 RTP/SAVP 8", "format 0"),
        ("m=audio 50000", "m=audio 50001", "expected the same"),
        ("m=audio 50000", "m=audio 65536", "number of 16 bits"),
        ("a=ptime:20", "m=audio 1 RTP/SAVP 0", "second m="),
        ("typ relay", "typ host", "typ relay"),
        ("1 1 udp", "1 2 udp", "component 1"),
        ("1 1 udp", "1 1 tcp", "udp"),
        ("16777215 127.0.1.2", "16777215 relay.example", "literal address"),
        ("16777215 127.0.1.2", "16777215 224.0.0.1", "of one host"),
        ("16777215 127.0.1.2", "16777215 0.0.0.0", "of one host"),
        ("AES_CM_128_HMAC_SHA1_80", "AES_CM_128_HMAC_SHA1_32", "AES_CM_128_HMAC_SHA1_80"),
        ("inline:AAEC", "inline:!!!!", "not Base64"),
        ("inline:AAEC", "inline:", "27 bytes"),
        ("GBkaGxwd", "GBkaGxwd|2^20|1:4", "without MKI"),
        ("inline:", "prompt:", "inline"),
        ("cname:anna", "cname:an na", "a=ssrc"),
        ("cname:anna", "mslabel:anna", "cname"),
        ("3735928559", "4294967296", "number of 32 bits"),
        ("3735928559", "9" * 5000, "number of 32 bits"),
        ("a=ptime:20", "a=ssrc:1 cname:anna", "2 lines a=ssrc"),
        ("a=ptime:20", "x" * 20000, "characters"),
        ("a=ptime:20", "a=b\r\n" * 500 + "a=c", "lines"),
    ],
)
def test_what_is_wrong_is_named(old: str, new: str, said: str) -> None:
    assert old in TEXT
    with pytest.raises(SdpError, match=said):
        parse(TEXT.replace(old, new, 1))


def test_lifetime_of_a_key_is_allowed() -> None:
    assert parse(TEXT.replace("GBkaGxwd", "GBkaGxwd|2^20")) == GIVEN


@pytest.mark.parametrize("profile", ["UDP/TLS/RTP/SAVPF", "RTP/SAVPF"])
def test_a_browser_is_told_apart(profile: str) -> None:
    with pytest.raises(BrowserSdpError, match="as a browser does"):
        parse(TEXT.replace("RTP/SAVP", profile))


@given(st.text(max_size=300))
def test_anything_is_a_description_or_an_error(text: str) -> None:
    with contextlib.suppress(SdpError):
        parse(text)


@given(st.integers(0, len(TEXT) - 1), st.integers(0, 20), st.text(max_size=20))
def test_spoilt_descriptions(at: int, length: int, text: str) -> None:
    """A value or the documented error, and a value can be written again."""
    try:
        found = parse(TEXT[:at] + text + TEXT[at + length :])
    except SdpError:
        return
    assert parse(build(found)) == found


@pytest.mark.parametrize(("key", "cname"), [(b"short", "anna"), (KEY, "an\r\nna"), (KEY, "")])
def test_what_cannot_be_written(key: bytes, cname: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        build(Description(Address("127.0.0.1", 1), 1, key, cname, 1))


def test_key_is_not_shown() -> None:
    assert "master_key" not in repr(GIVEN)


HOOT_TEXT = (
    "v=0\r\no=- 40000 3 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio 40000 RTP/SAVP 0\r\n"
    "a=rtpmap:0 PCMU/8000\r\n"
    "a=crypto:3 AES_CM_128_HMAC_SHA1_80 inline:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwd\r\n"
    "a=candidate:1 1 UDP 2130706431 127.0.0.1 40000 typ host\r\na=rtcp-mux\r\na=sendrecv\r\n"
)


async def test_a_hoot_is_described_with_its_address_and_key() -> None:
    told = parse_hoot(HOOT_TEXT)
    assert (told.address, told.key.number, told.key.master_key) == (Address("127.0.0.1", 40000), 3, KEY)
    async with Sfu() as sfu:
        hoot = sfu.open("sPK-12345678-987654")
        assert parse_hoot(hoot.sdp) == HootDescription(hoot.address, hoot.key)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("typ host", "typ relay", "typ host"),
        ("40000 typ", "40001 typ", "the same"),
        ("a=crypto:3", "a=crypto:x", "a tag"),
        ("inline:AAEC", "inline:A", "a=crypto|adding|base64|length"),
        ("inline:", "other:", "inline:"),
        ("a=candidate", "a=other", "a=candidate"),
        ("RTP/SAVP", "UDP/TLS/RTP/SAVPF", "as a browser does"),
    ],
)
def test_other_descriptions_of_a_hoot_are_refused(before: str, after: str, expected: str) -> None:
    with pytest.raises(SdpError, match=expected):
        parse_hoot(HOOT_TEXT.replace(before, after))


@given(st.text())
def test_any_text_is_a_hoot_or_an_error(text: str) -> None:
    for given_ in (text, HOOT_TEXT + text, text + HOOT_TEXT):
        with contextlib.suppress(SdpError):
            parse_hoot(given_)
