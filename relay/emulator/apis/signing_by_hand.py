"""Signs a request, or finds out why a signature is wrong, for ``relay emulate sign``.

The secret comes from a file, from the environment or from the terminal, and never from the command line, where every
user of the machine could read it.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path

import typer
from yarl import URL

from relay.emulator.apis.nonces import Nonces
from relay.emulator.apis.sign_command import SECRET
from relay.emulator.apis.signing import DEFAULT_PORTS, SignedRequest
from relay.emulator.apis.verifying import ApiKey, SignatureRefused, check, parse_authorization
from relay.errors import OperatorError

# The bodies of the APIs are small, and the server takes no larger ones.
MAX_BODY_BYTES = 1 << 20
MAX_SECRET_BYTES = 1024
# Which option makes the server refuse what was signed.
_OPTIONS = {"malformed_nonce": "--nonce", "malformed_date": "--date", "no_date": "--date"}


def body_of(text: str | None, file: Path | None) -> bytes:
    """The body that the options give. Raises OperatorError."""
    if text is not None and file is not None:
        raise OperatorError("expected --body or --body-file, not both")
    if file is None:
        return os.fsencode(text or "")
    content = sys.stdin.buffer.read(MAX_BODY_BYTES + 1) if str(file) == "-" else _read(file, MAX_BODY_BYTES)
    if len(content) > MAX_BODY_BYTES:
        raise OperatorError(f"{file}: expected at most {MAX_BODY_BYTES} bytes")
    return content


def request_of(method: str, url: str, content_type: str, body: bytes) -> SignedRequest:
    """What is to be signed. Raises OperatorError."""
    try:
        parsed = URL(url)
        if parsed.scheme not in DEFAULT_PORTS or not parsed.raw_host or parsed.raw_user is not None:
            raise ValueError(url)
    except ValueError:
        raise OperatorError(
            f"{url}: expected a whole URL, such as https://localhost:8443/external/apis/users"
        ) from None
    # Not the path as Python would write it: the bytes that go over the wire.
    return SignedRequest(
        method, parsed.scheme, parsed.raw_authority, parsed.raw_path, content_type, body, parsed.raw_query_string
    )


def _read(file: Path, limit: int) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(limit + 1)
    except OSError as error:
        raise OperatorError(f"{file}: {error.strerror or error}") from None


def secret_of(file: Path | None) -> str:
    """The secret. Editors end a file with a newline, which does not count."""
    if file is not None:
        content = _read(file, MAX_SECRET_BYTES)
        try:
            secret = content.decode().rstrip("\r\n")
        except UnicodeDecodeError:
            secret = ""
        if not secret or len(content) > MAX_SECRET_BYTES:
            raise OperatorError(f"{file}: expected a secret of at most {MAX_SECRET_BYTES} bytes, as text in UTF-8")
        return secret
    if given := os.environ.get(SECRET):
        return given
    if not sys.stdin.isatty():
        raise OperatorError(f"no secret: give --secret-file, or set {SECRET} in the environment")
    return str(typer.prompt("Secret of the API key", hide_input=True, err=True))


def check_header(request: SignedRequest, key: str, secret: str, header: str, date: str | None) -> None:
    """Say whether an Authorization header is right. Raises Exit with 1 if it is not."""
    now = time.time()
    header = header.removeprefix("Authorization:").strip()
    try:
        credentials = parse_authorization(header)
        if credentials.key != key:
            raise OperatorError(f"--check: the header names the key {credentials.key!a}, not {key}")
        check(request, credentials, date, ApiKey(key, secret, ""), nonces=Nonces(), now=now)
    except SignatureRefused as refused:
        typer.echo(f"wrong: {refused.message}\nfield: {refused.where}\nexpected: {refused.expected}")
        raise typer.Exit(1) from None
    typer.echo("right: the signature matches, and its date would be taken now")


def check_own(request: SignedRequest, key: str, secret: str, headers: dict[str, str]) -> None:
    """Ask the server's own code whether it would take this. Raises OperatorError for what it never takes.

    A date of another time is only warned about: it shows what the server answers.
    """
    if not request.method.isalpha():
        raise OperatorError(f"{request.method!a}: expected a method, such as POST")
    if not (key.isascii() and key.isprintable()) or set(key) & {" ", ":"}:
        raise OperatorError(f"--key: expected a name without spaces and colons, got {key!a}")
    if not headers["Date"].isprintable():
        raise OperatorError(f"--date: expected one line, got {headers['Date'][:64]!a}")
    try:
        credentials = parse_authorization(headers["Authorization"])
        check(request, credentials, headers["Date"], ApiKey(key, secret, ""), nonces=Nonces(), now=time.time())
    except SignatureRefused as refused:
        if refused.code != "clock_skew":
            option = _OPTIONS.get(refused.code, "--key")
            raise OperatorError(f"{option}: {refused.message}; expected {refused.expected}") from None
        typer.echo(f"warning: the server refuses this: {refused.message}; expected {refused.expected}", err=True)


def curl_of(request: SignedRequest, url: str, headers: dict[str, str]) -> str:
    """A command for curl that sends the request."""
    if request.content_type:
        headers = {"Content-Type": request.content_type, **headers}
    words = ["curl", "-X", request.method.upper()]
    for name, value in headers.items():
        words += ["-H", f"{name}: {value}"]
    if request.body:
        words += ["--data-binary", os.fsdecode(request.body)]
    return shlex.join([*words, url])
