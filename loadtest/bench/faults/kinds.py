"""The faults: how each is made and ended, what it needs from the start, and what proves that it was there.

Each is a row of ``KINDS``. ``strike`` begins it, ``heal`` ends it, and both return when that is done; in between the
plan's time passes. Those that need root say so.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from loadtest.bench.faults.calls import OTHERS, SHORT_PACKETS
from loadtest.bench.faults.processes import NOT_RELOADED, Json, Preparation, Upstream
from loadtest.bench.faults.scene import Scene
from loadtest.bench.servers import HOST, BenchError
from loadtest.bench.waiting import wait_until
from relay.addresses import Address
from relay.demo.authority import Authority
from tests.support.benches.gateway import write_config

Act = Callable[[Scene], None]


@dataclass(frozen=True)
class Kind:
    """One fault. ``what`` is for people.

    ``cuts`` where the calls that are struck may end. ``serves`` is False where not even newcomers of the others are
    served before it is over.
    """

    what: str
    strike: Act
    heal: Act
    proof: Callable[[Scene], bool]
    prepare: Callable[[Path], Preparation] = lambda _: Preparation()
    missing: Callable[[], str] = lambda: ""
    cuts: bool = False
    serves: bool = True


def _nothing(_: Scene) -> None:
    """It is over by itself."""


def _root() -> str:
    return "" if os.geteuid() == 0 else "it needs root"


# ---- The upstream


def _kill(scene: Scene) -> None:
    scene.upstream.kill()


def _start(scene: Scene) -> None:
    scene.upstream.start()


def _become(mood: str, scene: Scene) -> None:
    scene.upstream.become(mood)


def _is_refused(scene: Scene) -> bool:
    """Whether a newcomer was refused while it lasted."""
    return bool(scene.kept["refused"])


def _refuse(mood: str, scene: Scene) -> None:
    scene.upstream.become(mood)
    scene.kept["refused"] = scene.calls.newcomer_s("struck", 0.5) is None


def _has_malformed(scene: Scene) -> bool:
    return scene.relay.metric('relay_drops_total{reason="downlink_malformed"}') > 0


# ---- ICMP (RFC 792): type, code, and the header of the datagram that it is about

PORT_UNREACHABLE = (3, 3)
# Networks and hosts that cannot be reached, by routers on the way; a filter; a datagram that went round in circles.
OTHER_MESSAGES = ((3, 0), (3, 1), (3, 13), (11, 0))
EACH_S = 0.1


def _ports_to(port: int) -> list[int]:
    """Local ports of UDP sockets that are connected to a port of this machine (/proc/net/udp)."""
    rows = [line.split() for line in Path("/proc/net/udp").read_text(encoding="ascii").splitlines()[1:]]
    remote = f"0100007F:{port:04X}"
    return [int(row[1].partition(":")[2], 16) for row in rows if row[2] == remote]


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _message(kind: tuple[int, int], source: int, destination: int) -> bytes:
    host = socket.inet_aton(HOST)
    datagram = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28, 1, 0x4000, 64, socket.IPPROTO_UDP, 0, host, host)
    datagram += struct.pack("!HHHH", source, destination, 8, 0)
    body = struct.pack("!BBHI", *kind, 0, 0) + datagram
    return body[:2] + struct.pack("!H", _checksum(body)) + body[4:]


def _send_messages(scene: Scene, *kinds: tuple[int, int]) -> None:
    """About what each flow of the upstream that is struck has sent, as that machine or a router would."""
    port = scene.upstream.address.port
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        for flow in _ports_to(port):
            for kind in kinds:
                raw.sendto(_message(kind, flow, port), (HOST, 0))
                scene.kept["sent"] = scene.kept.get("sent", 0) + 1


def _refuse_port(scene: Scene) -> None:
    _send_messages(scene, PORT_UNREACHABLE)


def _tell_of_the_way(scene: Scene) -> None:
    until = time.monotonic() + scene.plan.fault_s
    while time.monotonic() < until:
        _send_messages(scene, *OTHER_MESSAGES)
        scene.calls.sleep(EACH_S)


# ---- Names: a resolver that fails, one that hangs, and a name that moves

NAME = "struck.test"
RESOLVER = ("127.77.0.53", 53)
ELSEWHERE = "127.0.0.2"
# A file system of its own for the relay, in which these two files are others.
OWN_NAMES = 'mount --bind "$1" /etc/hosts && mount --bind "$2" /etc/resolv.conf && shift 2 && exec "$@"'


def _name(folder: Path) -> Preparation:
    hosts, resolvers = folder / "hosts", folder / "resolv.conf"
    _write_hosts(hosts, HOST)
    resolvers.write_text(f"nameserver {RESOLVER[0]}\noptions timeout:1 attempts:1\n")
    return Preparation(
        ["unshare", "--mount", "sh", "-c", OWN_NAMES, "sh", hosts, resolvers],
        sections={"media": {"allowed_networks": ["127.0.0.0/8"]}, "health": {"resolve_interval_s": 0.5}},
        host=NAME,
    )


def _write_hosts(path: Path, host: str) -> None:
    """In place, because the file is mounted elsewhere."""
    path.write_text("127.0.0.1 localhost\n" + (f"{host} {NAME}\n" if host else ""))


def _lose_name(scene: Scene) -> None:
    _write_hosts(scene.folder / "hosts", "")
    # First nobody is there to be asked, and then somebody who never answers.
    scene.calls.sleep(scene.plan.fault_s / 2)
    hanging = scene.kept["hanging"] = socket.socket(type=socket.SOCK_DGRAM)
    hanging.bind(RESOLVER)


def _find_name(scene: Scene) -> None:
    scene.kept.pop("hanging").close()
    _write_hosts(scene.folder / "hosts", HOST)


def _move_name(scene: Scene) -> None:
    port = scene.upstream.address.port
    scene.kept["elsewhere"] = Upstream(Address(ELSEWHERE, port), scene.cores.clients, scene.plan.priority)
    _write_hosts(scene.folder / "hosts", ELSEWHERE)
    wait_until(lambda: scene.logged("upstream moved"), "the upstream does not move")


def _move_back(scene: Scene) -> None:
    _write_hosts(scene.folder / "hosts", HOST)
    wait_until(lambda: scene.logged("upstream moved") > 1, "the upstream does not move back")
    scene.kept["asked"] = scene.kept["elsewhere"].count()["requests"]
    scene.kept.pop("elsewhere").kill()


# ---- The relay's own machine

NEWCOMERS = 30
CALLS_ON_A_FULL_DISK = 8
FULL = "disk"
# A file system of its own, small, with the log and all that is kept of calls; nobody else sees it.
OWN_DISK = 'mount -t tmpfs -o size=2m none "$1" && cd "$1" && shift && exec "$@" 2>log'


def _take_descriptors(scene: Scene) -> None:
    scene.kept["limit"] = scene.relay.limit_descriptors(scene.relay.descriptors())
    scene.kept["waiting"] = [socket.create_connection((HOST, scene.relay.port), timeout=5) for _ in range(NEWCOMERS)]


def _give_descriptors(scene: Scene) -> None:
    scene.relay.limit_descriptors(scene.kept["limit"])
    for one in scene.kept.pop("waiting"):
        one.close()


def _has_paused(scene: Scene) -> bool:
    return scene.relay.metric('relay_accept_pauses_total{cause="descriptors"}') > 0


def _disk(folder: Path) -> Preparation:
    disk = folder / FULL
    disk.mkdir()
    # The relay's own folder of Python modules is found from anywhere.
    root = Path(__file__).resolve().parents[3]
    return Preparation(
        ["unshare", "--mount", "sh", "-c", OWN_DISK, "sh", disk],
        environment={"PYTHONPATH": str(root)},
        sections={"quality": {"records": str(disk / "calls.jsonl"), "calls": str(disk / "calls.sqlite3")}},
        logs_here=False,
    )


def _of_relay(scene: Scene, *names: str) -> Path:
    """A file on its disk, as it sees it (proc(5))."""
    return Path(f"/proc/{scene.relay.pid}/root{scene.folder}", FULL, *names)


def _fill_disk(scene: Scene) -> None:
    with contextlib.suppress(OSError), _of_relay(scene, "filler").open("wb", buffering=0) as filler:
        for size in (65_536, 4096, 1):
            with contextlib.suppress(OSError):
                while filler.write(bytes(size)):
                    pass
    # Pages that are there already have room for some lines.
    for _ in range(CALLS_ON_A_FULL_DISK):
        scene.calls.newcomer_s(OTHERS, packets=SHORT_PACKETS)


def _empty_disk(scene: Scene) -> None:
    _of_relay(scene, "filler").unlink()


KEPT = ("relay_calls_kept_total", "relay_call_records_written_total")


def _lost_and_keeps_again(scene: Scene) -> bool:
    """Lines, records and calls are lost and counted, and the next call is kept."""
    lost = ("relay_calls_not_kept_total", "relay_call_records_lost_total", "relay_log_lines_lost_total")
    felt = all(scene.relay.metric(name) > 0 for name in lost)
    before = [scene.relay.metric(name) for name in KEPT]
    scene.calls.newcomer_s(OTHERS, packets=SHORT_PACKETS)
    try:
        wait_until(
            lambda: all(scene.relay.metric(name) > old for name, old in zip(KEPT, before, strict=True)),
            "calls are not kept again",
        )
    except BenchError:
        return False
    return felt


# Of one configuration. More at once would take memory that has nothing to do with the log.
MISTAKES = 200
LINES_LOST = "relay_log_lines_lost_total"


def _leave_log(scene: Scene) -> None:
    """Read nothing of it any longer, and have the relay write so much that it cannot keep all."""
    scene.relay.log.pause()
    mistakes = {f"mistake_{number}": number for number in range(MISTAKES)}
    write_config(scene.relay.path, {**scene.relay.tree, "limits": mistakes})

    def has_lost() -> bool:
        scene.relay.process.send_signal(signal.SIGHUP)
        scene.calls.sleep(EACH_S)
        return scene.relay.metric(LINES_LOST) > 0

    wait_until(has_lost, "no line of the log is lost", 60.0)


def _read_log(scene: Scene) -> None:
    scene.relay.restore()
    scene.relay.log.resume()
    scene.relay.reload()


# ---- Time

AN_HOUR_S = 3600


def _library() -> Path | None:
    """Debian's libfaketime, for programs with threads."""
    return next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)


def _no_library() -> str:
    return "" if _library() else "libfaketime is not installed"


def _clock(folder: Path) -> Preparation:
    _set_clock(folder, 0)
    environment = {
        "LD_PRELOAD": str(_library()),
        "FAKETIME_TIMESTAMP_FILE": str(folder / "clock"),
        "FAKETIME_NO_CACHE": "1",
        # The kernel's clock for intervals does not jump, nor do the times of files.
        "DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }
    return Preparation(environment=environment)


def _set_clock(folder: Path, seconds: int) -> None:
    (folder / "clock.new").write_text(f"{seconds:+d}\n")
    (folder / "clock.new").rename(folder / "clock")


def _jump(seconds: int, scene: Scene) -> None:
    _set_clock(scene.folder, seconds)
    # The time of this line says how far.
    scene.relay.reload()
    line: Json = next(json.loads(one) for one in reversed(scene.relay.log.lines) if "configuration reloaded" in one)
    scene.kept["ahead_s"] = datetime.fromisoformat(line["timestamp"]).timestamp() - time.time()


def _jump_back(scene: Scene) -> None:
    _set_clock(scene.folder, 0)


def _has_jumped(seconds: int, scene: Scene) -> bool:
    return abs(float(scene.kept["ahead_s"]) - seconds) < AN_HOUR_S / 10


# ---- What operators do


def _break_certificates(scene: Scene) -> None:
    chain, key = scene.relay.files["certificate"], scene.relay.files["private_key"]
    broken = 0
    (scene.folder / "other").mkdir()
    other = Authority(scene.folder / "other").issue("other.test")
    for path, content in ((chain, b"not a certificate\n"), (key, other.private_key.read_bytes()), (chain, None)):
        scene.relay.restore()
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        scene.relay.reload(NOT_RELOADED)
        broken += 1
        scene.kept["served"] = scene.calls.newcomer_s(OTHERS) is not None and scene.kept.get("served", True)
    scene.kept["broken"] = broken


def _restore(scene: Scene) -> None:
    scene.relay.restore()
    scene.relay.reload()


def bad_configurations(tree: Json) -> dict[str, bytes | Json | None]:
    """What each is, and the file: bytes, a tree of settings, or none."""
    limits, upstreams, routes = tree["limits"], tree["upstreams"], tree["routes"]
    struck = {**upstreams[1]}
    return {
        "no TOML": b"[listen\n",
        "no UTF-8": b"\xff\xfe\x00",
        "empty": b"",
        "gone": None,
        "an unknown table": {**tree, "listne": {"workers": 1}},
        "an unknown key": {**tree, "limits": {**limits, "conections": 1}},
        "a text for a number": {**tree, "limits": {**limits, "connections": "many"}},
        "a number out of range": {**tree, "limits": {**limits, "connections": -1}},
        "an address without a port": {**tree, "upstreams": [upstreams[0], {**struck, "address": HOST}]},
        "an upstream twice": {**tree, "upstreams": [*upstreams, struck]},
        "a route that leads nowhere": {**tree, "routes": [*routes, {"server_name": "a.test", "region": "nowhere"}]},
        "a network that is none": {**tree, "access": {"deny": ["10.0.0.0/99"]}},
    }


def _break_configuration(scene: Scene) -> None:
    kinds = bad_configurations(scene.relay.tree)
    for file in kinds.values():
        scene.relay.path.unlink(missing_ok=True)
        if isinstance(file, bytes):
            scene.relay.path.write_bytes(file)
        elif file is not None:
            write_config(scene.relay.path, file)
        scene.relay.reload(NOT_RELOADED)
    scene.kept["refused"] = len(kinds)


def _was_served(scene: Scene) -> bool:
    return bool(scene.kept["served"]) and scene.kept["broken"] == 3


KINDS = {
    "killed": Kind(
        "kill -9 of the upstream", _kill, _start, lambda scene: scene.logged("upstream down") > 0, cuts=True
    ),
    "stopped": Kind(
        "SIGSTOP of the upstream",
        lambda scene: scene.upstream.signal(signal.SIGSTOP),
        lambda scene: scene.upstream.signal(signal.SIGCONT),
        lambda scene: scene.calls.heard_late > 0,
    ),
    "garbage": Kind(
        "the upstream sends garbage, and answers nothing else",
        functools.partial(_become, "garbage"),
        functools.partial(_become, "well"),
        _has_malformed,
    ),
    **{
        f"answers {code}": Kind(
            f"the upstream refuses all requests with {code}",
            functools.partial(_refuse, code),
            functools.partial(_become, "well"),
            _is_refused,
        )
        for code in ("401", "438", "508")
    },
    "icmp port": Kind(
        "ICMP says that nobody listens, though somebody does",
        _refuse_port,
        _nothing,
        lambda scene: scene.kept.get("sent", 0) > 0,
        missing=_root,
        cuts=True,
    ),
    "icmp others": Kind(
        "ICMP says that network and host are unreachable, forbidden, too far",
        _tell_of_the_way,
        _nothing,
        lambda scene: scene.kept.get("sent", 0) > 0,
        missing=_root,
    ),
    "dns fails": Kind(
        "the name of the upstream is not found; then the resolver hangs",
        _lose_name,
        _find_name,
        lambda scene: scene.logged("upstream name not resolved") > 0,
        prepare=_name,
        missing=_root,
    ),
    "dns changes": Kind(
        "the name of the upstream moves to another address, and back",
        _move_name,
        _move_back,
        lambda scene: scene.kept["asked"] > 0,
        prepare=_name,
        missing=_root,
    ),
    "descriptors": Kind(
        f"no descriptor is left, and {NEWCOMERS} connect",
        _take_descriptors,
        _give_descriptors,
        _has_paused,
        serves=False,
    ),
    "disk full": Kind(
        "no room for the log, for records and for the calls that are kept",
        _fill_disk,
        _empty_disk,
        _lost_and_keeps_again,
        prepare=_disk,
        missing=_root,
    ),
    "log unread": Kind(
        "nobody reads the log, which goes to a pipe",
        _leave_log,
        _read_log,
        lambda scene: scene.relay.metric(LINES_LOST) > 0,
    ),
    "clock ahead": Kind(
        "the clock jumps ahead by an hour, and back",
        functools.partial(_jump, AN_HOUR_S),
        _jump_back,
        functools.partial(_has_jumped, AN_HOUR_S),
        prepare=_clock,
        missing=_no_library,
    ),
    "clock back": Kind(
        "the clock jumps back by an hour, and ahead",
        functools.partial(_jump, -AN_HOUR_S),
        _jump_back,
        functools.partial(_has_jumped, -AN_HOUR_S),
        prepare=_clock,
        missing=_no_library,
    ),
    "certificates": Kind(
        "a reload with a broken chain, another one's key, and no file",
        _break_certificates,
        _restore,
        _was_served,
    ),
    "configuration": Kind(
        "a reload with each of 12 bad configurations",
        _break_configuration,
        _restore,
        lambda scene: scene.kept["refused"] == 12 and scene.logged(NOT_RELOADED) >= 12,
    ),
}
