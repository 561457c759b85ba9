import asyncio, contextlib, socket
import pytest
from tests.plane.test_hostile_clients import *
@pytest.mark.parametrize("make", [PLANES["compiled"]], ids=["compiled"])
async def test_x(make, tmp_path):
    host="127.0.0.1"
    router = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    async with plane_bench(make, tmp_path, host=host) as bench, bench.flow(HELLO) as (client, flow):
        with router:
            router.bind((host, 0))
            for n in range(3000):
                router.sendto(icmp_too_big(flow, bench.upstream.address), (flow.host, 0))
                bench.upstream.send(flow, VOICE)
                try:
                    async with asyncio.timeout(2): assert await client.receive_unit() == VOICE
                except TimeoutError: raise AssertionError(n)
