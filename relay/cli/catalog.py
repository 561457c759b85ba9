"""``relay catalog`` and ``relay allowlist``: the vendor's requirements, shown, compared, and written for products."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from relay import writing
from relay.catalog import Catalog, Format, compare, load, load_version, render_allowlist

app = typer.Typer(help="The vendor's network requirements as versioned data.", no_args_is_help=True)

CATALOG_HELP = "A version that comes with the relay, or a TOML or JSON file. Default: the newest version."
CatalogOption = Annotated[str | None, typer.Option("--catalog", metavar="CATALOG", help=CATALOG_HELP)]


def catalog_of(version: str | None) -> Catalog:
    """The catalog that ``--catalog`` names. Raises OperatorError."""
    return load() if version is None else load_version(version)


def allowlist(
    kind: Annotated[Format, typer.Option("--format", help="The product or format to write for.")],
    version: CatalogOption = None,
    hosts_only: Annotated[
        bool,
        typer.Option("--hosts-only", help="List hosts, not the vendor's wildcards. Hosts change without warning."),
    ] = False,
    proxy: Annotated[str | None, typer.Option(help="For a PAC: host:port of the web proxy.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write to a file instead of stdout.")
    ] = None,
) -> None:
    """Write the vendor's hosts, networks and ports as an allow-list for a web proxy or a firewall."""
    catalog = catalog_of(version)
    if kind is Format.PAC and proxy is None:
        proxy = "relay.example.com:3128"
        typer.echo(f"relay: the PAC names {proxy}: give your own proxy with --proxy", err=True)
    text = render_allowlist(catalog, kind, hosts_only=hosts_only, proxy=proxy)
    if output is None:
        typer.echo(text, nl=False)
    else:
        writing.replace(output, text.encode("ascii"))
        typer.echo(f"{output}: {kind}, {text.count(chr(10))} lines, as of {catalog.as_of}")


@app.command("show")
def show(
    version: Annotated[str | None, typer.Argument(metavar="CATALOG", show_default=False, help=CATALOG_HELP)] = None,
) -> None:
    """Show the domains, ports, networks and hosts of a catalog."""
    from relay.catalog.show import tables_of

    for table in tables_of(catalog_of(version)):
        Console().print(table)


@app.command("diff")
def diff(
    old: Annotated[str, typer.Argument(metavar="A", help="A version, or a file.")],
    new: Annotated[str, typer.Argument(metavar="B", help="A version, or a file.")],
) -> None:
    """Show what was added (+), removed (-) and changed (~) from A to B. Exits with 1 if they differ, otherwise 0."""
    changes = compare(load_version(old), load_version(new))
    for change in changes:
        typer.echo(str(change))
    if changes:
        raise typer.Exit(1)
