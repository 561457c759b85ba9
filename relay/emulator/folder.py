"""The files that an emulator writes for its users: trust, names, proxies, environment, and a relay's configuration.

ca.pem          what clients must trust
hosts           lines for /etc/hosts: every host of the vendor's that exists
proxy.pac       sends the vendor's names to the relay's web proxy
emulator.env    addresses and files, as shell variables
emulator.json   the same and more, for programs
relay.toml      a relay whose upstreams, routes, entitlement and signaling are this emulator
browser.sh      starts Chromium so that it trusts the authority, and finds the vendor's names
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import json
import shlex
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from relay import writing
from relay.addresses import Address
from relay.catalog import Service, render_pac
from relay.emulator.cloud import Cloud
from relay.emulator.settings import MediaHost, media_hosts

ENTITLEMENT_PATH = "/entitlement/v1/voice"
SECRET_MODE = 0o600


def urls(cloud: Cloud) -> dict[str, str]:
    """What a user can click: pages on this machine that need neither a hosts file nor trust."""
    base = f"http://localhost:{cloud.http.port}"
    return {
        "welcome": f"{base}/",
        "softphone": f"{base}/softphone/",
        "portal": f"{base}/portal/",
        "description of the APIs": f"{base}/openapi.json",
    }


def write_files(cloud: Cloud) -> None:
    """Write all files. Raises OperatorError."""
    folder, catalog = cloud.settings.folder, cloud.settings.catalog
    proxy = str(cloud.settings.relay.web_proxy)
    writing.replace(folder / "hosts", _hosts(cloud).encode())
    writing.replace(folder / "proxy.pac", render_pac(catalog, proxy).encode())
    writing.replace(folder / "emulator.env", _environment(cloud).encode(), mode=SECRET_MODE)
    writing.replace(folder / "emulator.json", json.dumps(_facts(cloud), indent=2).encode() + b"\n", mode=SECRET_MODE)
    writing.replace(folder / "relay.toml", relay_toml(cloud).encode(), mode=SECRET_MODE)
    write_browser(cloud)


def write_browser(cloud: Cloud) -> Path:
    """Write ``browser.sh``. Returns where it is. Raises OperatorError."""
    path = cloud.settings.folder / "browser.sh"
    writing.replace(path, _browser(cloud).encode(), mode=0o755)
    return path


def _running_media(cloud: Cloud) -> list[MediaHost]:
    return [host for host in media_hosts(cloud.settings.catalog) if cloud.names.exists(host.name)]


def _hosts(cloud: Cloud) -> str:
    lines = [f"{host.host} {host.name}" for host in _running_media(cloud)]
    lines += [
        f"{cloud.tls.host} {host.name}"
        for host in cloud.settings.catalog.hosts
        if host.service is not Service.MEDIA and cloud.names.exists(host.name)
    ]
    return "# The vendor's names on this machine. Append these lines to /etc/hosts.\n" + "\n".join(lines) + "\n"


def _facts(cloud: Cloud) -> dict[str, object]:
    return {
        "http": f"http://{cloud.http}",
        "tls": f"https://{cloud.tls}",
        "urls": urls(cloud),
        "ca": str(cloud.files.ca),
        "turn_secret": cloud.turn_secret,
        "turn_hosts": {host.name: str(host.address) for host in cloud.running_hosts()},
        # As desks reach them: over UDP by the line that faults make bad.
        "desk_hosts": {
            host.name: {"udp": str(host.udp), "tls": str(Address(host.address.host, host.tls_port))}
            for host in cloud.running_hosts()
        },
        # Faults make it bad on demand.
        "bad_web_proxy": None if cloud.faults.web_proxy is None else str(cloud.faults.web_proxy.address),
        "relay": {
            "tls": str(cloud.settings.relay.tls),
            "web_proxy": str(cloud.settings.relay.web_proxy),
            "admin": str(cloud.settings.relay.admin),
        },
    }


def _environment(cloud: Cloud) -> str:
    relay = cloud.settings.relay
    values = {
        "C9_HTTP": f"http://{cloud.http}",
        "C9_TLS": f"https://{cloud.tls}",
        "C9_CA": str(cloud.files.ca),
        "C9_PAC": str(cloud.settings.folder / "proxy.pac"),
        "C9_HOSTS": str(cloud.settings.folder / "hosts"),
        "C9_TURN_SECRET": cloud.turn_secret,
        "C9_RELAY_TLS": str(relay.tls),
        "C9_RELAY_WEB_PROXY": f"http://{relay.web_proxy}",
        "C9_RELAY_ADMIN": f"http://{relay.admin}",
    }
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in values.items())


def relay_toml(cloud: Cloud) -> str:
    """A configuration for ``relay serve`` that makes this emulator its cloud."""
    plan, files = cloud.settings.relay, cloud.files
    upstreams = "".join(
        f'\n[[upstreams]]\nname = "{host.name.removesuffix(".xhoot.com")}"\nregion = "{host.region}"\n'
        f'address = "{host.address}"\nsecret = "{cloud.turn_secret}"\n'
        for host in cloud.running_hosts()
    )
    regions = dict.fromkeys(host.region for host in cloud.running_hosts())
    routes = "".join(
        f'\n[[routes]]\nserver_name = "*.{region}.prod1.xhoot.com"\nregion = "{region}"\n' for region in regions
    )
    media_routes = "".join(
        f'\n[[routes]]\nserver_name = "{host.name}"\nregion = "{host.region}"\n'
        for host in cloud.running_hosts()
        if not host.name.endswith(f".{host.region}.prod1.xhoot.com")
    )
    # Whoever wants the dashboard elsewhere has said so, and there is nothing to protect in a cloud that is not real.
    loopback = ipaddress.ip_address(plan.admin.host).is_loopback
    unprotected = "" if loopback else "\nadmin_unprotected = true"
    return f"""\
# A relay between clients and the emulator. Written by `relay emulate` at each start; changes are lost.
# Check it with: relay check-config relay.toml. Run it with: relay serve --config relay.toml

[listen]
tls = ["{plan.tls}"]
web_proxy = ["{plan.web_proxy}"]
admin = "{plan.admin}"{unprotected}

[[certificates]]
certificate = {_quoted(files.chain)}
private_key = {_quoted(files.key)}
{upstreams}{routes}{media_routes}
[signaling]
upstreams = ["http://{cloud.http}"]

[entitlement]
policy = "http"
url = "http://{cloud.http}{ENTITLEMENT_PATH}"
token = "{cloud.entitlement_token}"
# Twice the default: on a laptop the emulator, the relay and a browser share two cores.
timeout_s = 4.0
# So that a change in the portal is seen at the next login.
cache_s = 1.0
refused_cache_s = 1.0
"""


def _quoted(path: Path) -> str:
    # A JSON string is a TOML string.
    return json.dumps(str(path.absolute()))


def _browser(cloud: Cloud) -> str:
    certificate = x509.load_pem_x509_certificate(cloud.files.ca.read_bytes())
    public = certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    fingerprint = base64.b64encode(hashlib.sha256(public).digest()).decode()
    folder = shlex.quote(str(cloud.settings.folder.absolute() / "browser"))
    return f"""\
#!/bin/sh
# Starts Chromium with a profile of its own that trusts the emulator's authority. Arguments are passed on, such as
# --proxy-server={cloud.settings.relay.web_proxy}. It opens the softphone, unless a URL is among them.
url=http://localhost:{cloud.http.port}/softphone/
for argument in "$@"; do
    case "$argument" in
        -*) ;;
        *) url= ;;
    esac
done
# As root, Chromium starts only without its sandbox.
[ "$(id -u)" -ne 0 ] || set -- --no-sandbox "$@"
exec "${{CHROMIUM:-chromium}}" --user-data-dir={folder} --no-first-run \\
    --ignore-certificate-errors-spki-list={fingerprint} \\
    "$@" ${{url:+"$url"}}
"""
