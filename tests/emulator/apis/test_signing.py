"""Signatures: made and checked, and each usual mistake named."""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.emulator.apis.nonces import Nonces
from relay.emulator.apis.signing import SignedRequest, http_date, new_nonce, sign, string_to_sign, with_port
from relay.emulator.apis.verifying import (
    MAX_SKEW_S,
    ApiKey,
    Credentials,
    SignatureRefused,
    check,
    check_allowed,
    parse_authorization,
)

NOW = 1_790_000_000.0
NONCE = "1b4e28ba-2fa1-4d3b-9f2d-5d8f1f5d6c7a"
SECRET = "c2VjcmV0LW9mLWEtdGVzdA=="
KEY = ApiKey("atlas-key-1", SECRET, "atlas", networks=(ipaddress.ip_network("127.0.0.0/8"),), apis=("cti",))
REQUEST = SignedRequest(
    "POST",
    "https",
    "api.xhoot.com",
    "/external/apis/users/anna/buttons",
    "application/json; charset=utf-8",
    b'{"pageSize": 10, "name": "\xc3\xa9"}',
    "page=1",
)


def headers(request: SignedRequest = REQUEST, *, now: float = NOW, nonce: str = NONCE) -> dict[str, str]:
    return sign(request, KEY.key, SECRET, nonce=nonce, date=http_date(now))


def checked(
    signed: dict[str, str],
    request: SignedRequest = REQUEST,
    key: ApiKey | None = KEY,
    *,
    nonces: Nonces | None = None,
    now: float = NOW,
) -> ApiKey:
    credentials = parse_authorization(signed.get("Authorization"))
    return check(request, credentials, signed.get("Date"), key, nonces=nonces or Nonces(), now=now)


def refusal(signed: dict[str, str], **options: object) -> SignatureRefused:
    with pytest.raises(SignatureRefused) as refused:
        checked(signed, **options)  # type: ignore[arg-type]
    assert SECRET not in str(vars(refused.value))
    return refused.value


def test_a_signature_is_what_the_samples_make() -> None:
    """Written out by hand, from the description alone."""
    date = "Mon, 21 Sep 2026 14:13:20 GMT"
    text = (
        "POST\nhttps\napi.xhoot.com:443\n/external/apis/users/anna/buttons\napplication/json\natlas-key-1\n"
        f"{NONCE}\n{date}\n" + '{"pageSize": 10, "name": "\u00e9"}\n'
    )
    digest = base64.b64encode(hmac.new(SECRET.encode(), text.encode(), hashlib.sha512).digest()).decode()
    assert headers() == {"Authorization": f"HmacSHA512 atlas-key-1:{NONCE}:{digest}", "Date": date}


def test_a_right_signature_is_taken() -> None:
    assert checked(headers()) is KEY
    assert "secret" not in repr(KEY)


@pytest.mark.parametrize(
    ("host", "scheme", "expected"),
    [
        ("api.xhoot.com", "https", "api.xhoot.com:443"),
        ("API.xhoot.com", "wss", "api.xhoot.com:443"),
        ("localhost", "http", "localhost:80"),
        ("localhost:8080", "http", "localhost:8080"),
        ("[::1]", "http", "[::1]:80"),
        ("[::1]:8443", "https", "[::1]:8443"),
        ("host", "ftp", "host"),
    ],
)
def test_the_port_is_always_there(host: str, scheme: str, expected: str) -> None:
    assert with_port(host, scheme) == expected


def altered(**fields: str | bytes) -> SignedRequest:
    return replace(REQUEST, **fields)  # type: ignore[arg-type]


def digest_of(text: bytes, secret: bytes = SECRET.encode(), algorithm: str = "sha512") -> bytes:
    return hmac.digest(secret, text, algorithm)


def raw(text: bytes, **options: object) -> str:
    return base64.b64encode(digest_of(text, **options)).decode()  # type: ignore[arg-type]


TEXT = string_to_sign(REQUEST, KEY.key, NONCE, http_date(NOW))
LINES = TEXT.decode().split("\n")
JS_BODY = json.dumps(json.loads(REQUEST.body), separators=(",", ":"), ensure_ascii=False)


def with_line(number: int, value: str) -> str:
    return raw("\n".join([*LINES[:number], value, *LINES[number + 1 :]]).encode())


MISTAKES: dict[str, tuple[str, str, str]] = {
    "no port": (with_line(2, "api.xhoot.com"), "host:port", "without its port"),
    "another name of this machine": (with_line(2, "localhost:8080"), "host:port", '"localhost:8080"'),
    "another host of the vendor's": (
        with_line(2, "managementapi.xhoot.com:443"),
        "host:port",
        'a name of the vendor\'s: "managementapi.xhoot.com:443"',
    ),
    "a browser's name of the vendor's": (with_line(2, "calldataapi.xhoot.com.localhost:443"), "host:port", "vendor's"),
    "the path of another endpoint": (with_line(3, "/audit/v1/entries"), "path", "the path of another endpoint"),
    "a path without its end": (with_line(3, "/external/apis/users/anna"), "path", "without its end"),
    "another port": (with_line(2, "api.xhoot.com:80"), "host:port", "api.xhoot.com:80"),
    "the scheme of another listener": (with_line(1, "http"), "scheme", '"http"'),
    "a WebSocket's scheme": (with_line(1, "wss"), "scheme", '"wss"'),
    "a scheme with its colon": (with_line(1, "https:"), "scheme", '"https:"'),
    "another method": (with_line(0, "GET"), "method", '"GET"'),
    "a method in lower case": (with_line(0, "post"), "method", "in lower case"),
    "a path with its query": (with_line(3, f"{REQUEST.path}?page=1"), "path", "with the query"),
    "a path with a slash at its end": (with_line(3, f"{REQUEST.path}/"), "path", "slash at its end"),
    "a path without its base": (with_line(3, "/users/anna/buttons"), "path", "without its beginning"),
    "a whole URL": (with_line(3, f"https://api.xhoot.com{REQUEST.path}"), "path", "the whole URL"),
    "a content-type with parameters": (
        with_line(4, "application/json; charset=utf-8"),
        "content-type",
        "with its parameters",
    ),
    "no content-type": (with_line(4, ""), "content-type", "left empty"),
    "no line for the content-type": (
        raw("\n".join([*LINES[:4], *LINES[5:]]).encode()),
        "content-type",
        "were left out",
    ),
    "no key": (with_line(5, ""), "api key", "left empty"),
    "a nonce without hyphens": (with_line(6, NONCE.replace("-", "")), "nonce", "without hyphens"),
    "a nonce in upper case": (with_line(6, NONCE.upper()), "nonce", "in upper case"),
    "a date in ISO 8601": (with_line(7, "2026-09-21T14:13:20Z"), "date", "ISO 8601"),
    "a date of a second ago": (with_line(7, http_date(NOW - 1)), "date", "-1 s off"),
    "a date in milliseconds": (with_line(7, f"{NOW:.0f}000"), "date", "milliseconds"),
    "no body": (with_line(8, ""), "body", "left empty"),
    "a body that is written again": (with_line(8, JS_BODY), "body", "JSON without spaces"),
    "a body that is hashed": (with_line(8, hashlib.sha512(REQUEST.body).hexdigest()), "body", "SHA-512 in hex"),
    "no last newline": (raw(TEXT[:-1]), "newlines", "last newline"),
    "the newlines of Windows": (raw(TEXT.replace(b"\n", b"\r\n")), "newlines", r"\r\n"),
    "no newlines": (raw(TEXT.replace(b"\n", b"")), "newlines", "without newlines"),
    "SHA-256": (raw(TEXT, algorithm="sha256"), "algorithm", "SHA-256"),
    "a secret that was decoded": (raw(TEXT, secret=base64.b64decode(SECRET)), "secret", "read as base64"),
    "a secret with a newline": (raw(TEXT, secret=SECRET.encode() + b"\n"), "secret", "newline"),
    "hex": (digest_of(TEXT).hex(), "signature", "not written in base64"),
    "URL-safe base64": (base64.urlsafe_b64encode(digest_of(TEXT)).decode(), "signature", "not written in base64"),
    "base64 without padding": (raw(TEXT).rstrip("="), "signature", "not written in base64"),
    "base64 of hex": (base64.b64encode(digest_of(TEXT).hex().encode()).decode(), "signature", "not written in base64"),
    "not a signature": ("!", "signature", "not base64"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_named(mistake: str) -> None:
    signature, field, told = MISTAKES[mistake]
    refused = refusal({"Authorization": f"HmacSHA512 {KEY.key}:{NONCE}:{signature}", "Date": http_date(NOW)})
    assert (refused.status, refused.code, refused.where) == (401, "wrong_signature", field)
    assert told in refused.message
    assert refused.expected


@pytest.mark.parametrize("signed", ["localhost:8080", "127.0.0.1:8080", "[::1]:8080", "ctiapi.prod1.xhoot.com:8080"])
@pytest.mark.parametrize("sent", ["localhost:8080", "127.0.0.1:8080", "c9auditapi.xhoot.com.localhost:8080"])
def test_another_name_of_the_same_host_is_named(signed: str, sent: str) -> None:
    if signed != sent:
        refused = refusal(headers(altered(host=signed)), request=altered(host=sent))
        assert (refused.where, refused.expected) == ("host:port", f'host:port "{sent}"')
        assert f'"{signed}"' in refused.message


def test_the_other_port_of_the_same_host_is_named() -> None:
    signed = headers(altered(host="localhost:8443"))
    refused = refusal(signed, request=altered(host="127.0.0.1:8080"))
    assert (refused.where, '"localhost:8443"' in refused.message) == ("host:port", True)


def test_another_name_and_another_scheme_are_named() -> None:
    signed = headers(altered(host="localhost:8080", scheme="https"))
    refused = refusal(signed, request=altered(host="127.0.0.1:8080", scheme="http"))
    assert refused.where == "host:port and scheme"


def test_two_mistakes_at_once_are_named() -> None:
    lines = [*LINES]
    lines[2], lines[4] = "api.xhoot.com", ""
    signed = {"Authorization": f"HmacSHA512 {KEY.key}:{NONCE}:{raw(chr(10).join(lines).encode())}"}
    assert refusal({**signed, "Date": http_date(NOW)}).where == "host:port and content-type"


def test_a_wrong_secret_shows_what_the_server_signed() -> None:
    signed = sign(REQUEST, KEY.key, "another secret", nonce=NONCE, date=http_date(NOW))
    refused = refusal(signed)
    assert refused.where == "signature"
    assert json.dumps(TEXT.decode()) in refused.expected


def test_a_long_body_is_explained_in_bounded_work() -> None:
    request = altered(body=b"{" * 1_000_000)
    lines = string_to_sign(request, KEY.key, NONCE, http_date(NOW)).replace(b":443", b"")
    signed = {"Authorization": f"HmacSHA512 {KEY.key}:{NONCE}:{raw(lines)}", "Date": http_date(NOW)}
    assert refusal(signed, request=request).where == "host:port"
    unexplained = sign(request, KEY.key, "another secret", nonce=NONCE, date=http_date(NOW))
    assert len(refusal(unexplained, request=request).expected) < 3000


@given(st.binary(max_size=200), st.text(max_size=100), st.text(max_size=40), st.binary(max_size=80))
def test_whatever_comes_is_refused_with_401(body: bytes, path: str, date: str, signature: bytes) -> None:
    request = SignedRequest("POST", "https", "h", path, "application/json", body)
    header = f"HmacSHA512 {KEY.key}:{NONCE}:{base64.b64encode(signature).decode()}"
    with pytest.raises(SignatureRefused) as refused:
        checked({"Authorization": header, "Date": date}, request)
    assert refused.value.status == 401


@pytest.mark.parametrize(
    ("authorization", "code"),
    [
        (None, "unsigned"),
        ("", "unsigned"),
        ("Basic YTpi", "unknown_algorithm"),
        ("Bearer abc", "unknown_algorithm"),
        ("HmacSHA256 a:b:c", "unknown_algorithm"),
        ("HmacSHA512", "malformed_authorization"),
        ("HmacSHA512 a:b", "malformed_authorization"),
        ("HmacSHA512 a:b:c:d", "malformed_authorization"),
        ("HmacSHA512 a::c", "malformed_authorization"),
        (f"HmacSHA512 a:b:{'c' * 600}", "malformed_authorization"),
    ],
)
def test_a_header_that_cannot_be_read(authorization: str | None, code: str) -> None:
    with pytest.raises(SignatureRefused) as refused:
        parse_authorization(authorization)
    assert (refused.value.status, refused.value.code) == (401, code)
    assert "HmacSHA512 <api key>" in refused.value.expected


@pytest.mark.parametrize("date", [None, "", "yesterday", "Fri, 99 Nov 2026 12:00:00 GMT", "1790000000"])
def test_a_date_that_cannot_be_read(date: str | None) -> None:
    signed = {**headers(), "Date": date or ""}
    refused = refusal(signed)
    assert (refused.status, refused.where) == (401, "Date")


@pytest.mark.parametrize(
    "nonce",
    [
        "1",
        "not-a-uuid",
        "71dfdbf8-ead3-11f1-9723-02fc00000001",
        "1ee03bfef89d41afb95488400311f92f",
        "{108f9268-a047-4205-ba64-a1373cafd9a6}",
    ],
    ids=["number", "words", "of the clock", "without dashes", "in braces"],
)
def test_a_nonce_must_be_a_random_uuid(nonce: str) -> None:
    assert refusal(headers(nonce=nonce)).code == "malformed_nonce"


@pytest.mark.parametrize(("off", "direction"), [(MAX_SKEW_S + 1, "ahead of"), (-MAX_SKEW_S - 1, "behind")])
def test_a_clock_that_is_off_is_told_by_how_much(off: int, direction: str) -> None:
    refused = refusal(headers(now=NOW + off))
    assert (refused.status, refused.code) == (401, "clock_skew")
    assert f"{MAX_SKEW_S + 1} s {direction}" in refused.message
    assert http_date(NOW) in refused.expected


@pytest.mark.parametrize("off", [MAX_SKEW_S, -MAX_SKEW_S])
def test_a_clock_may_be_off_by_the_bound(off: int) -> None:
    assert checked(headers(now=NOW + off)) is KEY


def test_keys_that_are_unknown_or_disabled() -> None:
    unknown, disabled = refusal(headers(), key=None), refusal(headers(), key=replace(KEY, enabled=False))
    assert (unknown.status, unknown.code) == (401, "unknown_key")
    assert (disabled.status, disabled.code) == (401, "disabled_key")


def test_a_copy_of_a_request_is_refused_for_as_long_as_its_date_would_do() -> None:
    nonces = Nonces()
    early = headers(now=NOW + MAX_SKEW_S)
    checked(early, nonces=nonces)
    assert refusal(early, nonces=nonces).code == "replayed_nonce"
    assert refusal(early, nonces=nonces, now=NOW + 2 * MAX_SKEW_S).code == "replayed_nonce"
    assert refusal(early, nonces=nonces, now=NOW + 2 * MAX_SKEW_S + 1).code == "clock_skew"


def test_the_same_nonce_may_be_used_with_two_keys() -> None:
    nonces, other = Nonces(), replace(KEY, key="borealis-key-1")
    signed = sign(REQUEST, other.key, SECRET, nonce=NONCE, date=http_date(NOW))
    assert checked(headers(), nonces=nonces) is KEY
    assert checked(signed, nonces=nonces, key=other) is other


def test_a_wrong_signature_uses_up_no_nonce() -> None:
    nonces = Nonces(limit=1)
    wrong = sign(REQUEST, KEY.key, "another secret", nonce=NONCE, date=http_date(NOW))
    for _ in range(3):
        assert refusal(wrong, nonces=nonces).code == "wrong_signature"
    assert checked(headers(), nonces=nonces) is KEY


def test_the_memory_of_nonces_is_bounded_and_forgets_none_too_early() -> None:
    nonces = Nonces(limit=2)
    first = headers(nonce=new_nonce())
    checked(first, nonces=nonces)
    checked(headers(nonce=new_nonce()), nonces=nonces)
    full = refusal(headers(nonce=new_nonce()), nonces=nonces)
    assert (full.status, full.code) == (429, "too_many_requests")
    assert f"the next in {MAX_SKEW_S} s" in full.expected
    assert refusal(first, nonces=nonces).code == "replayed_nonce"
    later = NOW + MAX_SKEW_S + 1
    assert checked(headers(now=later, nonce=new_nonce()), nonces=nonces, now=later) is KEY


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::ffff:127.0.0.1"])
def test_an_address_of_the_list_is_allowed(address: str) -> None:
    check_allowed(KEY, address, "cti")


@pytest.mark.parametrize(
    ("change", "address", "api", "code"),
    [
        ({}, "192.0.2.1", "cti", "address_not_allowed"),
        ({}, "::1", "cti", "address_not_allowed"),
        ({}, "fe80::1%eth0", "cti", "address_not_allowed"),
        ({"networks": ()}, "127.0.0.1", "cti", "address_not_allowed"),
        ({}, "127.0.0.1", "management", "api_not_allowed"),
    ],
)
def test_a_known_key_may_be_refused_with_403(change: dict[str, object], address: str, api: str, code: str) -> None:
    with pytest.raises(SignatureRefused) as refused:
        check_allowed(replace(KEY, **change), address, api)  # type: ignore[arg-type]
    assert (refused.value.status, refused.value.code) == (403, code)


def test_credentials_are_read() -> None:
    assert parse_authorization("HmacSHA512 a:b:c") == Credentials("a", "b", "c")


def variants() -> list[Callable[[SignedRequest], SignedRequest]]:
    return [
        lambda request: replace(request, method="PUT"),
        lambda request: replace(request, host="api.xhoot.com:8443"),
        lambda request: replace(request, path="/external/apis/users/ben/buttons"),
        lambda request: replace(request, body=request.body + b" "),
        lambda request: replace(request, content_type="text/plain"),
        lambda request: replace(request, scheme="http"),
    ]


@pytest.mark.parametrize("number", range(6))
def test_each_field_is_signed(number: int) -> None:
    assert refusal(headers(), request=variants()[number](REQUEST)).code == "wrong_signature"
