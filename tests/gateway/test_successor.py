"""Upgrades of a running relay, with real processes: nobody is refused, no call loses a packet.

A new process that cannot take over changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import ssl
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from relay.addresses import Address
from relay.demo.authority import Authority
from relay.emulator.turn.slow import TurnHost
from relay.errors import UpstreamError
from tests.support.benches.gateway import CREDENTIALS, settings_tree, write_config
from tests.support.benches.serving import PROJECT, PYTHON, UNWATCHED, Served, kill, of_the_relay, serving, start
from tests.support.certificates_made import authority, files_in, write_pair
from tests.support.client_certificates import for_client, write_authorities
from tests.support.network.ports import reserved_address
from tests.support.peers.behind_turn import open_echo
from tests.support.peers.service_manager import service_manager
from tests.support.processes import exists, priorities
from tests.support.waiting import eventually

PLANES = pytest.mark.parametrize("plane", ["compiled", "reference"])
PACKET_S = 0.02


def open_host() -> TurnHost:
    return TurnHost(Address("127.0.0.1", 0), CREDENTIALS, allow_loopback_peers=True)


@contextlib.asynccontextmanager
async def upgradable(
    folder: Path, upstream: Address, environment: dict[str, str] | None = None, **sections: Any
) -> AsyncIterator[Served]:
    """A relay at addresses that the next one has, too, with newcomers at the second one as well."""
    with reserved_address() as tls, reserved_address() as proxied, reserved_address() as admin:
        listen = {"tls": [str(tls), str(proxied)], "proxy_protocol": [str(proxied)], "admin": str(admin)}
        sections["listen"] = {**listen, **sections.get("listen", {})}
        sections = {"balancers": {"networks": ["127.0.0.1"]}, "limits": UNWATCHED, **sections}
        async with serving(folder, upstream, environment, **sections) as relay:
            await relay.becomes_ready()
            yield relay


async def upgrade(pid: int | None) -> tuple[int | None, str, str]:
    """Exit status, stdout and stderr of ``relay upgrade``."""
    process = await start("upgrade", *([] if pid is None else ["--pid", str(pid)]))
    stdout, stderr = await process.communicate()
    return process.returncode, stdout.decode(), "\n".join(of_the_relay(stderr.decode()))


async def upgraded(pid: int) -> int:
    """The process that serves after an upgrade."""
    status, said, stderr = await upgrade(pid)
    assert (status, stderr) == (0, "")
    assert said.endswith(" serves now; the one before ends with its calls\n")
    return int(said.split()[1])


class Voice:
    """A call that sends a numbered packet every 20 ms to a peer that sends it back."""

    def __init__(self) -> None:
        self.sent = 0
        self.heard: list[int] = []

    async def talk(self, relay: Served, until: asyncio.Event) -> None:
        async with open_echo() as peer, await relay.open_turn(self._on_data) as turn:
            await turn.bind_channel(peer)
            while not until.is_set():
                turn.send(peer, self.sent.to_bytes(4) + bytes(178))
                self.sent += 1
                await asyncio.sleep(PACKET_S)
            await eventually(lambda: len(self.heard) == self.sent, f"{self.sent} sent, {len(self.heard)} heard")

    def _on_data(self, _: Address, data: bytes) -> None:
        self.heard.append(int.from_bytes(data[:4]))


class Newcomers:
    """Clients that come all the time, one after the other. The first that is refused ends them with its error."""

    def __init__(self) -> None:
        self.served = 0

    async def go_on(self) -> None:
        """Wait until some more have been served."""
        before = self.served
        await eventually(lambda: self.served > before + 20)

    async def come(self, relay: Served, until: asyncio.Event) -> None:
        while not until.is_set():
            async with await relay.open_turn():
                self.served += 1

    async def browse(self, relay: Served, until: asyncio.Event) -> None:
        """Ask on one connection after the other, each as long as the relay keeps it."""
        connector = aiohttp.TCPConnector(ssl=relay.trust)
        async with aiohttp.ClientSession(connector=connector) as session:
            while not until.is_set():
                async with session.get(f"https://{relay.tls}/healthz", server_hostname="relay.test") as answer:
                    assert answer.status == 200
                self.served += 1
                await asyncio.sleep(PACKET_S)


@PLANES
async def test_nobody_notices_upgrades(tmp_path: Path, plane: str) -> None:
    enough, over = asyncio.Event(), asyncio.Event()
    async with open_host() as host, upgradable(tmp_path, host.address, listen={"plane": plane}) as relay:
        voices, newcomers = [Voice() for _ in range(3)], Newcomers()
        async with asyncio.TaskGroup() as tasks:
            talking = [tasks.create_task(voice.talk(relay, over)) for voice in voices]
            coming = [tasks.create_task(newcomers.come(relay, enough)) for _ in range(2)]
            coming.append(tasks.create_task(newcomers.browse(relay, enough)))
            await eventually(lambda: all(len(voice.heard) > 10 for voice in voices))
            pid = relay.process.pid
            for _ in range(3):
                pid = await upgraded(pid)
                await newcomers.go_on()
            enough.set()
            await asyncio.wait(coming)
            # The calls are where they began.
            assert not relay.has_ended
            over.set()
            await asyncio.wait(talking)
        for voice in voices:
            assert voice.heard == list(range(voice.sent))
        # With its last call the first process ends.
        assert await relay.process.wait() == 0
        os.kill(pid, signal.SIGTERM)


async def test_a_call_outlives_many_upgrades(tmp_path: Path) -> None:
    """The process between two others has no call of its own, and stays as long as the one before it has."""
    over = asyncio.Event()
    limits = {**UNWATCHED, "drain_timeout_s": 0}
    async with open_host() as host, upgradable(tmp_path, host.address, limits=limits) as relay:
        voice = Voice()
        talking = asyncio.create_task(voice.talk(relay, over))
        await eventually(lambda: len(voice.heard) > 10)
        middle = await upgraded(relay.process.pid)
        last = await upgraded(middle)
        # Longer than a process without calls takes to see that it has none.
        heard = len(voice.heard)
        await eventually(lambda: len(voice.heard) > heard + 3 / PACKET_S or talking.done())
        assert not talking.done()
        assert not relay.has_ended
        assert exists(middle)
        over.set()
        await talking
        assert voice.heard == list(range(voice.sent))
        assert await relay.process.wait() == 0
        await eventually(lambda: not exists(middle))
        os.kill(last, signal.SIGTERM)


async def test_the_new_process_is_like_the_old_one(tmp_path: Path) -> None:
    async with open_host() as host, upgradable(tmp_path, host.address, listen={"workers": 2}) as relay:
        new = await upgraded(relay.process.pid)
        # Its control plane gives way, and its voice does not.
        assert os.getpriority(os.PRIO_PROCESS, new) == 10
        assert priorities(new).count(os.getpriority(os.PRIO_PROCESS, 0)) >= 2
        before = len(os.listdir(f"/proc/{new}/fd"))
        assert await relay.process.wait() == 0
        # Nothing piles up from one to the next.
        newer = await upgraded(new)
        await eventually(lambda: len(os.listdir(f"/proc/{newer}/fd")) <= before)


@PLANES
async def test_the_new_process_asks_clients_for_certificates_too(tmp_path: Path, plane: str) -> None:
    issuer = authority()
    path = write_authorities(tmp_path / "client-ca.pem", issuer)
    with reserved_address() as tls:
        asks = {"tls": [str(tls)], "client_certificates": {str(tls): "required"}, "client_ca": str(path)}
        listen = {**asks, "proxy_protocol": [], "plane": plane}
        async with open_host() as host, upgradable(tmp_path, host.address, listen=listen) as relay:
            without, shows = relay.trust, ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
            files = write_pair(files_in(tmp_path, "client"), for_client(issuer, "desk-17.firm.example"))
            shows.load_cert_chain(files.chain, files.private_key)

            async def only_the_known_get_in() -> None:
                relay.trust = shows
                await (await relay.open_turn()).close()
                relay.trust = without
                with pytest.raises(UpstreamError):
                    await relay.open_turn()

            await only_the_known_get_in()
            await upgraded(relay.process.pid)
            assert await relay.process.wait() == 0
            await only_the_known_get_in()


async def test_the_file_of_a_unix_socket_is_handed_over_too(tmp_path: Path) -> None:
    where = tmp_path / "admin.sock"
    with reserved_address() as tls:
        listen = {"tls": [str(tls)], "admin": f"unix:{where}"}
        async with (
            open_host() as host,
            serving(tmp_path, host.address, listen=listen) as relay,
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(where))) as session,
        ):
            await upgraded(relay.process.pid)
            assert await relay.process.wait() == 0
            async with session.get("http://localhost/healthz") as answer:
                assert answer.status == 200


async def test_a_bad_configuration_changes_nothing(tmp_path: Path) -> None:
    async with open_host() as host, upgradable(tmp_path, host.address) as relay:
        turn = await relay.open_turn()
        write_config(relay.path, {**relay.tree, "lissten": {}})
        reason = f"{relay.path}: lissten: unknown key"
        assert await upgrade(relay.process.pid) == (1, "", f"relay: the relay goes on as before: {reason}")
        assert (await relay.logged("upgrade failed: this process goes on"))["cause"] == reason
        assert await turn.refresh(900) == 900
        assert await relay.readyz() == 200
        async with await relay.open_turn():
            assert host.allocations == 2
        # A port that another has.
        with reserved_address() as other, contextlib.closing(await asyncio.start_server(print, *other)):
            listen = {**relay.tree["listen"], "tls": [*relay.tree["listen"]["tls"], str(other)]}
            write_config(relay.path, {**relay.tree, "listen": listen})
            status, _, said = await upgrade(relay.process.pid)
            assert (status, said.endswith(f"cannot listen on {other} (listen.tls): address already in use")) == (
                1,
                True,
            )
        write_config(relay.path, relay.tree)
        await upgraded(relay.process.pid)
        assert await turn.refresh(900) == 900
        await turn.close()


async def test_one_at_a_time_and_only_with_an_upstream(tmp_path: Path) -> None:
    async with open_host() as host, upgradable(tmp_path, host.address) as relay:
        write_config(relay.path, {**relay.tree, "upstreams": [{"name": "gone", "address": "127.0.0.1:9"}]})
        relay.send_signal(signal.SIGUSR2)
        await relay.logged("upgrade begins")
        said = "relay: the relay goes on as before: an upgrade is running already"
        assert await upgrade(relay.process.pid) == (1, "", said)
        assert (await relay.logged("upgrade failed: this process goes on"))["cause"].endswith("is running already")
        failed = await relay.logged("upgrade failed: this process goes on")
        assert failed["cause"] == "no upstream answers within 10 s"
        async with await relay.open_turn():
            assert host.allocations == 1


async def test_the_end_of_the_new_process_is_the_end_of_both(tmp_path: Path) -> None:
    limits = {**UNWATCHED, "drain_timeout_s": 0.2}
    async with open_host() as host, upgradable(tmp_path, host.address, limits=limits) as relay:
        turn = await relay.open_turn()
        new = os.pidfd_open(await upgraded(relay.process.pid))
        try:
            assert (await relay.logged("handed over"))["flows"] == 1
            signal.pidfd_send_signal(new, signal.SIGTERM)
            # It waits for the old one, whose call has no longer than its own.
            assert await relay.process.wait() == 0
            ended = asyncio.Event()
            asyncio.get_running_loop().add_reader(new, ended.set)
            await ended.wait()
            asyncio.get_running_loop().remove_reader(new)
        finally:
            os.close(new)
        await turn.close()


async def test_no_upgrade_while_it_stops(tmp_path: Path) -> None:
    async with open_host() as host, upgradable(tmp_path, host.address, limits={"lame_duck_s": 3600}) as relay:
        relay.send_signal(signal.SIGTERM)
        await relay.logged("lame duck")
        said = "relay: the relay goes on as before: the relay is about to stop"
        assert await upgrade(relay.process.pid) == (1, "", said)


async def test_the_service_manager_learns_of_the_new_process(tmp_path: Path) -> None:
    async with open_host() as host, service_manager(tmp_path / "notify") as manager:
        environment = {"NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}
        async with upgradable(tmp_path, host.address, environment) as relay:
            await manager.hears("READY=1")
            new = await upgraded(relay.process.pid)
            assert await manager.hears("MAINPID=") == [f"MAINPID={new}"]
            # Only after that it is listened to. The watchdog is for it now.
            await manager.hears("READY=1")
            await manager.hears("WATCHDOG=1")
            assert await relay.process.wait() == 0
            assert not any("STOPPING" in text for text in [*manager.told, *manager.rest()])


async def test_systemd_without_notify_would_end_both(tmp_path: Path) -> None:
    path = tmp_path / "relay.toml"
    write_config(path, settings_tree(Authority(tmp_path), Address("127.0.0.1", 9)))
    # As systemd does, a shell says whom it starts.
    shell = 'unset NOTIFY_SOCKET; SYSTEMD_EXEC_PID=$$ exec "$@"'
    command = ["sh", "-c", shell, "sh", *PYTHON, "serve", "--config", str(path)]
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE, cwd=PROJECT)
    try:
        assert process.stdout is not None
        assert (await process.stdout.readline()).startswith(b"ready ")
        status, _, said = await upgrade(process.pid)
        assert (status, "the unit needs Type=notify" in said) == (1, True)
    finally:
        await kill(process)


# Sockets from systemd


@contextlib.asynccontextmanager
async def activated(path: Path, *addresses: Address) -> AsyncIterator[asyncio.subprocess.Process]:
    """What systemd does for a socket unit: it listens, and starts the relay when somebody comes."""
    listening = [text for address in addresses for text in ("--listen", str(address))]
    command = ["systemd-socket-activate", *listening, *PYTHON, "serve", "--config", str(path)]
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE, cwd=PROJECT)
    try:
        assert process.stderr is not None
        for _ in addresses:
            assert (await process.stderr.readline()).startswith(b"Listening on ")
        yield process
    finally:
        await kill(process)


needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-socket-activate") is None, reason="systemd-socket-activate is not here"
)


@needs_systemd
@PLANES
async def test_sockets_of_systemd(tmp_path: Path, plane: str) -> None:
    """Who has come before the relay, is served by it; and so are all who come to workers that share one socket."""
    authority, path = Authority(tmp_path), tmp_path / "relay.toml"
    with reserved_address() as tls, reserved_address() as admin, reserved_address() as proxy:
        async with open_host() as host:
            listen = {"tls": [str(tls)], "admin": str(admin), "web_proxy": [str(proxy)], "plane": plane, "workers": 3}
            tree = settings_tree(authority, host.address, listen=listen, limits=UNWATCHED)
            write_config(path, tree)
            async with activated(path, proxy, tls, admin) as process:
                relay = Served(process, path, tree, authority.client_context())
                relay.tls, relay.admin = tls, admin
                turns = await asyncio.gather(*(relay.open_turn() for _ in range(12)))
                await relay.becomes_ready()
                assert process.stdout is not None
                ready = (await process.stdout.readline()).decode()
                assert ready == f"ready tls={tls} admin={admin} web_proxy={proxy}\n"
                await asyncio.gather(*(turn.close() for turn in turns))
                process.send_signal(signal.SIGTERM)
                assert await process.wait() == 0


@needs_systemd
async def test_a_socket_that_no_setting_names(tmp_path: Path) -> None:
    path = tmp_path / "relay.toml"
    with reserved_address() as tls, reserved_address() as stranger:
        listen = {"tls": [str(tls)]}
        write_config(path, settings_tree(Authority(tmp_path), Address("127.0.0.1", 9), listen=listen))
        async with activated(path, stranger, tls) as process:
            _, writer = await asyncio.open_connection(*tls)
            assert await process.wait() == 2
            assert process.stderr is not None
            said = of_the_relay((await process.stderr.read()).decode())[-1]
            writer.close()
    expected = "expected only addresses that are in listen.tls, listen.web_proxy and listen.admin"
    assert said == f"relay: LISTEN_FDS: {stranger}: {expected}"
