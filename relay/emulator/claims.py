"""What only one emulator may have at a time: its folder, its file of a database, and the addresses where it listens.

All are claimed before anything is written, so that a start that fails leaves a folder as it was. Each message names
the option that chooses another.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from relay.addresses import Address
from relay.errors import OperatorError
from relay.sockaddr import to_sockaddr

LOCK_FILE = "emulator.lock"
# Longer than any process id, whatever somebody has written there.
_MAX_PID_BYTES = 32
# Clients that come before the site serves. The kernel allows no more than net.core.somaxconn (4096).
_BACKLOG = 128


@contextlib.contextmanager
def claimed(lock: Path, what: Path, option: str, *, shared: bool) -> Iterator[None]:
    """Hold a file's advisory lock during the block. ``shared``: with others that share it, and with nobody else.

    The lock ends with the process, however that ends. Raises OperatorError if another process has it.
    """
    try:
        # The file stays when the lock ends: removing it would let two processes lock two files of one name.
        number = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise OperatorError(f"{what}: {error.strerror or error}; {another(option)}") from None
    try:
        _lock(number, shared, f"{what}: in use by another emulator", another(option))
        yield
    finally:
        os.close(number)


def _lock(number: int, shared: bool, refused: str, advice: str) -> None:
    try:
        fcntl.flock(number, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OperatorError(f"{refused}{_holder(number)}; {advice}") from None
    os.ftruncate(number, 0)
    os.pwrite(number, f"{os.getpid()}\n".encode(), 0)


def _holder(number: int) -> str:
    """Which process has the lock, as it wrote itself. Empty if it has not written yet."""
    text = os.pread(number, _MAX_PID_BYTES, 0).decode(errors="replace").strip()
    return f" (process {text})" if text.isdecimal() else ""


def listen(what: str, address: Address, option: str) -> socket.socket:
    """A socket that listens; clients wait until somebody serves them. Raises OperatorError."""
    family = socket.AF_INET6 if address.is_ipv6 else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address.is_ipv6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.bind(to_sockaddr(address))
        opened.listen(_BACKLOG)
    except OSError as error:
        opened.close()
        raise OperatorError(f"{what} on {address}: {os.strerror(error.errno or 0)}; {another(option)}") from None
    return opened


def another(option: str) -> str:
    """What to do about something that is taken."""
    return f"choose another with {option}"


@contextlib.contextmanager
def chosen_by(option: str) -> Iterator[None]:
    """Add the option to an OperatorError of a block that binds an address."""
    try:
        yield
    except OperatorError as error:
        raise OperatorError(f"{error}; {another(option)}") from error
