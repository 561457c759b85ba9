"""A volume as Kubernetes keeps it: a change of any file in it is one turn of a link.

What is at its top is a link into ``..data``, which is a link to a folder that holds one version of all files.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath


class Volume:
    """Where it is mounted, and what it holds."""

    def __init__(self, folder: Path, files: Mapping[str, str | bytes]) -> None:
        """``files`` are contents by path."""
        self.folder = folder
        self.files = dict(files)
        self._version = 0
        folder.mkdir()
        self._publish()

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def change(self, files: Mapping[str, str | bytes]) -> None:
        """Replace the contents of these files, all at the same moment."""
        self.files |= files
        self._publish()

    def _publish(self) -> None:
        before, self._version = self._folder_of(self._version), self._version + 1
        now = self._folder_of(self._version)
        for name, content in self.files.items():
            path = now / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        turned = self.folder / "..data_tmp"
        turned.symlink_to(now.name)
        turned.replace(self.folder / "..data")
        for top in {PurePosixPath(name).parts[0] for name in self.files}:
            if not (self.folder / top).is_symlink():
                (self.folder / top).symlink_to(f"..data/{top}")
        if before.exists():
            shutil.rmtree(before)

    def _folder_of(self, version: int) -> Path:
        return self.folder / f"..2026_11_28_12_00_00.{version}"
