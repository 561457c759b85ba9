"""The servers that benchmarks measure: how each is started, what it speaks, and why it cannot be measured here.

relay            the compiled plane; ``reference`` is the reference plane
coturn           Debian's
emulator         the TURN host of ``relay emulate``, alone; ``emulator-slow`` is its twin in Python
pion             a program over Debian's package of pion/turn, built here
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from relay.plane.certificates import Certificate

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent.parent
BUILD = ROOT / "build" / "bench"
HOST = "127.0.0.1"
# coturn's own ports. The ports below these are for outgoing connections, and would collide.
COTURN_PORTS = (61_000, 65_535)
# A long-term credential, the same for all servers that ask for one.
USER, PASSWORD, REALM = "bench", "bench", "cloud9"
# Where Debian's packages have their sources.
GO_SOURCES = Path("/usr/share/gocode/src")
OVER_TLS = ("tls", "websocket", "session", "connect-udp")
TURN = ("tls", "udp")

Command = tuple[list[str | Path], dict[str, str]]


class BenchError(Exception):
    """Something could not start. The message says what."""


@dataclass(frozen=True)
class Place:
    """Where a server listens, and what it is given: a folder of its own, a certificate, and the echo past it.

    The echo is the upstream of a relay and the peer of a TURN server. With ``credentials`` clients have to know them.
    """

    folder: Path
    certificate: Certificate
    tls_port: int
    udp_port: int
    echo_port: int
    credentials: bool = True

    def port(self, carrier: str) -> int:
        """The port for clients of a carrier."""
        return self.udp_port if carrier == "udp" else self.tls_port


def _never() -> str:
    return ""


@dataclass(frozen=True)
class Kind:
    """A kind of server. ``command`` has the command and its environment; ``missing`` says why it cannot be started.

    ``slow`` are carriers whose packets Python forwards: a core of it carries dozens of calls, not hundreds.
    """

    carriers: tuple[str, ...]
    command: Callable[[Place], Command]
    missing: Callable[[], str] = _never
    slow: tuple[str, ...] = ()


def relay(place: Place, plane: str = "") -> Command:
    """The relay in the environment of this Python. Without a plane it has its own default."""
    environment = {
        **os.environ,
        **({"RELAY_PLANE": plane} if plane else {}),
        "RELAY_CERT": str(place.certificate.chain),
        "RELAY_KEY": str(place.certificate.private_key),
        "RELAY_DIR": str(place.folder),
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
    }
    return [FOLDER / "start-relay.sh", str(place.tls_port), str(place.echo_port)], environment


def coturn(place: Place) -> Command:
    """turnserver with one forwarding thread, because the relay also has one worker on its core."""
    lines = [
        f"listening-ip={HOST}",
        f"relay-ip={HOST}",
        f"listening-port={place.udp_port}",
        f"tls-listening-port={place.tls_port}",
        f"min-port={COTURN_PORTS[0]}",
        f"max-port={COTURN_PORTS[1]}",
        f"cert={place.certificate.chain}",
        f"pkey={place.certificate.private_key}",
        f"userdb={place.folder / 'users.sqlite'}",
        f"pidfile={place.folder / 'pid'}",
        "relay-threads=1",
        f"realm={REALM}",
        *(["lt-cred-mech", f"user={USER}:{PASSWORD}"] if place.credentials else ["no-auth"]),
        *("allow-loopback-peers", "no-cli", "no-dtls", "log-file=stdout", "simple-log", ""),
    ]
    path = place.folder / "turnserver.conf"
    path.write_text("\n".join(lines))
    return ["turnserver", "-c", path], dict(os.environ)


def _coturn_missing() -> str:
    return "" if shutil.which("turnserver") else "coturn is not installed"


def emulator(place: Place, plane: str = "native") -> Command:
    """One TURN host of the emulator."""
    pair = [str(place.certificate.chain), str(place.certificate.private_key)]
    ports = [str(place.udp_port), str(place.tls_port)]
    command = [sys.executable, "-m", "loadtest.bench.turn_host", plane, *ports, *pair]
    return list(command), dict(os.environ, PYTHONPATH=str(ROOT))


def pion(place: Place) -> Command:
    """The server of ``pion/main.go``."""
    addresses = [f"-udp={HOST}:{place.udp_port}", f"-tls={HOST}:{place.tls_port}"]
    pair = [f"-certificate={place.certificate.chain}", f"-key={place.certificate.private_key}"]
    credential = [f"-realm={REALM}", f"-user={USER}", f"-password={PASSWORD}"]
    return [BUILD / "pion", *addresses, *pair, *credential], dict(os.environ)


def _pion_missing() -> str:
    """Builds it, if it can."""
    if shutil.which("go") is None:
        return "golang-go is not installed"
    if not (GO_SOURCES / "github.com/pion/turn/v2").is_dir():
        return "golang-github-pion-turn.v2-dev is not installed"
    try:
        build("pion")
    except BenchError as error:
        return f"it does not build: {str(error).splitlines()[0]}"
    return ""


KINDS = {
    "relay": Kind(OVER_TLS, functools.partial(relay, plane="compiled")),
    "reference": Kind(OVER_TLS, functools.partial(relay, plane="reference"), slow=OVER_TLS),
    "coturn": Kind(TURN, coturn, _coturn_missing),
    "emulator": Kind(TURN, emulator, slow=("tls",)),
    "emulator-slow": Kind(TURN, functools.partial(emulator, plane="slow"), slow=TURN),
    "pion": Kind(TURN, pion, _pion_missing),
}


def build(*targets: str) -> None:
    """Build programs into ``BUILD``, by default those in C. Raises BenchError with the compiler's message."""
    made = subprocess.run(  # noqa: S603
        ["make", "--silent", f"--directory={FOLDER}", f"BUILD={BUILD}", *targets],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise BenchError(made.stdout + made.stderr)
