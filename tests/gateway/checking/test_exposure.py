"""What a configuration leaves open is told, with its key; what is not open is not."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from relay import config
from relay.gateway.checking.exposure import find_exposures, what_others_may

TOKEN_HASH = "$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHQ$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
SOURCE = Path("/etc/cloud9-relay/relay.toml")


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that every user of the machine can enter, unlike those of pytest."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def exposures(source: Path = SOURCE, **sections: Any) -> list[str]:
    tree = {
        "certificates": [{"certificate": "cert.pem", "private_key": "key.pem"}],
        "upstreams": [{"name": "stun1", "address": "192.0.2.7:3478"}],
        **sections,
    }
    return find_exposures(config.parse(tree, folder=source.parent, source=str(source)), source)


def test_a_web_proxy_for_everybody() -> None:
    addresses = ["0.0.0.0:3128", "[::]:3128", "8.8.8.8:3128", "10.20.0.5:3129", "127.0.0.1:3130", "[fd00::1]:3131"]
    found = exposures(listen={"web_proxy": addresses[0:2] + addresses[3:]})
    assert [line.partition(": everyone")[0] for line in found] == [
        "listen.web_proxy.0: 0.0.0.0:3128",
        "listen.web_proxy.1: [::]:3128",
    ]
    [line] = exposures(listen={"web_proxy": addresses[2:]})
    assert line.startswith("listen.web_proxy.0: 8.8.8.8:3128: ")
    assert "web_proxy.users" in line
    assert exposures(listen={"web_proxy": addresses[0:1]}, web_proxy={"users": {"ann": "sesame"}}) == []
    assert exposures(listen={"web_proxy": addresses[0:1]}, access={"allow": ["10.0.0.0/8"]}) == []


def test_an_admin_listener_without_protection() -> None:
    [line] = exposures(listen={"admin": "0.0.0.0:9443", "admin_unprotected": True})
    assert line.startswith("listen.admin: 0.0.0.0:9443: everyone who reaches it may see who calls whom")
    token = {"token_hash": TOKEN_HASH}
    [line] = exposures(listen={"admin": "10.20.0.5:9443", "admin_unprotected": True}, admin=token)
    assert line.startswith("listen.admin: 10.20.0.5:9443: the token crosses the network unencrypted")
    assert exposures(listen={"admin": "0.0.0.0:9443"}, admin=token) == []
    assert exposures(listen={"admin": "127.0.0.1:9443", "admin_unprotected": True}) == []
    assert exposures(listen={"admin": "unix:/run/cloud9-relay/admin.sock"}) == []


def test_a_redis_that_others_can_use() -> None:
    lines = exposures(cluster={"redis": "redis://redis.test"})
    assert [line.partition(":")[0] for line in lines] == ["cluster.redis", "cluster.redis"]
    assert "unencrypted" in lines[0]
    assert "cluster.password_file" in lines[1]
    assert exposures(cluster={"redis": "rediss://redis.test", "password_file": "password"}) == []
    assert exposures(cluster={"redis": "redis://127.0.0.1:6379/2", "password_file": "password"}) == []


def test_balancers_that_may_be_anybody() -> None:
    networks = ["0.0.0.0/0", "10.0.0.0/8", "10.20.0.0/16", "10.20.0.1", "::/0", "fd00::/8", "fd00:1:2::/48"]
    found = exposures(balancers={"networks": networks})
    assert [line.partition(": every")[0] for line in found] == [
        "balancers.networks.0: 0.0.0.0/0",
        "balancers.networks.1: 10.0.0.0/8",
        "balancers.networks.4: ::/0",
        "balancers.networks.5: fd00::/8",
    ]


def test_files_that_everybody_can_read(shared: Path) -> None:
    source = shared / "relay.toml"
    for name in ("relay.toml", "cert.pem", "key.pem", "users.toml"):
        (shared / name).touch(mode=0o644)
    sections: dict[str, Any] = {"entitlement": {"policy": "file", "file": "users.toml"}}
    key = f"certificates.0.private_key: {shared}/key.pem: every user of this machine can read it: run chmod o= "
    users = f"entitlement.file: {shared}/users.toml: every user of this machine can read it: run chmod o= "
    assert exposures(source, **sections) == [f"{key}{shared}/key.pem", f"{users}{shared}/users.toml"]

    # Only with secrets in it the configuration is one.
    secrets = {"upstreams": [{"name": "stun1", "address": "192.0.2.7:3478", "secret": "hunter2"}]}
    whole = f"{source}: has passwords or other secrets, and every user of this machine can read it: run chmod o= "
    found = exposures(source, **secrets)
    assert found[0] == f"{whole}{source}"
    assert "hunter2" not in "".join(found)
    assert exposures(source, web_proxy={"users": {"ann": "hunter2"}})[0] == found[0]

    for name in ("relay.toml", "key.pem", "users.toml"):
        (shared / name).chmod(0o640)
    assert exposures(source, **sections, **secrets) == []


def test_a_secret_in_a_file_of_its_own(shared: Path) -> None:
    """Then that file is to be kept from others, and not the configuration."""
    source = shared / "relay.toml"
    (shared / "key.pem").touch(mode=0o640)
    source.touch(mode=0o644)
    (shared / "secret").write_text("hunter2")
    (shared / "secret").chmod(0o644)
    upstream = {"name": "stun1", "address": "192.0.2.7:3478", "secret": {"file": "secret"}}
    tells = f"upstreams.0.secret: {shared}/secret: every user of this machine can read it: run chmod o= {shared}/secret"
    assert exposures(source, upstreams=[upstream]) == [tells]
    (shared / "secret").chmod(0o640)
    assert exposures(source, upstreams=[upstream]) == []
    # One that is still in the configuration is enough.
    [line] = exposures(source, upstreams=[upstream], web_proxy={"users": {"ann": "hunter3"}})
    assert line.startswith(f"{source}: has passwords or other secrets")


@pytest.mark.parametrize(
    ("mode", "may"), [(0o600, ""), (0o640, ""), (0o644, "read"), (0o662, "change"), (0o666, "read and change")]
)
def test_what_others_may_do_with_a_file(shared: Path, mode: int, may: str) -> None:
    path = shared / "key.pem"
    path.touch()
    path.chmod(mode)
    link = shared / "link"
    link.symlink_to(path)
    assert (what_others_may(path), what_others_may(link)) == (may, may)
    # Nobody else gets through its folder.
    shared.chmod(0o750)
    assert what_others_may(path) == ""


def test_files_that_are_not_there(shared: Path) -> None:
    circle = shared / "circle"
    circle.symlink_to(circle)
    assert (what_others_may(circle), what_others_may(shared / "none")) == ("", "")
