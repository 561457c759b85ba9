"""Keys against published values, time-limited names against the clock, nonces against forgers."""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.addresses import Address
from relay.turn.credentials import (
    NONCE_LIFETIME_S,
    NonceMint,
    RestCredentials,
    StaticCredentials,
    long_term_key,
    long_term_keys,
    raw_long_term_key,
    rest_password,
    rest_username,
)
from tests.support.properties import repeatable

CLIENT = Address("192.0.2.7", 50000)


def test_rfc8489_9_2_2_the_key_is_the_md5_of_user_realm_and_password() -> None:
    """The example of RFC 8489 section 9.2.2."""
    assert long_term_key("user", "realm", "pass").hex() == "8493fbc53ba582fb4c044c456bdc40eb"


def test_texts_that_look_the_same_give_the_same_key() -> None:
    composed, decomposed = "Zo\u00eb", "Zoe\u0308"
    assert long_term_key(composed, "realm", "pass") == long_term_key(decomposed, "realm", "pass")
    assert long_term_key("user", "realm", composed) == long_term_key("user", "realm", decomposed)
    assert long_term_key("Zoe", "realm", "pass") != long_term_key(composed, "realm", "pass")


def test_the_raw_key_is_that_of_the_texts_as_they_are() -> None:
    composed, decomposed = "Zo\u00eb", "Zoe\u0308"
    assert raw_long_term_key(composed, "realm", "pass") != raw_long_term_key(decomposed, "realm", "pass")
    assert long_term_keys(decomposed, "r", "p") == (
        hashlib.md5("Zo\u00eb:r:p".encode()).digest(),
        hashlib.md5("Zoe\u0308:r:p".encode()).digest(),
    )


def test_static_credentials_know_their_table() -> None:
    credentials = StaticCredentials({"ann": "sesame"})
    assert credentials.keys("ann", "cloud9", 0.0) == long_term_keys("ann", "cloud9", "sesame")
    assert credentials.keys("Ann", "cloud9", 0.0) == ()
    assert credentials.keys("", "cloud9", 0.0) == ()


@pytest.mark.parametrize("in_the_table", ["Zo\u00eb", "Zoe\u0308"])
@pytest.mark.parametrize("sent", ["Zo\u00eb", "Zoe\u0308"])
def test_static_credentials_find_either_form_of_a_name(in_the_table: str, sent: str) -> None:
    keys = StaticCredentials({in_the_table: "sesame"}).keys(sent, "cloud9", 0.0)
    assert keys == long_term_keys(sent, "cloud9", "sesame")


def test_static_credentials_do_not_follow_the_callers_table() -> None:
    table = {"ann": "sesame"}
    credentials = StaticCredentials(table)
    table["eve"] = "let me in"
    assert credentials.keys("eve", "cloud9", 0.0) == ()


# Time-limited credentials (draft-uberti-behave-turn-rest)


def test_rest_password_is_the_base64_of_hmac_sha1_over_the_whole_name() -> None:
    """The value was made with ``openssl dgst -sha1 -hmac``, as the documents of other servers advise."""
    username = rest_username("ann", 1433895918)
    assert username == "1433895918:ann"
    expected = hmac.digest(b"north", b"1433895918:ann", hashlib.sha1)
    assert base64.b64decode(rest_password("north", username)) == expected
    assert len(rest_password("north", username)) == 28


@pytest.mark.parametrize(("unix_time", "valid"), [(0.0, True), (999.9, True), (1000.0, False), (1000.1, False)])
def test_rest_credentials_end_with_their_expiry(unix_time: float, valid: bool) -> None:
    keys = RestCredentials("north").keys("1000:ann", "cloud9", unix_time)
    expected = long_term_keys("1000:ann", "cloud9", rest_password("north", "1000:ann"))
    assert keys == (expected if valid else ())


@pytest.mark.parametrize(
    "username", ["", "ann", "1000", ":ann", "-5:ann", "1e9:ann", " 1000:ann", "٣٣٣٣:ann", "x1000:ann"]
)
def test_rest_names_of_another_form_are_unknown(username: str) -> None:
    assert RestCredentials("north").keys(username, "cloud9", 0.0) == ()


def test_rest_names_may_be_long_or_have_no_user() -> None:
    credentials = RestCredentials("north")
    assert credentials.keys("9" * 5000 + ":ann", "cloud9", 0.0)
    assert credentials.keys("1000:", "cloud9", 0.0)
    assert credentials.keys("0" * 5000 + ":ann", "cloud9", 0.0) == ()


def test_rest_secrets_differ_in_their_keys() -> None:
    keys = {RestCredentials(secret).keys("1000:ann", "cloud9", 0.0) for secret in ("north", "south")}
    assert len(keys) == 2


# Nonces


def test_a_nonce_has_sixteen_characters_and_is_ours() -> None:
    mint = NonceMint()
    nonce = mint.mint(CLIENT, 1000.0)
    assert len(nonce) == 16
    assert nonce.isascii()
    assert mint.accepts(nonce, CLIENT, 1000.0)


@pytest.mark.parametrize(("age", "accepted"), [(0, True), (NONCE_LIFETIME_S, True), (NONCE_LIFETIME_S + 1, False)])
@pytest.mark.parametrize("made", [0.0, 1000.5, 2.0**32 - 10], ids=["at zero", "later", "before the counter wraps"])
def test_a_nonce_lives_ten_minutes(made: float, age: int, accepted: bool) -> None:
    mint = NonceMint()
    assert mint.accepts(mint.mint(CLIENT, made), CLIENT, made + age) is accepted


def test_a_nonce_from_the_future_is_refused() -> None:
    mint = NonceMint()
    assert not mint.accepts(mint.mint(CLIENT, 1001.0), CLIENT, 1000.0)


@pytest.mark.parametrize("other", [Address("192.0.2.7", 50001), Address("192.0.2.8", 50000), Address("192.0.2.75", 0)])
def test_a_nonce_of_another_client_is_refused(other: Address) -> None:
    mint = NonceMint()
    assert not mint.accepts(mint.mint(other, 1000.0), CLIENT, 1000.0)


def test_a_nonce_of_another_server_is_refused() -> None:
    assert not NonceMint().accepts(NonceMint().mint(CLIENT, 1000.0), CLIENT, 1000.0)


def test_a_changed_nonce_is_refused() -> None:
    mint = NonceMint()
    nonce = mint.mint(CLIENT, 1000.0)
    for place in range(len(nonce)):
        other = "A" if nonce[place] != "A" else "B"
        assert not mint.accepts(nonce[:place] + other + nonce[place + 1 :], CLIENT, 1000.0)


@pytest.mark.parametrize("nonce", ["", "A", "AAAA", "AAAAAAAAAAAAAAAA", "ÄÖÜ", "\ufffd", "=", "AAAA AAAA", "A" * 763])
def test_what_is_no_nonce_is_refused(nonce: str) -> None:
    assert not NonceMint().accepts(nonce, CLIENT, 0.0)


def test_trailing_characters_make_it_another_nonce() -> None:
    mint = NonceMint()
    nonce = mint.mint(CLIENT, 1000.0)
    assert not mint.accepts(nonce + "AAAA", CLIENT, 1000.0)
    assert not mint.accepts(nonce[:12], CLIENT, 1000.0)


def test_secrets_do_not_show_in_a_repr() -> None:
    assert "sesamesesame" not in repr(NonceMint(key=b"sesamesesame"))
    assert "sesame" not in repr(StaticCredentials({"ann": "sesame"}))
    assert "sesame" not in repr(RestCredentials("sesame"))


@repeatable
@given(st.text(max_size=40))
def test_any_text_is_refused_as_a_nonce(nonce: str) -> None:
    assert NonceMint(key=bytes(32)).accepts(nonce, CLIENT, 1000.0) is False


@repeatable
@given(st.text(max_size=40))
def test_any_text_as_a_rest_name_is_a_key_or_unknown(username: str) -> None:
    keys = RestCredentials("north").keys(username, "cloud9", 1000.0)
    assert not keys or int(username.partition(":")[0]) > 1000
