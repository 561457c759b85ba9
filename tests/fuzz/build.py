"""Builds ``_leaves`` as setup.py builds the extension, with the same flags, when its sources have changed."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys

from tests.fuzz import BUILT, ROOT


def is_current() -> bool:
    """Whether what is built is younger than all that it is made of."""
    built = [library.stat().st_mtime for library in BUILT.rglob("_leaves.*.so")]
    sources = [ROOT / "setup.py", ROOT / "tests/fuzz/_leaves.pyx", *ROOT.glob("relay/plane/compiled/leaves/*.pxd")]
    return bool(built) and min(built) > max(source.stat().st_mtime for source in sources)


def build_leaves() -> None:
    """Build it now. Raises CalledProcessError, with the compiler's words on stderr."""
    BUILT.mkdir(parents=True, exist_ok=True)
    # The search and the tests may find it missing at once.
    with open(BUILT / "lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not is_current():
            _build()


def _build() -> None:
    command = [sys.executable, "setup.py", "-q", "build_ext", "--force", "--build-lib", str(BUILT)]
    # It counts its blocks of memory, and has none where a test says so: that alone of a debug build.
    flags = os.environ.get("CFLAGS", "") + " -DRELAY_DEBUG=1"
    environment = os.environ | {"RELAY_MODULE": "tests.fuzz._leaves", "CFLAGS": flags}
    subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=True)


if __name__ == "__main__":
    build_leaves()
