"""``relay emulate sign``: sign a request by hand, or find out why a signature is wrong.

The secret comes from a file, from the environment or from the terminal, and never from the command line, where every
user of the machine could read it.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from yarl import URL

from relay.emulator.apis.nonces import Nonces
from relay.emulator.apis.signing import DEFAULT_PORTS, SignedRequest, http_date, new_nonce, sign, string_to_sign
from relay.emulator.apis.verifying import ApiKey, SignatureRefused, check, parse_authorization
from relay.errors import OperatorError

SECRET = "RELAY_API_SECRET"  # noqa: S105 - the variable's name
# The bodies of the APIs are small, and the server takes no larger ones.
MAX_BODY_BYTES = 1 << 20
MAX_SECRET_BYTES = 1024
# Which option makes the server refuse what was signed.
_OPTIONS = {"malformed_nonce": "--nonce", "malformed_date": "--date", "no_date": "--date"}


def sign_command(
    method: Annotated[str, typer.Argument(help="GET or POST, for example. For a CTI message: GET.")],
    url: Annotated[str, typer.Argument(help="The whole URL: https://, http://, wss:// or ws://.")],
    key: Annotated[str, typer.Option(help="The API key.")],
    *,
    secret_file: Annotated[
        Path | None,
        typer.Option(help=f"A file with the key's secret. Otherwise {SECRET} in the environment, or a prompt."),
    ] = None,
    body: Annotated[str | None, typer.Option(help="The body, as text.")] = None,
    body_file: Annotated[Path | None, typer.Option(help="A file with the body; - for standard input.")] = None,
    content_type: Annotated[
        str | None, typer.Option(help="The request's Content-Type. Default: application/json if there is a body.")
    ] = None,
    nonce: Annotated[str | None, typer.Option(help="A UUID of version 4. Default: a new one.")] = None,
    date: Annotated[str | None, typer.Option(help="The Date header. Default: now.")] = None,
    check_header: Annotated[
        str | None,
        typer.Option("--check", metavar="AUTHORIZATION", help="Check this Authorization header instead; needs --date."),
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Print the string to sign on stderr.")] = False,
    curl: Annotated[bool, typer.Option("--curl", help="Print a curl command instead of headers.")] = False,
) -> None:
    """Print the headers that sign a request, or check those of one. Exits with 1 if a checked signature is wrong."""
    content = _body(body, body_file)
    request = _request(method, url, content_type or ("application/json" if content else ""), content)
    if check_header is not None:
        _check(request, key, _secret(secret_file), check_header, date)
        return
    nonce, date = nonce or new_nonce(), date or http_date(time.time())
    secret = _secret(secret_file)
    headers = sign(request, key, secret, nonce=nonce, date=date)
    _check_own(request, key, secret, headers)
    if show:
        typer.echo(string_to_sign(request, key, nonce, date).decode("utf-8", "backslashreplace"), nl=False, err=True)
    if curl:
        typer.echo(_curl(request, url, headers))
        return
    for name, value in headers.items():
        typer.echo(f"{name}: {value}")


def _request(method: str, url: str, content_type: str, body: bytes) -> SignedRequest:
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


def _body(text: str | None, file: Path | None) -> bytes:
    if text is not None and file is not None:
        raise OperatorError("expected --body or --body-file, not both")
    if file is None:
        return os.fsencode(text or "")
    content = sys.stdin.buffer.read(MAX_BODY_BYTES + 1) if str(file) == "-" else _read(file, MAX_BODY_BYTES)
    if len(content) > MAX_BODY_BYTES:
        raise OperatorError(f"{file}: expected at most {MAX_BODY_BYTES} bytes")
    return content


def _read(file: Path, limit: int) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(limit + 1)
    except OSError as error:
        raise OperatorError(f"{file}: {error.strerror or error}") from None


def _secret(file: Path | None) -> str:
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


def _check(request: SignedRequest, key: str, secret: str, header: str, date: str | None) -> None:
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


def _check_own(request: SignedRequest, key: str, secret: str, headers: dict[str, str]) -> None:
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


def _curl(request: SignedRequest, url: str, headers: dict[str, str]) -> str:
    if request.content_type:
        headers = {"Content-Type": request.content_type, **headers}
    words = ["curl", "-X", request.method.upper()]
    for name, value in headers.items():
        words += ["-H", f"{name}: {value}"]
    if request.body:
        words += ["--data-binary", os.fsdecode(request.body)]
    return shlex.join([*words, url])
