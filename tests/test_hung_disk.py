"""A disk that hangs, as a network's file system may: a pipe that nobody writes to, in place of a file."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import aiohttp
import pytest

from relay.addresses import Address
from relay.demo.authority import Authority
from relay.errors import OperatorError
from relay.gateway import read_ahead as module
from tests.support.benches.gateway import settings_tree, write_config
from tests.support.benches.serving import Served, open_host, serving
from tests.support.waiting import eventually


def replace_by_pipe(path: Path) -> None:
    pipe = path.with_suffix(".pipe")
    os.mkfifo(pipe)
    pipe.replace(path)


async def is_being_read(path: Path) -> int:
    """Wait until somebody reads the pipe; a descriptor to write to."""
    opened: list[int] = []

    def is_opened() -> bool:
        try:
            opened.append(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:  # nobody reads it yet
            return False
        return True

    await eventually(is_opened, f"nobody reads {path}")
    return opened[0]


async def test_a_list_of_users_that_cannot_be_read_to_its_end(tmp_path: Path) -> None:
    users = tmp_path / "users.toml"
    users.write_text("[[users]]\nuser = 'trader'\n")
    entitlement = {"policy": "file", "file": "users.toml"}
    async with open_host() as host, serving(tmp_path, host.address, entitlement=entitlement) as relay:
        replace_by_pipe(users)
        writer = await is_being_read(users)
        try:
            # The list that was there counts.
            await (await relay.open_turn()).close()
            relay.send_signal(signal.SIGTERM)
            assert await relay.ended() == 0
        finally:
            os.close(writer)


async def hung_reload(relay: Served) -> int:
    """Have it reload, with a certificate that is never read to its end; a descriptor whose close ends it."""
    certificate = Path(relay.tree["certificates"][0]["certificate"])
    replace_by_pipe(certificate)
    relay.send_signal(signal.SIGHUP)
    writer = await is_being_read(certificate)
    # Served with the one that was there.
    await (await relay.open_turn()).close()
    async with aiohttp.ClientSession() as session, session.get(f"http://{relay.admin}/healthz") as response:
        assert response.status == 200
    return writer


async def test_a_certificate_that_cannot_be_read_to_its_end(tmp_path: Path) -> None:
    async with open_host() as host, serving(tmp_path, host.address) as relay:
        writer = await hung_reload(relay)
        try:
            relay.send_signal(signal.SIGTERM)
            assert await relay.ended() == 0
        finally:
            os.close(writer)


async def test_a_certificate_that_is_read_after_a_while(tmp_path: Path) -> None:
    async with open_host() as host, serving(tmp_path, host.address) as relay:
        writer = await hung_reload(relay)
        # Now the file names another one.
        relay.tree["certificates"][0]["certificate"] = "gone.pem"
        write_config(relay.path, relay.tree)
        os.close(writer)
        assert "gone.pem" in (await relay.logged("configuration not reloaded: the old one stays"))["cause"]
        relay.log.clear()
        relay.send_signal(signal.SIGTERM)
        assert await relay.ended() == 0


async def test_a_certificate_that_is_not_read_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ_TIMEOUT_S", 0.05)
    tree = settings_tree(Authority(tmp_path), Address("127.0.0.1", 9))
    write_config(tmp_path / "relay.toml", tree)
    certificate = Path(tree["certificates"][0]["certificate"])
    replace_by_pipe(certificate)
    with pytest.raises(OperatorError, match=r"relay\.toml: it, or a file that it names, was not read within 0\.05 s"):
        await module.read_ahead(tmp_path / "relay.toml")
    # The thread reads still.
    os.close(await is_being_read(certificate))
