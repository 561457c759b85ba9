"""A hoot: some talkers to many subscribers, forwarded under a group key, beside one encryption for each subscriber.

    talkers --SRTP over UDP--> SFU --a copy for each--> subscribers      (native generator, one socket for each)

The two SFUs take turns, on a core of their own. Prints a table and, as the last line, one JSON object. Exit status: 0
if our SFU lost nothing, 1 if it did, 2 if it could not start.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pylibsrtp

from loadtest.bench.bench import Cores, on_core
from loadtest.bench.servers import BUILD, BenchError, build
from relay.emulator.sfu import GroupKey, keepalive
from relay.wire.rtp import RtpHeader, build_packet

MODES = ("forward", "encrypt")
# 20 ms of G.711. With 12 bytes of RTP header and 10 of SRTP tag, 182 bytes.
PAYLOAD_BYTES = 160
PACKET_BYTES = 182
SAMPLES_PER_PACKET = 160
# A subscriber that sleeps for a second while 12 talk must lose nothing. The kernel may grant less.
RECEIVE_BUFFER_BYTES = 1 << 20
STOP_TIMEOUT_S = 10.0
# Of `protect` alone: long enough for a figure that repeats.
ALONE_PACKETS = 20_000

Run = dict[str, Any]


def write_packets(path: Path, key: GroupKey, talkers: int, packets: int) -> None:
    """All packets of all talkers, protected. The SSRC is the talker's number."""
    policy = pylibsrtp.Policy(key=key.master_key, ssrc_type=pylibsrtp.Policy.SSRC_ANY_OUTBOUND)
    session = pylibsrtp.Session(policy)
    with path.open("wb") as file:
        for talker in range(talkers):
            for number in range(packets):
                header = RtpHeader(0, number, number * SAMPLES_PER_PACKET, talker)
                file.write(session.protect(build_packet(header, os.urandom(PAYLOAD_BYTES))))


def protect_alone_us() -> float:
    """CPU microseconds of one call of pylibsrtp's ``protect``, and nothing else."""
    key = GroupKey.new(1)
    session = pylibsrtp.Session(pylibsrtp.Policy(key=key.master_key, ssrc_type=pylibsrtp.Policy.SSRC_ANY_OUTBOUND))
    packets = [build_packet(RtpHeader(0, number, 0, 1), bytes(PAYLOAD_BYTES)) for number in range(ALONE_PACKETS)]
    before = time.process_time()
    for packet in packets:
        session.protect(packet)
    return (time.process_time() - before) / ALONE_PACKETS * 1e6


class Ends:
    """The sockets of talkers and subscribers."""

    def __init__(self, talkers: int, subscribers: int) -> None:
        self.talkers = [_socket() for _ in range(talkers)]
        self.subscribers = [_socket() for _ in range(subscribers)]

    def show_life(self, sfu: tuple[str, int]) -> None:
        """Have every subscriber heard."""
        for one in self.subscribers:
            one.sendto(keepalive(), sfu)

    def close(self) -> None:
        """Close all."""
        for one in (*self.talkers, *self.subscribers):
            one.close()


def _socket() -> socket.socket:
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    opened.bind(("127.0.0.1", 0))
    return opened


def _descriptors(sockets: list[socket.socket]) -> str:
    return ",".join(str(one.fileno()) for one in sockets)


@contextlib.contextmanager
def _server(setup: Run, core: int) -> Iterator[tuple[subprocess.Popen[str], tuple[str, int]]]:
    with on_core(core):
        process = subprocess.Popen(
            [sys.executable, "-m", "loadtest.bench.hoot_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(setup) + "\n")
        process.stdin.flush()
        said = process.stdout.readline()
        if not said:
            raise BenchError("the SFU did not start")
        host, port = json.loads(said)
        yield process, (host, port)
    finally:
        process.stdin.close()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def run_once(options: argparse.Namespace, mode: str, folder: Path, cores: Cores) -> Run:
    """One SFU, one run. Raises BenchError."""
    key, file = GroupKey.new(1), folder / "packets"
    first = int(options.warmup * options.pps)
    packets = first + int(options.seconds * options.pps)
    write_packets(file, key, options.talkers, packets)
    ends = Ends(options.talkers, options.subscribers)
    setup = {
        "mode": mode,
        "key": key.master_key.hex(),
        "talkers": [one.getsockname() for one in ends.talkers],
        "subscribers": [one.getsockname() for one in ends.subscribers],
    }
    with contextlib.closing(ends), _server(setup, cores.servers) as (process, sfu):
        if mode == "forward":
            ends.show_life(sfu)
        command: list[str | Path] = [
            BUILD / "hoot",
            f"--server={sfu[0]}:{sfu[1]}",
            f"--talkers={_descriptors(ends.talkers)}",
            f"--listeners={_descriptors(ends.subscribers)}",
            f"--file={file}",
            f"--bytes={PACKET_BYTES}",
            f"--packets={packets}",
            f"--first={first}",
            f"--pps={options.pps}",
            f"--server-pid={process.pid}",
            *(["--unchanged"] if mode == "forward" else []),
        ]
        passed = [one.fileno() for one in (*ends.talkers, *ends.subscribers)]
        with on_core(cores.clients):
            done = subprocess.run(command, pass_fds=passed, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            raise BenchError(f"hoot: {done.stderr.strip() or 'no output'}")
        result: Run = json.loads(done.stdout)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        result["sfu"] = json.loads(process.stdout.readline())
    return {"mode": mode, **result}


def summarize(runs: list[Run]) -> Run:
    """The median of each figure over the runs of a mode; losses are sums."""
    found: Run = {}
    for mode in MODES:
        alike = [run for run in runs if run["mode"] == mode]
        found[mode] = {
            **{name: sum(run[name] for run in alike) for name in ("due", "lost", "duplicate", "corrupt", "unsent")},
            **{
                name: statistics.median(run[name] or 0 for run in alike)
                for name in ("copies_per_s", "server_cores", "cpu_us_per_copy")
            },
            **{
                f"delay_{name}_ms": statistics.median((run["delay_us"] or {}).get(name, 0) / 1000 for run in alike)
                for name in ("p50", "p99", "p999")
            },
        }
    return found


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--talkers", type=int, default=3, help="who talk, at most 12 (3)")
    parser.add_argument("--subscribers", type=int, default=200, help="who listen, at most 800 (200)")
    parser.add_argument("--seconds", type=float, default=10.0, help="measured time of a run (10)")
    parser.add_argument("--warmup", type=float, default=1.0, help="before it (1)")
    parser.add_argument("--pps", type=int, default=50, help="packets a second and talker (50)")
    parser.add_argument("--rounds", type=int, default=2, help="every second one in the other order (2)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    runs: list[Run] = []
    try:
        build()
        cores = Cores.choose()
        with tempfile.TemporaryDirectory(prefix="hoot-bench-") as folder:
            for number in range(options.rounds):
                runs += [run_once(options, mode, Path(folder), cores) for mode in MODES[:: 1 - 2 * (number % 2)]]
    except (BenchError, OSError) as error:
        print(f"hoot: {error}", file=sys.stderr)  # noqa: T201
        return 2
    found = summarize(runs)
    alone_us = protect_alone_us()
    for mode, row in found.items():
        print(  # noqa: T201
            f"{mode}: {row['copies_per_s']:.0f} copies/s, {row['server_cores']:.3f} of a core, "
            f"{row['cpu_us_per_copy']:.2f} us a copy, {row['lost']} of {row['due']} lost, "
            f"delay p50 {row['delay_p50_ms']:.2f} ms, p99 {row['delay_p99_ms']:.2f} ms"
        )
    print(f"pylibsrtp's protect alone: {alone_us:.2f} us")  # noqa: T201
    print(json.dumps({"settings": vars(options), **found, "protect_alone_us": alone_us, "runs": runs}))  # noqa: T201
    ours = found["forward"]
    return int(any(ours[name] for name in ("lost", "duplicate", "corrupt", "unsent")))


if __name__ == "__main__":
    sys.exit(main())
