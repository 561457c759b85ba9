"""The relay of this tree for a benchmark: one worker, and its admin listener at the UDP port of its place."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from typing import Any

from loadtest.bench.servers import HOST, Command, Place
from tests.support.benches.gateway import write_config

# One core for its packets: the other is the clients'.
WORKERS = 1


def tree(place: Place, options: argparse.Namespace, **sections: Mapping[str, Any]) -> dict[str, Any]:
    """Its settings. ``options`` may have ``workers`` and ``plane``."""
    files = {"certificate": str(place.certificate.chain), "private_key": str(place.certificate.private_key)}
    listen = {"tls": [f"{HOST}:{place.tls_port}"], "admin": f"{HOST}:{place.udp_port}"}
    return {
        "listen": {
            **listen,
            "workers": getattr(options, "workers", WORKERS),
            "plane": options.plane or "compiled",
        },
        "certificates": [files],
        "upstreams": [{"name": "bench", "address": f"{HOST}:{place.echo_port}"}],
        **sections,
    }


def command(place: Place, options: argparse.Namespace, **sections: Mapping[str, Any]) -> Command:
    """How it is started. Its settings are written into the folder of the place."""
    path = place.folder / "relay.toml"
    write_config(path, tree(place, options, **sections))
    return [sys.executable, "-m", "relay", "serve", "--config", path], dict(os.environ)
