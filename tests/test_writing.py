"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from relay import writing
from relay.errors import OperatorError


def test_new_files_never_take_a_place(tmp_path: Path) -> None:
    path = tmp_path / "key"
    writing.write_new(path, b"first", mode=0o600)
    with pytest.raises(OperatorError, match="exists already, and is not overwritten"):
        writing.write_new(path, b"second")
    assert path.read_bytes() == b"first"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_that_leads_nowhere_is_a_place_taken(tmp_path: Path) -> None:
    link = tmp_path / "key"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OperatorError, match="exists already"):
        writing.write_new(link, b"secret")
    assert not (tmp_path / "elsewhere").exists()


def test_replacing_follows_a_link(tmp_path: Path) -> None:
    link, path = tmp_path / "link", tmp_path / "file"
    link.symlink_to(path)
    for content in (b"one", b"two"):
        writing.replace(link, content)
        assert path.read_bytes() == content
    assert link.is_symlink()
    assert sorted(tmp_path.iterdir()) == [path, link]


def test_whoever_has_it_open_sees_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    writing.replace(path, b"old")
    with path.open("rb") as file:
        writing.replace(path, b"new, and longer")
        assert file.read() == b"old"


@pytest.mark.parametrize("write", [writing.replace, writing.write_new])
def test_what_cannot_be_written(tmp_path: Path, write: object) -> None:
    assert callable(write)
    with pytest.raises(OperatorError, match="No such file or directory"):
        write(tmp_path / "gone" / "file", b"")
    with pytest.raises(OperatorError):
        write(tmp_path, b"")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    writing.replace(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OperatorError, match="No space left on device"):
        writing.replace(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
