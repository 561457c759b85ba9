"""``relay emulate sign``: what it prints is what the server takes, and it names what is wrong with a request."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from relay.emulator.apis.nonces import Nonces
from relay.emulator.apis.sign_command import SECRET, sign_command
from relay.emulator.apis.signing import SignedRequest, http_date
from relay.emulator.apis.signing_by_hand import MAX_BODY_BYTES
from relay.emulator.apis.verifying import ApiKey, check, parse_authorization
from relay.errors import OperatorError

app = typer.Typer()
app.command()(sign_command)
URL = "https://localhost:8443/external/apis/users"
KEY = "atlas-key-1"
VALUE = "atlas-secret-for-a-laptop"
ENV = {SECRET: VALUE}
BODY = '{"userIds": ["anna"]}'
REQUEST = SignedRequest("POST", "https", "localhost:8443", "/external/apis/users", "application/json", BODY.encode())


def run(*words: str, secret: str | None = VALUE, given: bytes | None = None) -> Result:
    return CliRunner().invoke(app, [*words, "--key", KEY], env={SECRET: secret}, input=given)


def complaint(*words: str, **options: object) -> str:
    error = run(*words, **options).exception  # type: ignore[arg-type]
    assert isinstance(error, OperatorError)
    return str(error)


def headers_in(output: str) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in output.splitlines())


def test_the_server_takes_what_it_prints() -> None:
    result = run("POST", URL, "--body", BODY)
    headers = headers_in(result.stdout)
    credentials = parse_authorization(headers["Authorization"])
    key = ApiKey(KEY, VALUE, "atlas")
    assert check(REQUEST, credentials, headers["Date"], key, nonces=Nonces(), now=time.time()) is key
    assert VALUE not in result.output


def test_it_prints_the_string_to_sign_apart_from_the_headers() -> None:
    result = run("POST", URL, "--body", BODY, "--show")
    assert result.stderr.startswith(
        "POST\nhttps\nlocalhost:8443\n/external/apis/users\napplication/json\natlas-key-1\n"
    )
    assert result.stderr.endswith(f"{BODY}\n")
    assert set(headers_in(result.stdout)) == {"Authorization", "Date"}


def test_it_prints_a_command_for_curl() -> None:
    words = run("post", URL, "--body", BODY, "--curl").stdout
    assert words.startswith(
        "curl -X POST -H 'Content-Type: application/json' -H 'Authorization: HmacSHA512 atlas-key-1:"
    )
    assert words.endswith(f"--data-binary '{BODY}' {URL}\n")


def test_the_body_comes_from_a_file_or_from_standard_input(tmp_path: Path) -> None:
    file = tmp_path / "body.json"
    file.write_text(BODY)
    fixed = ("--nonce", "1b4e28ba-2fa1-4d3b-9f2d-5d8f1f5d6c7a", "--date", "Mon, 21 Sep 2026 14:13:20 GMT")
    expected = run("POST", URL, "--body", BODY, *fixed).stdout
    assert run("POST", URL, "--body-file", str(file), *fixed).stdout == expected
    assert run("POST", URL, "--body-file", "-", *fixed, given=BODY.encode()).stdout == expected


def test_the_secret_comes_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(f"{VALUE}\n")
    fixed = ("--nonce", "1b4e28ba-2fa1-4d3b-9f2d-5d8f1f5d6c7a", "--date", "Mon, 21 Sep 2026 14:13:20 GMT")
    assert run("GET", URL, "--secret-file", str(file), *fixed, secret=None).stdout == run("GET", URL, *fixed).stdout


def test_without_a_terminal_it_does_not_wait_for_a_secret() -> None:
    assert SECRET in complaint("GET", URL, secret=None)


def test_it_checks_a_header() -> None:
    headers = headers_in(run("POST", URL, "--body", BODY).stdout)
    words = ("--check", headers["Authorization"], "--date", headers["Date"])
    right = run("POST", URL, "--body", BODY, *words)
    assert (right.exit_code, right.stdout[:6]) == (0, "right:")
    wrong = run("POST", "https://localhost/external/apis/users", "--body", BODY, *words)
    assert wrong.exit_code == 1
    assert "field: host:port" in wrong.stdout
    assert "localhost:443" in wrong.stdout
    assert run("POST", URL, "--body", BODY, "--check", f"Authorization: {words[1]}", *words[2:]).exit_code == 0


def test_a_check_names_the_field() -> None:
    headers = headers_in(run("POST", "http://localhost:8443/external/apis/users", "--body", BODY).stdout)
    wrong = run("POST", URL, "--body", BODY, "--check", headers["Authorization"], "--date", headers["Date"])
    assert "field: scheme\n" in wrong.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--nonce", "1"), "--nonce: the nonce is not a random UUID: '1'; expected a UUID of version 4"),
        (("--nonce", "1b4e28ba-2fa1-1d3b-9f2d-5d8f1f5d6c7a"), "--nonce: the nonce is not a random UUID"),
        (("--date", "yesterday"), "--date: the Date header cannot be read: 'yesterday'; expected a date such as Fri,"),
        (("--date", "Mon, 21 Sep 2026 14:13:20 GMT\n"), "--date: expected one line"),
        (("--key", "a:b"), "--key: expected a name without spaces and colons, got 'a:b'"),
        (("--key", "a\nb"), "--key: expected a name without spaces and colons"),
        (("--key", ""), "--key: "),
        (("--key", "k" * 500), "--key: Authorization has"),
    ],
)
def test_what_the_server_never_takes_is_not_signed(words: tuple[str, str], told: str) -> None:
    result = CliRunner().invoke(app, ["POST", URL, *(() if words[0] == "--key" else ("--key", KEY)), *words], env=ENV)
    assert isinstance(result.exception, OperatorError)
    assert told in str(result.exception)
    assert result.stdout == ""
    assert "expected a method" in complaint("PO ST", URL)


def test_a_date_of_another_time_is_signed_with_a_warning() -> None:
    old = run("POST", URL, "--date", http_date(time.time() - 3600))
    assert (old.exit_code, set(headers_in(old.stdout))) == (0, {"Authorization", "Date"})
    assert "warning: the server refuses this: the Date header is 3" in old.stderr
    assert run("POST", URL).stderr == ""


def test_a_check_says_that_a_date_is_old() -> None:
    fixed = ("--date", http_date(time.time() - 3600))
    headers = headers_in(run("POST", URL, "--body", BODY, *fixed).stdout)
    old = run("POST", URL, "--body", BODY, "--check", headers["Authorization"], *fixed)
    assert old.exit_code == 1
    assert "s behind the server" in old.stdout


@pytest.mark.parametrize(
    "url", ["localhost", "/path", "ftp://localhost/", "https://", "https://u:p@localhost/", "http://["]
)
def test_it_wants_a_whole_url(url: str) -> None:
    assert "expected a whole URL" in complaint("GET", url)


def test_other_mistakes(tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(bytes(MAX_BODY_BYTES + 1))
    empty = tmp_path / "empty"
    empty.write_bytes(b"\n")
    assert "not both" in complaint("POST", URL, "--body", "x", "--body-file", str(large))
    assert "at most" in complaint("POST", URL, "--body-file", str(large))
    assert "No such file" in complaint("POST", URL, "--body-file", str(tmp_path / "missing"))
    assert "expected a secret" in complaint("POST", URL, "--secret-file", str(empty))
    assert "not atlas-key-1" in complaint("GET", URL, "--check", "HmacSHA512 b:c:d", "--date", "x")
