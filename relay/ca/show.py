"""An authority's folder as tables for a terminal, and as lines for the relay's configuration."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from rich import box
from rich.table import Table
from rich.text import Text

from relay.ca.folder import RENEW_BEFORE, RENEW_CLIENT_BEFORE, AuthorityFolder, HostCertificate


def tables_of(folder: AuthorityFolder, now: datetime.datetime) -> Iterator[Table]:
    """A table of generations, with the fingerprint that clients show, and one of hosts, or of clients."""
    authorities = Table("authority", "can vouch for", "valid until", box=box.SIMPLE_HEAD)
    # In full, so that it can be compared with what a client shows.
    authorities.add_column("SHA-256", overflow="fold")
    for each in folder.authorities:
        fingerprint = each.certificate.fingerprint(hashes.SHA256()).hex(":", 1).upper()
        mark = " (signs)" if each is folder.newest else ""
        until = _until(each.certificate.not_valid_after_utc, now)
        # As Text, because rich would replace :CD: by a picture of one, for example.
        vouches_for = "clients" if each.for_clients else " ".join(each.permitted)
        authorities.add_row(f"{each.path.name}{mark}", vouches_for, until, Text(fingerprint))
    yield authorities
    if folder.newest.for_clients:
        yield _issued("client", folder.clients(), RENEW_CLIENT_BEFORE, now)
    else:
        yield _issued("host", folder.hosts(), RENEW_BEFORE, now)


def _issued(
    what: str, certificates: Iterable[HostCertificate], renew_before: datetime.timedelta, now: datetime.datetime
) -> Table:
    table = Table(what, "valid until", "signed by", box=box.SIMPLE_HEAD)
    for one in certificates:
        signer = "an authority that is not in this folder" if one.generation is None else f"ca-{one.generation}"
        table.add_row("\n".join(one.names), _until(one.until, now, renew_before), signer)
    return table


def _until(moment: datetime.datetime, now: datetime.datetime, renew_before: datetime.timedelta = RENEW_BEFORE) -> str:
    day = moment.date().isoformat()
    if moment < now:
        return f"{day} ENDED"
    return f"{day} renew now" if moment < now + renew_before else day


def ended(folder: AuthorityFolder, now: datetime.datetime) -> bool:
    """True if the authority that signs has expired, or a certificate that it has signed."""
    return folder.newest.ended(now) or any(one.until < now for one in (*folder.hosts(), *folder.clients()))


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
