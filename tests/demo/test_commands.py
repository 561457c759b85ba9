"""What ``relay demo --stay`` tells: steps that lead to a call, and files that are there."""

from __future__ import annotations

import os
import re

from relay.demo.commands import invite
from relay.demo.run import demo_floor
from relay.emulator.softphone import Softphone, TurnTls, UdpTurn


async def test_who_is_named_for_the_first_call_needs_no_certificate_and_the_relays_way_is_there() -> None:
    async with demo_floor() as floor:
        told = await invite(floor)
        direct, through_relay = told.split("To hear a call through the relay")
        assert f"http://localhost:{floor.cloud.http.port}/softphone/" in direct
        for part, carrier in ((direct, UdpTurn), (through_relay, TurnTls)):
            named = re.search(r"Log in as (\w+) in one tab, as (\w+) in .*\(password (\w+)\)", part)
            assert named is not None
            for user in named.groups()[:2]:
                async with Softphone(floor.url, user, named[3]) as phone:
                    assert isinstance(phone.carrier, carrier)
        script = re.search(r"\S+browser\.sh", through_relay)
        assert script is not None
        assert os.access(script[0], os.X_OK)
