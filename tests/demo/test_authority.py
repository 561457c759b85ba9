"""The throw-away authority: its certificates are what a strict client accepts."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from relay.addresses import Address
from relay.demo.authority import Authority
from relay.errors import UpstreamError
from relay.plane.certificates import read_certificate
from tests.support.benches.gateway import running_relay


def test_files_are_named_after_the_first_name(tmp_path: Path) -> None:
    issued = Authority(tmp_path).issue("*.relay.test", "Relay.test", "::1")
    assert (issued.chain.name, issued.private_key.name) == ("_.relay.test.pem", "_.relay.test.key")
    assert issued.chain.read_text().count("BEGIN CERTIFICATE") == 2
    assert read_certificate(issued).names == {"*.relay.test", "relay.test"}


def test_private_key_is_for_its_owner_alone(tmp_path: Path) -> None:
    issued = Authority(tmp_path).issue("relay.test")
    assert stat.S_IMODE(issued.private_key.stat().st_mode) == 0o600


async def test_client_trusts_its_own_authority_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other").client_context()
    async with running_relay(tmp_path, Address("127.0.0.1", 9)) as relay:
        for name in ("relay.test", "desk.relay.test", "127.0.0.1"):
            await (await relay.open_turn(server_name=name)).close()
        with pytest.raises(UpstreamError, match="elsewhere"):
            await relay.open_turn(server_name="elsewhere.test")
        object.__setattr__(relay, "trust", other)
        with pytest.raises(UpstreamError, match="certificate verify failed"):
            await relay.open_turn()
