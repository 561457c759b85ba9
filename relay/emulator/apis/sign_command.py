"""``relay emulate sign``: sign a request by hand, or find out why a signature is wrong.

The options are here, and everything else is imported when the command runs: all commands of ``relay`` know the options.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

SECRET = "RELAY_API_SECRET"  # noqa: S105 - the variable's name


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
    from relay.emulator.apis import signing
    from relay.emulator.apis import signing_by_hand as by_hand

    content = by_hand.body_of(body, body_file)
    request = by_hand.request_of(method, url, content_type or ("application/json" if content else ""), content)
    if check_header is not None:
        by_hand.check_header(request, key, by_hand.secret_of(secret_file), check_header, date)
        return
    nonce, date = nonce or signing.new_nonce(), date or signing.http_date(time.time())
    secret = by_hand.secret_of(secret_file)
    headers = signing.sign(request, key, secret, nonce=nonce, date=date)
    by_hand.check_own(request, key, secret, headers)
    if show:
        typer.echo(
            signing.string_to_sign(request, key, nonce, date).decode("utf-8", "backslashreplace"), nl=False, err=True
        )
    if curl:
        typer.echo(by_hand.curl_of(request, url, headers))
        return
    for name, value in headers.items():
        typer.echo(f"{name}: {value}")
