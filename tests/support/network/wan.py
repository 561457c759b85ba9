"""A WAN (``relay.demo.wan.line``) for programs of any kind.

It runs until its standard input ends::

    python -m tests.support.network.wan --uplink delay_s=0.02 --downlink delay_s=0.02,rate_bps=64000,queue_bytes=4096

The first line says, as JSON, how to get in: ``nsenter --net=PATH command``. Each line of input is a JSON object, such
as ``{"direction": "downlink", "change": {"loss": 0.03}}``, ``{"stall": 3}`` or ``{}``: without a direction both are
meant. It is answered with the counters of both.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import Any

from relay.demo.wan.line import Direction, Wan, open_wan
from relay.demo.wan.link import Link
from relay.demo.wan.netns import refusal


def parse_link(text: str) -> Link:
    """A link from ``delay_s=0.02,loss=0.01``. Raises argparse.ArgumentTypeError."""
    known = {name.name for name in dataclasses.fields(Link)}
    values: dict[str, Any] = {}
    try:
        for part in filter(None, text.split(",")):
            name, _, value = part.partition("=")
            if name not in known:
                raise ValueError(f"{name!r} is none of {', '.join(sorted(known))}")
            values[name] = int(value) if name == "queue_bytes" else float(value)
        return Link(**values)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def obey(line: Wan, text: str) -> dict[str, Any]:
    """Do what a line of input says, and give the counters. Raises ValueError or TypeError for what it does not know."""
    order = json.loads(text)
    for name in {"uplink": ["uplink"], "downlink": ["downlink"]}.get(order.get("direction"), ["uplink", "downlink"]):
        direction: Direction = getattr(line, name)
        if "change" in order:
            direction.change(**order["change"])
        if "stall" in order:
            direction.stall(float(order["stall"]))
    return {name: dataclasses.asdict(getattr(line, name).counters) for name in ("uplink", "downlink")}


def main() -> int:
    """Serve until standard input ends. Status: 0 done, 2 not permitted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--uplink", type=parse_link, default=Link(), help="such as delay_s=0.02,loss=0.01")
    parser.add_argument("--downlink", type=parse_link, help="as the uplink by default")
    parser.add_argument("--seed", type=int, default=1, help="decides which packets are lost (1)")
    options = parser.parse_args()
    if (reason := refusal()) is not None:
        sys.stderr.write(f"wan: {reason}\n")
        return 2
    with open_wan(options.uplink, options.downlink, seed=options.seed) as line:
        paths = {"client": line.client_ns.path, "server": line.server_ns.path}
        say({**paths, "client_address": line.client_address, "server_address": line.server_address})
        for text in sys.stdin:
            try:
                say(obey(line, text))
            except (ValueError, TypeError, AttributeError) as error:
                say({"error": str(error)})
    return 0


def say(answer: dict[str, Any]) -> None:
    """Write one line of JSON."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
