"""Which pairs of files the configuration means."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from relay.config import CertificateFiles
from relay.demo.authority import Authority
from relay.errors import OperatorError
from relay.gateway.certificates.files import pairs_of, read_all, state_of
from relay.plane.certificates import Certificate
from tests.support.certificates_made import authority, files_in, signed, write_pair, write_whole


def entry(certificate: Path, private_key: Path) -> CertificateFiles:
    return CertificateFiles(certificate=certificate, private_key=private_key)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.mark.parametrize(
    ("certificate", "private_key", "there", "pairs"),
    [
        ("*.pem", "*.key", ["b.pem", "b.key", "a.pem"], [("a.pem", "a.key"), ("b.pem", "b.key")]),
        ("*.pem", "keys/*.key", ["a.b.pem", "keys/c.key"], [("a.b.pem", "keys/a.b.key")]),
        ("live/*/full.pem", "live/*/key", ["live/README", "live/a/full.pem"], [("live/a/full.pem", "live/a/key")]),
        (
            "host-*.pem",
            "host-*.key",
            ["host-.pem", "host-a.pem", "xhost-b.pem"],
            [("host-a.pem", "host-a.key")],
        ),
        ("*.pem", "*.key", [".pem", ".a.pem.new", ".hidden.pem", "a.pem.old", "d.pem/x"], []),
        ("none/*.pem", "none/*.key", ["a.pem"], []),
        ("a.pem", "a.key", [], [("a.pem", "a.key")]),
    ],
    ids=["folder", "keys elsewhere", "folders", "part of a name", "hidden, longer, no file", "no folder", "no star"],
)
def test_patterns(
    tmp_path: Path, certificate: str, private_key: str, there: list[str], pairs: list[tuple[str, str]]
) -> None:
    touch(tmp_path, *there)
    found = pairs_of([entry(tmp_path / certificate, tmp_path / private_key)])
    assert found == [Certificate(tmp_path / chain, tmp_path / key) for chain, key in pairs]


def test_each_pair_once_in_the_order_of_the_configuration(tmp_path: Path) -> None:
    touch(tmp_path, "a.pem", "b.pem", "c.pem")
    entries = [entry(tmp_path / "c.pem", tmp_path / "c.key"), entry(tmp_path / "*.pem", tmp_path / "*.key")]
    assert [pair.chain.name for pair in pairs_of(entries)] == ["c.pem", "a.pem", "b.pem"]


def test_a_relative_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "a.pem")
    assert pairs_of([entry(Path("*.pem"), Path("*.key"))]) == [Certificate(Path("a.pem"), Path("a.key"))]


def test_certificates_of_a_folder(tmp_path: Path) -> None:
    issuer = authority()
    for name in ("a.test", "b.test"):
        write_pair(files_in(tmp_path, name), signed(issuer, name))
    assert [one.names for one in read_all([entry(tmp_path / "*.pem", tmp_path / "*.key")])] == [{"a.test"}, {"b.test"}]


def test_each_mistake_has_a_line(tmp_path: Path) -> None:
    issuer = authority()
    write_pair(files_in(tmp_path, "good"), signed(issuer, "good.test"))
    write_whole(tmp_path / "text.pem", b"this is no PEM\n")
    (tmp_path / "alone.pem").write_bytes((tmp_path / "good.pem").read_bytes())
    folder = entry(tmp_path / "*.pem", tmp_path / "*.key")
    with pytest.raises(OperatorError) as refused:
        read_all([folder])
    assert str(refused.value).splitlines() == [
        f"certificates.0: private key {tmp_path}/alone.key: No such file or directory",
        f"certificates.0: certificate {tmp_path}/text.pem: no PEM certificate in it",
    ]
    with pytest.raises(OperatorError) as refused:
        read_all([folder, entry(tmp_path / "none/*.pem", tmp_path / "none/*.key")])
    assert str(refused.value) == f"certificates.1.certificate: {tmp_path}/none/*.pem: no file matches"


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    files = Authority(tmp_path).issue("relay.test")
    with files.chain.open("ab") as chain:
        chain.truncate(1024 * 1024 + 1)
    with pytest.raises(OperatorError, match=r"relay\.test\.pem: expected at most 1048576 bytes"):
        read_all([entry(files.chain, files.private_key)])


def test_what_counts_as_a_change(tmp_path: Path) -> None:
    issuer = authority()
    linked, first, second = (files_in(tmp_path, stem) for stem in ("linked", "first", "second"))
    for files in (first, second):
        write_pair(files, signed(issuer, "a.test"))
    assert state_of(linked) == (None, None)
    linked.chain.symlink_to(first.chain)
    linked.private_key.symlink_to(first.private_key)
    states = [state_of(linked)]
    # Where a link leads is exchanged at once: so do Kubernetes and certbot.
    (tmp_path / "new").symlink_to(second.chain)
    os.replace(tmp_path / "new", linked.chain)
    states.append(state_of(linked))
    write_pair(second, signed(issuer, "a.test"))
    states.append(state_of(linked))
    first.private_key.unlink()
    states.append(state_of(linked))
    assert len(set(states)) == len(states)
    assert state_of(linked) == states[-1]
