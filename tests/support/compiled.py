"""Builds a module of the tests as setup.py builds the extensions, when its sources have changed."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Out of the tree, where it belongs to no wheel.
BUILT = ROOT / "build" / "leaves"


def folder_of(module: str) -> str:
    """Where the built module lies, for the ``__path__`` of its package."""
    return str(BUILT.joinpath(*module.split(".")[:-1]))


def is_current(module: str, sources: Iterable[Path]) -> bool:
    """Whether what is built is younger than all that it is made of."""
    name = module.rpartition(".")[2]
    built = [library.stat().st_mtime for library in Path(folder_of(module)).glob(f"{name}.*.so")]
    own = ROOT.joinpath(*module.split(".")).with_suffix(".pyx")
    return bool(built) and min(built) > max(source.stat().st_mtime for source in [ROOT / "setup.py", own, *sources])


def build(module: str, sources: Iterable[Path]) -> None:
    """Build it, if a source is younger. Raises CalledProcessError, with the compiler's words on stderr."""
    sources = list(sources)
    BUILT.mkdir(parents=True, exist_ok=True)
    # Several runs may find it missing at once.
    with open(BUILT / "lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not is_current(module, sources):
            _build(module)


def _build(module: str) -> None:
    command = [sys.executable, "setup.py", "-q", "build_ext", "--force", "--build-lib", str(BUILT)]
    # It counts its blocks of memory, and has none where a test says so: that alone of a debug build.
    flags = os.environ.get("CFLAGS", "") + " -DRELAY_DEBUG=1"
    environment = os.environ | {"RELAY_MODULE": module, "CFLAGS": flags}
    subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=True)
