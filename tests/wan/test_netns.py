"""Namespaces: what is inside stays inside, and nothing outlives them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from relay.demo.wan.netns import Namespace, refusal
from tests.support.network.netns import devices, identity, inhabitants
from tests.support.waiting import eventually

needs_namespaces = pytest.mark.skipif(refusal() is not None, reason=refusal() or "")
ROOT = Path(__file__).resolve().parent.parent.parent
# setpriv's words for "root, but not over the network".
WITHOUT = ["setpriv", "--bounding-set=-sys_admin,-net_admin", "--inh-caps=-sys_admin,-net_admin"]


@needs_namespaces
def test_a_thread_is_inside_for_a_block_only() -> None:
    before = devices()
    with Namespace() as namespace:
        with namespace.entered():
            assert devices() == {"lo"}
        assert devices() == before
        with pytest.raises(ZeroDivisionError), namespace.entered():
            raise ZeroDivisionError
        assert devices() == before


@needs_namespaces
def test_loopback_is_up_and_a_namespace_of_its_own() -> None:
    with (
        Namespace() as one,
        Namespace() as other,
        one.socket() as listener,
        one.socket() as near,
        other.socket() as far,
    ):
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        near.connect(listener.getsockname())
        assert far.connect_ex(listener.getsockname()) != 0


@needs_namespaces
def test_a_tun_device_ends_with_its_descriptor() -> None:
    with Namespace() as namespace:
        tun = namespace.open_tun("wan7", "198.18.0.1", "255.255.255.252")
        with namespace.entered():
            assert devices() == {"lo", "wan7"}
        os.close(tun)
        with namespace.entered():
            assert devices() == {"lo"}


@needs_namespaces
def test_a_device_that_cannot_be_configured_leaves_nothing() -> None:
    with Namespace() as namespace:
        with pytest.raises(OSError, match="illegal IP address"):
            namespace.open_tun("wan7", "no address", "255.255.255.252")
        with namespace.entered():
            assert devices() == {"lo"}


@needs_namespaces
def test_a_setting_of_its_own() -> None:
    name = "net/ipv4/ip_default_ttl"
    before = Path("/proc/sys", name).read_text()
    with Namespace() as namespace:
        namespace.set_sysctl(name, "17")
        with namespace.entered():
            assert Path("/proc/sys", name).read_text() == "17\n"
    assert Path("/proc/sys", name).read_text() == before


@needs_namespaces
async def test_a_coroutine_runs_inside() -> None:
    async def main() -> set[str]:
        await asyncio.sleep(0)
        return devices()

    with Namespace() as namespace:
        assert await namespace.run(main) == {"lo"}


@needs_namespaces
async def test_what_a_coroutine_raises_comes_out() -> None:
    async def main() -> None:
        raise ZeroDivisionError

    with Namespace() as namespace, pytest.raises(ZeroDivisionError):
        await namespace.run(main)


@needs_namespaces
@pytest.mark.parametrize("at_once", [True, False])
async def test_a_coroutine_is_cancelled_from_outside(at_once: bool) -> None:
    loop, begun, ended = asyncio.get_running_loop(), asyncio.Event(), list[str]()

    async def main() -> None:
        loop.call_soon_threadsafe(begun.set)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    with Namespace() as namespace:
        running = asyncio.create_task(namespace.run(main))
        await (asyncio.sleep(0) if at_once else begun.wait())
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        # Cancelled before it began, it may never have come to its first line.
        assert at_once or ended == ["cancelled"]


@needs_namespaces
async def test_a_process_lives_inside_as_long_as_the_block() -> None:
    program = "import signal; print('here', flush=True); signal.pause()"
    with Namespace() as namespace:
        number = identity(namespace)
        with contextlib.suppress(ZeroDivisionError):
            async with namespace.process(sys.executable, "-c", program, output=PIPE) as process:
                assert process.stdout is not None
                assert await process.stdout.readline() == b"here\n"
                assert inhabitants(number) == [str(process.pid)]
                raise ZeroDivisionError
        assert process.returncode is not None
        assert inhabitants(number) == []


@needs_namespaces
async def test_a_process_that_does_not_listen_is_killed() -> None:
    program = "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); signal.pause()"
    with Namespace() as namespace:
        async with namespace.process(sys.executable, "-c", program, output=PIPE) as process:
            assert process.stdout is not None
            await process.stdout.readline()
        assert process.returncode == -9


@needs_namespaces
async def test_nothing_outlives_an_owner_that_is_killed() -> None:
    program = """
import asyncio, os, sys
from relay.demo.wan.line import wan

async def main():
    async with wan() as line, line.server_ns.process("sleep", "600"):
        print(os.stat(line.server_ns.path).st_ino, os.stat(line.client_ns.path).st_ino, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""
    owner = await asyncio.create_subprocess_exec(sys.executable, "-c", program, cwd=ROOT, stdout=PIPE)
    assert owner.stdout is not None
    server, client = map(int, (await owner.stdout.readline()).split())
    # It has the namespace's number as soon as it has gone through nsenter.
    await eventually(lambda: inhabitants(server))
    assert inhabitants(client) == []
    owner.kill()
    await owner.wait()
    await eventually(lambda: not inhabitants(server))


@needs_namespaces
def test_where_it_is_not_permitted_it_says_why() -> None:
    program = "from relay.demo.wan.netns import refusal; print(refusal())"
    done = subprocess.run(
        [*WITHOUT, sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "not permitted here: " in done.stdout
    assert "Operation not permitted" in done.stdout


@needs_namespaces
def test_where_it_is_not_permitted_tests_are_skipped_by_name() -> None:
    command = [sys.executable, "-m", "pytest", "-rs", "-vv", "tests/wan/test_wan.py"]
    done = subprocess.run([*WITHOUT, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "::test_the_way_there_and_back_takes_twice_the_delay SKIPPED" in done.stdout
    assert "network namespaces and TUN devices are not permitted here: " in done.stdout
    assert "passed" not in done.stdout


@needs_namespaces
def test_sockets_of_any_kind() -> None:
    with Namespace() as namespace, namespace.socket(kind=socket.SOCK_DGRAM) as opened:
        assert opened.type is socket.SOCK_DGRAM
        opened.bind(("127.0.0.1", 0))
