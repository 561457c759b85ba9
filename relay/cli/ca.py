"""``relay ca``: the firm's own certificate authority, for media hosts or for clients."""

from __future__ import annotations

import datetime
import functools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from relay.cli.catalog import CatalogOption, catalog_of
from relay.errors import OperatorError

if TYPE_CHECKING:
    from relay.ca import AuthorityFolder

app = typer.Typer(
    help="The firm's own certificate authority: for names in the catalog's domains, or for clients.",
    no_args_is_help=True,
)

CaFolder = Annotated[Path, typer.Argument(metavar="DIR", help="The authority's folder.")]
DaysOption = Annotated[int, typer.Option(min=1, max=3650, help="How long it is valid.")]
FIVE_YEARS_DAYS = 1826
PASSPHRASE = "RELAY_CA_PASSPHRASE"  # noqa: S105 - the variable's name


def _ask_passphrase(key: Path) -> bytes:
    """The passphrase of an existing key: from the environment, or asked for at the terminal."""
    if given := os.environ.get(PASSPHRASE):
        return given.encode()
    if not sys.stdin.isatty():
        raise OperatorError(f"{key}: has a passphrase: set {PASSPHRASE} in the environment")
    return str(typer.prompt(f"Passphrase of {key}", hide_input=True, err=True)).encode()


def _new_passphrase(wanted: bool) -> bytes | None:
    if given := os.environ.get(PASSPHRASE):
        return given.encode()
    if not wanted:
        return None
    if not sys.stdin.isatty():
        raise OperatorError(
            f"--encrypt: needs a passphrase: set {PASSPHRASE} in the environment, or run it in a terminal"
        )
    return str(typer.prompt("Passphrase", hide_input=True, confirmation_prompt=True, err=True)).encode()


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


@app.command("create")
def create(
    directory: CaFolder,
    *,
    name: Annotated[str, typer.Option(help="The authority's name, as clients display it.")] = "cloud9-relay CA",
    days: DaysOption = FIVE_YEARS_DAYS,
    encrypt: Annotated[
        bool, typer.Option("--encrypt", help=f"Ask for a passphrase for its key. {PASSPHRASE} does the same.")
    ] = False,
    clients: Annotated[
        bool, typer.Option("--clients", help="Vouch for clients instead. The relay must trust it: listen.client_ca.")
    ] = False,
    version: CatalogOption = None,
) -> None:
    """Make an authority that can vouch only for names in the catalog's domains. Clients must trust bundle.pem."""
    from relay.ca import AuthorityFolder

    catalog = catalog_of(version)
    passphrase = _new_passphrase(encrypt)
    lifetime = datetime.timedelta(days=days)
    made = AuthorityFolder.create(
        directory, catalog, _now(), name=name, lifetime=lifetime, passphrase=passphrase, for_clients=clients
    )
    _tell_new_generation(made)


@app.command("rotate")
def rotate(
    directory: CaFolder,
    days: DaysOption = FIVE_YEARS_DAYS,
    encrypt: Annotated[bool, typer.Option("--encrypt", help="Ask for a new passphrase, not the old key's.")] = False,
    version: CatalogOption = None,
) -> None:
    """Make the authority's next generation. The old one stays in bundle.pem, and so trusted, until it expires."""
    from relay.ca import AuthorityFolder

    catalog = catalog_of(version)
    lifetime = datetime.timedelta(days=days)
    folder = AuthorityFolder.open(directory)
    passphrase = _new_passphrase(encrypt) if encrypt or not folder.newest.key_path.exists() else None
    made = folder.rotate(catalog, _now(), _ask_passphrase, lifetime=lifetime, passphrase=passphrase)
    _tell_new_generation(made)
    if not made.newest.for_clients:
        typer.echo(f"When all clients trust the new bundle: relay ca issue {directory} --media-hosts --renew")


def _tell_new_generation(made: AuthorityFolder) -> None:
    newest = made.newest
    until = newest.certificate.not_valid_after_utc.date()
    vouches_for = "clients" if newest.for_clients else f"names in {', '.join(newest.permitted)}"
    typer.echo(f"{newest.path}: for {vouches_for}, until {until}")
    trusts = "the relay must trust (listen.client_ca)" if newest.for_clients else "clients must trust"
    typer.echo(f"{made.bundle}: what {trusts}")


@app.command("issue")
def issue(
    directory: CaFolder,
    hosts: Annotated[list[str] | None, typer.Argument(metavar="HOST", help="Hosts of the catalog.")] = None,
    *,
    media_hosts: Annotated[bool, typer.Option("--media-hosts", help="All media hosts of the catalog.")] = False,
    wildcards: Annotated[
        bool, typer.Option("--wildcards", help="One certificate for all of the catalog's domains, signaling included.")
    ] = False,
    clients: Annotated[
        list[str] | None,
        typer.Option("--client", metavar="NAME", help="A client, by an authority for clients. May be repeated."),
    ] = None,
    renew: Annotated[bool, typer.Option("--renew", help="Renew certificates even if they have time left.")] = False,
    version: CatalogOption = None,
) -> None:
    """Issue one certificate for each host, valid for 365 days. Existing ones are renewed in their last 30 days.

    Those of clients are valid for 30 days, and are renewed in their last 10.
    """
    from relay.ca import AuthorityFolder
    from relay.ca.folder import WILDCARDS

    catalog = catalog_of(version)
    names = [*(hosts or ()), *(host.name for host in catalog.media_hosts if media_hosts)]
    if not names and not wildcards and not clients:
        raise OperatorError("expected hosts, --media-hosts, --wildcards, or --client")
    folder, now = AuthorityFolder.open(directory), _now()
    ask = functools.cache(_ask_passphrase)
    issued = folder.issue(catalog, names, now, ask, renew=renew) if names else ()
    if wildcards:
        issued += folder.issue(catalog, catalog.domains, now, ask, stem=WILDCARDS, renew=renew)
    if clients:
        issued += folder.issue_clients(clients, now, ask, renew=renew)
    for each in issued:
        typer.echo(f"{each.files.chain}: {'issued' if each.fresh else 'kept'}, until {each.until.date()}")


@app.command("show")
def show(
    directory: CaFolder,
    as_toml: Annotated[
        bool, typer.Option("--toml", help="Print the hosts' certificates as lines for the relay's configuration.")
    ] = False,
    prefix: Annotated[
        Path | None,
        typer.Option(
            help="With --toml: the folder on the relay's machine with the files of ca/hosts, such as /etc/relay/hosts."
        ),
    ] = None,
) -> None:
    """Show the generations of an authority, and what they have signed. Exits with 1 if something has expired."""
    from relay.ca import AuthorityFolder
    from relay.ca.show import ended, tables_of, toml_of

    if prefix is not None and not as_toml:
        raise OperatorError("--prefix: needs --toml")
    folder, now = AuthorityFolder.open(directory), _now()
    if as_toml:
        typer.echo(toml_of(folder, prefix), nl=False)
        return
    for table in tables_of(folder, now):
        Console().print(table)
    if ended(folder, now):
        raise typer.Exit(1)
