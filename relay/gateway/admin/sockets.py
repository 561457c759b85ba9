"""Where the admin listener listens: unix sockets, and TLS with one of the relay's certificates."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from relay.addresses import UnixSocket
from relay.errors import OperatorError
from relay.name_patterns import one_label_wildcard
from relay.plane.certificates import ServerCertificate, load_certificate, new_context

# Whoever may connect may read everything, and that is the relay's own user and group.
SOCKET_MODE = 0o660
# Operators and their tools; the admin listener has a bound of its own.
BACKLOG = 64


def open_unix(where: UnixSocket) -> socket.socket:
    """A socket that listens at this path. Raises OperatorError.

    A file that a relay has left behind is replaced. One that somebody listens at is not, nor is any other file.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(where.path)
        # The file has no more rights than this from the beginning. Then it gets those that the umask has taken.
        os.fchmod(listener.fileno(), SOCKET_MODE)
        listener.bind(where.path)
        os.chmod(where.path, SOCKET_MODE)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OperatorError(f"cannot listen on {where} (listen.admin): {reason.lower()}") from None
    return listener


def _remove_stale(path: str) -> None:
    """Raises OSError if something is there that must stay."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.setblocking(False)
        try:
            asking.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:  # its queue is full, so somebody listens
            pass
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def identity_of(where: UnixSocket) -> tuple[int, int] | None:
    """What tells this file from another one that has its name later; None if there is no file."""
    try:
        found = os.lstat(where.path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def remove_unix(where: UnixSocket, identity: tuple[int, int] | None) -> None:
    """Remove the file, unless another relay has put its own there."""
    if identity is not None and identity_of(where) == identity:
        with contextlib.suppress(OSError):
            Path(where.path).unlink()


def admin_context(certificates: Sequence[ServerCertificate], names: Iterable[str]) -> ssl.SSLContext:
    """TLS with the first certificate that has one of these names or this machine's, or else with the first."""
    context = new_context()
    context.set_alpn_protocols(["http/1.1"])
    load_certificate(context, _choose(certificates, [*names, socket.gethostname().lower()]))
    return context


def _choose(certificates: Sequence[ServerCertificate], names: Iterable[str]) -> ServerCertificate:
    for name in names:
        for certificate in certificates:
            if not {name, one_label_wildcard(name)}.isdisjoint(certificate.names):
                return certificate
    return certificates[0]
