"""What the emulator keeps is for its own user, also in a folder that was there before."""

from __future__ import annotations

from pathlib import Path

from relay.emulator.recordings.disk import Disk
from tests.support.benches.cloud import running_cloud


async def test_the_database_is_ours_alone_in_an_open_folder(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    database = folder / "emulator.db"
    # An earlier version has left it open.
    database.touch(0o644)
    database.chmod(0o644)
    async with running_cloud(folder, database=str(database)) as client:
        await client.login()
        kept = {path.name: path.stat().st_mode & 0o777 for path in folder.glob("emulator.db*")}
    assert kept == dict.fromkeys(("emulator.db", "emulator.db-wal", "emulator.db-shm", "emulator.db.lock"), 0o600)


def test_the_folder_of_all_media_is_ours_alone(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "recordings")
    file, _ = disk.open_at(disk.path("atlas", "one"), 0)
    assert file is not None
    file.close()
    for path in (tmp_path / "recordings", tmp_path / "recordings" / "atlas"):
        assert path.stat().st_mode & 0o777 == 0o700
