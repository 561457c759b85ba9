"""Opens Redis, if it is configured. Only then its library is imported."""

from __future__ import annotations

import ssl

from relay.config import ClusterSettings
from relay.errors import OperatorError
from relay.gateway.cluster.client import Client


def check_cluster(settings: ClusterSettings) -> None:
    """Look whether the library is there, and the files can be used. Raises OperatorError."""
    if settings.redis is None:
        return
    open_client(settings, "check")
    try:
        ssl.create_default_context(cafile=settings.ca_file)
    except ssl.SSLError as error:
        text = f"expected certificates in PEM: {error.reason or error}"
        raise OperatorError(f"{settings.ca_file} (cluster.ca_file): {text}") from None
    except OSError as error:
        raise OperatorError(f"{settings.ca_file} (cluster.ca_file): {(error.strerror or str(error)).lower()}") from None


def open_client(settings: ClusterSettings, identity: str) -> Client:
    """For the relay with this id. Connects to nothing yet. Raises OperatorError."""
    try:
        from relay.gateway.cluster.redis_client import RedisClient
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] != "redis":
            raise
        raise OperatorError("cluster.redis needs redis: install cloud9-relay[cluster]") from None
    return RedisClient(settings, identity)
