"""Whether the files that a configuration names can be used: certificates, records, the catalog, CAs, a password."""

from __future__ import annotations

import functools
from collections.abc import Callable

from relay import catalog
from relay.catalog import Catalog
from relay.config import Config
from relay.gateway.calls.database import check_file
from relay.gateway.calls.records import check_path
from relay.gateway.certificates.client_ca import read_authorities
from relay.gateway.certificates.files import read_all
from relay.gateway.certificates.ocsp import require_staples
from relay.gateway.cluster.opening import check_cluster
from relay.gateway.signaling.connections import open_trust
from relay.plane.certificates import ServerCertificate


def check(settings: Config) -> tuple[Callable[[], Catalog], list[ServerCertificate]]:
    """Look whether the files of a configuration can be used: at the start, in a reload, and for ``relay check-config``.

    Changes nothing. Returns the catalog, which has been read if it is the operator's own, and the certificates. Raises
    OperatorError.

    A list of users is not read here, because a bad one does not keep a relay from starting: a reload asks
    ``Entitlement.check``, and ``relay check-config`` asks ``check_entitlement``.
    """
    certificates = read_all(settings.certificates)
    require_staples(certificates, why_no_staples(settings))
    if settings.listen.client_ca is not None:
        read_authorities(settings.listen.client_ca)
    vendor = _vendor(settings)
    check_path(settings.quality.records)
    if settings.quality.calls is not None and settings.quality.calls_kept_days:
        check_file(settings.quality.calls)
    open_trust(settings.signaling)
    check_cluster(settings.cluster)
    return vendor, certificates


def why_no_staples(settings: Config) -> str:
    """Why a relay with these settings staples no OCSP responses; empty if it does."""
    if settings.listen.plane == "reference":
        return "the reference plane staples none"
    return "" if settings.ocsp.stapling else "ocsp.stapling is false"


def _vendor(settings: Config) -> Callable[[], Catalog]:
    """The catalog. The operator's is read now, so that mistakes show; the relay's own when it is first needed."""
    if settings.catalog.path is None:
        return functools.cache(catalog.load)
    given = catalog.load(settings.catalog.path)
    return lambda: given
