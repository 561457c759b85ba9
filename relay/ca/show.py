"""An authority's folder as tables for a terminal, and as lines for the relay's configuration."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from rich import box
from rich.table import Table
from rich.text import Text

from relay.ca.folder import RENEW_BEFORE, AuthorityFolder


def tables_of(folder: AuthorityFolder, now: datetime.datetime) -> Iterator[Table]:
    """A table of generations, with the fingerprint that clients show, and one of hosts."""
    authorities = Table("authority", "can vouch for", "valid until", box=box.SIMPLE_HEAD)
    # In full, so that it can be compared with what a client shows.
    authorities.add_column("SHA-256", overflow="fold")
    for each in folder.authorities:
        fingerprint = each.certificate.fingerprint(hashes.SHA256()).hex(":", 1).upper()
        mark = " (signs)" if each is folder.newest else ""
        until = _until(each.certificate.not_valid_after_utc, now)
        # As Text, because rich would replace :CD: by a picture of one, for example.
        authorities.add_row(f"{each.path.name}{mark}", " ".join(each.permitted), until, Text(fingerprint))
    yield authorities

    hosts = Table("host", "valid until", "signed by", box=box.SIMPLE_HEAD)
    for host in folder.hosts():
        signer = "an authority that is not in this folder" if host.generation is None else f"ca-{host.generation}"
        hosts.add_row("\n".join(host.names), _until(host.until, now), signer)
    yield hosts


def _until(moment: datetime.datetime, now: datetime.datetime) -> str:
    day = moment.date().isoformat()
    if moment < now:
        return f"{day} ENDED"
    return f"{day} renew now" if moment < now + RENEW_BEFORE else day


def ended(folder: AuthorityFolder, now: datetime.datetime) -> bool:
    """True if the authority that signs has expired, or a host's certificate."""
    return folder.newest.ended(now) or any(host.until < now for host in folder.hosts())


def toml_of(folder: AuthorityFolder, prefix: Path | None = None) -> str:
    """``[[certificates]]`` of all hosts. Put it after the relay's own certificate, which is the default.

    The path is absolute on this machine, or in ``prefix``, the folder on the relay's own machine. Empty without hosts.
    """
    hosts = folder.hosts()
    if not hosts:
        return ""
    placed = hosts[0].files.chain.resolve().parent if prefix is None else prefix
    return (
        "[[certificates]] # all in this folder, also those to come\n"
        f"certificate = {_quoted(placed / '*.pem')}\n"
        f"private_key = {_quoted(placed / '*.key')}\n"
    )


def _quoted(path: Path) -> str:
    # A JSON string is also a TOML string, except for pairs of surrogates.
    return json.dumps(str(path), ensure_ascii=False)
