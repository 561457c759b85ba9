"""The far end of a load test: sends back every packet of voice, to whom it came from.

    python -m loadtest.engine.sink --listen 192.0.2.7:16384 --from 192.0.2.1

Behind a TURN server this is the peer of the calls. It does not read what it reflects: the load tester verifies it, and
measures the way there and back. Senders must be named if it listens on anything but loopback. Otherwise anybody who
forges a sender's address could have it send packets there.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from types import FrameType

from loadtest.engine.engine import Ended, Engine, Opened
from loadtest.engine.plans import MAX_PEERS, Carrier, ClientPlan, PlanError
from relay.addresses import Address, parse_address

MAX_SOCKETS = 64
# A socket is there at once, or never.
OPENING_S = 5.0
ANY_PORT = 0


class SinkError(Exception):
    """It cannot listen. The message says where, and why."""


def open_sink(engine: Engine, listen: Sequence[Address], senders: Sequence[str] = ()) -> list[Address]:
    """Open sockets that send everything back: their addresses. Raises SinkError.

    Only packets from these hosts are sent back. Without any, those of everybody are, and all must listen on loopback.
    """
    for one in listen:
        if not senders and not ipaddress.ip_address(one.host).is_loopback:
            raise SinkError(f"{one}: expected the hosts that may send to it, because it is not on loopback")
    peers = tuple(Address(host, ANY_PORT) for host in senders)
    wanted = {engine.open(ClientPlan(one, Carrier.PEER, peers=peers, reflects=True)): one for one in listen}
    found: dict[int, Address] = {}
    deadline = time.monotonic() + OPENING_S
    while found.keys() != wanted.keys():
        if time.monotonic() > deadline:
            raise SinkError("the packet engine does not run")
        engine.wait(OPENING_S)
        for told in engine.happenings():
            if isinstance(told, Ended):
                raise SinkError(f"{wanted[told.client]}: {told.words}")
            if isinstance(told, Opened) and told.relayed is not None:
                found[told.client] = told.relayed
    return [found[number] for number in wanted]


class Report:
    """Says what was reflected, now and then, and at the end."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.totals: Counter[str] = Counter()
        self.seconds = 0.0

    def line(self) -> str:
        """What has come since the last line."""
        window = self._engine.window()
        reflected, refused = window.counters["reflected"], window.counters["foreign"]
        self.totals.update(reflected=reflected, refused=refused)
        self.seconds += window.seconds
        cores = window.cpu_seconds / window.seconds if window.seconds else 0.0
        rate = reflected / window.seconds if window.seconds else 0.0
        return f"{rate:9,.0f} packets/s sent back  {refused:6,} refused  {cores:.2f} cores"

    def result(self) -> dict[str, float]:
        """All of it."""
        keys = ("reflected", "refused")
        return {"seconds": round(self.seconds, 3), **{key: self.totals[key] for key in keys}}


def serve(listen: Sequence[Address], senders: Sequence[str], every_s: float) -> dict[str, float]:
    """Reflect until SIGINT or SIGTERM, and print what happens on stderr. Raises SinkError, PlanError."""
    ending = threading.Event()

    def on_signal(_: int, __: FrameType | None) -> None:
        ending.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with Engine(max_clients=MAX_SOCKETS, max_streams=1) as engine:
            for address in open_sink(engine, listen, senders):
                print(f"listening on {address}", file=sys.stderr, flush=True)  # noqa: T201
            report = Report(engine)
            while not ending.wait(every_s):
                print(report.line(), file=sys.stderr, flush=True)  # noqa: T201
            report.line()
            return report.result()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _senders(text: str) -> str:
    return str(ipaddress.ip_address(text))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: 0 at the end, 2 if it cannot listen."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--listen", type=parse_address, action="append", help="HOST:PORT, again for more (127.0.0.1:16384)"
    )
    parser.add_argument(
        "--from",
        type=_senders,
        action="append",
        default=[],
        dest="senders",
        help="a host that may send; again for more",
    )
    parser.add_argument("--every", type=float, default=10.0, help="seconds from one line to the next (10)")
    options = parser.parse_args(arguments)
    listen = options.listen or [Address("127.0.0.1", 16384)]
    if len(listen) > MAX_SOCKETS or len(options.senders) > MAX_PEERS:
        parser.error(f"expected at most {MAX_SOCKETS} addresses and {MAX_PEERS} senders")
    try:
        print(json.dumps(serve(listen, options.senders, options.every)))  # noqa: T201
    except (SinkError, PlanError) as error:
        print(f"sink: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
