"""All that ``relay check-config`` finds without asking other machines, and the line that sums it up."""

from __future__ import annotations

import datetime
from pathlib import Path

from relay.config import Config
from relay.gateway import descriptors
from relay.gateway.certificates.client_ca import KEY, read_authorities
from relay.gateway.certificates.files import keys_of
from relay.gateway.certificates.findings import find_all, find_in_authorities
from relay.gateway.checking.exposure import find_exposures
from relay.gateway.checking.files import check
from relay.gateway.checking.machine import check_addresses
from relay.gateway.entitlement.verdicts import check_entitlement


def find_warnings(settings: Config, source: Path, now: datetime.datetime, *, addresses: bool) -> list[str]:
    """Look at files and, with ``addresses``, at this machine's. Raises OperatorError for mistakes, and changes nothing.

    ``source`` is the file of the settings, ``now`` is in UTC.
    """
    _, certificates = check(settings)
    check_entitlement(settings.entitlement)
    keys = {str(pair.chain): f"{key}: " for pair, key in keys_of(settings.certificates).items()}
    findings = find_all(certificates, settings.routes, now)
    if settings.listen.client_ca is not None:
        keys[str(settings.listen.client_ca)] = f"{KEY}: "
        findings += find_in_authorities(read_authorities(settings.listen.client_ca), now)
    warnings = [f"{keys.get(finding.where, '')}{finding}" for finding in findings]
    if addresses:
        warnings += [*check_addresses(settings), *descriptors.find(settings)]
    return [*warnings, *find_exposures(settings, source)]


def sum_up(settings: Config, warnings: int) -> str:
    """What there is, in a few words."""
    said = [_counted(len(settings.upstreams), "upstream"), _counted(len(settings.routes), "route")]
    asked = settings.listen.client_certificates.items()
    said += [f"client certificates {asks} at {address}" for address, asks in asked]
    return ", ".join([*said, _counted(warnings, "warning")] if warnings else said)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
