"""The configuration's bounds, as the data plane takes them."""

from __future__ import annotations

from dataclasses import fields

from relay.config import Config
from relay.gateway import descriptors
from relay.plane.settings import PlaneSettings


def plane_settings(settings: Config) -> PlaneSettings:
    """The bounds as the plane takes them.

    A bound in ``[limits]`` goes by its name. Those that the configuration calls otherwise, or counts in another unit,
    are listed here.
    """
    limits = settings.limits
    named_alike = {bound.name for bound in fields(PlaneSettings)} & set(type(limits).model_fields)
    return PlaneSettings(
        **{name: getattr(limits, name) for name in named_alike},
        source_ipv4=settings.media.source_of_version(4),
        source_ipv6=settings.media.source_of_version(6),
        max_descriptors=descriptors.bound(),
        max_connections=limits.connections,
        max_connections_per_source=limits.connections_per_source,
        allowed_clients=settings.access.allow,
        denied_clients=settings.access.deny,
        exempt_clients=limits.exempt_networks,
        max_media_age_s=settings.media.max_media_age_ms / 1000,
        playout_deadline_s=settings.quality.playout_deadline_ms / 1000,
        payload_clocks=settings.quality.payload_types,
    )
