"""``relay capture``: asks a running relay for the packets of a flow, and keeps them in a file for Wireshark."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import aiohttp

from relay.console.asking import get, open_client, reason_of
from relay.console.listener import AdminListener
from relay.errors import OperatorError, UpstreamError
from relay.logs import printable
from relay.wire.pcapng import BlockCutter, CaptureTally, PcapngError

# The listener is near, and begins at once.
CONNECT_TIMEOUT_S = 5.0
# The relay ends a capture in time by itself. It waits ten seconds for a slow reader.
LATE_S = 15.0
# The form of an id. Nothing else goes into the path of a request.
_ID = re.compile(r"[0-9A-Za-z-]{1,64}")
# Flows of one user that are looked at. They are the worst of all that match.
MAX_FLOWS = 1000
# Ids that an error lists.
MAX_NAMED = 10


@dataclass(frozen=True, slots=True)
class Captured:
    """A file that was written; ``end`` is why the capture ended, in words."""

    path: Path
    packets: int
    bytes: int
    missed: int
    end: str


async def capture(listener: AdminListener, flow: str, seconds: float, path: Path) -> Captured:
    """Capture a flow into a new file. Cancelling it ends it early, and keeps what came.

    Raises OperatorError if the relay or the file system refuses. Raises UpstreamError if the relay goes away in the
    middle; then, too, the file holds what came.
    """
    if not _ID.fullmatch(flow):
        raise OperatorError(f"--flow {flow}: expected an id, as relay top and the dashboard show it")
    with _new_file(path) as file:
        taken = _Taken(file)
        await _fetch(taken, listener, f"/api/flows/{flow}/capture", seconds)
    if taken.lost is not None:
        raise UpstreamError(f"{taken.lost}; {path} has the {taken.tally.packets} packets that came")
    end = taken.tally.end or "it was stopped here"
    return Captured(path, taken.tally.packets, taken.bytes, taken.tally.missed, end)


async def flow_of(listener: AdminListener, user: str) -> str:
    """The id of the one flow that this user has now. Raises OperatorError if there is none, or there are several."""
    async with open_client(listener) as http_client:
        query = {"match": user, "limit": str(MAX_FLOWS)}
        found = await get(http_client, listener, "/api/flows", query, "flows")
    flows = [flow for flow in found["flows"] if flow["username"].casefold() == user.casefold()]
    if not flows:
        raise OperatorError(f"--user {user}: has no call now; relay top shows who has one")
    if len(flows) > 1:
        more = ", ..." if len(flows) > MAX_NAMED else ""
        ids = ", ".join(printable(flow["id"]) for flow in flows[:MAX_NAMED])
        raise OperatorError(f"--user {user}: has {len(flows)} calls now: choose one with --flow ({ids}{more})")
    return str(flows[0]["id"])


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name when it is complete, and leaves nothing behind if it fails. Raises OperatorError."""
    if path.exists():
        raise OperatorError(f"{path} exists; it is not overwritten")
    temporary: Path | None = None
    try:
        # Only its owner may read it: it shows who talks to whom.
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            yield file
        _rename(temporary, path)
    except OSError as error:
        raise OperatorError(f"{path}: {error.strerror or error}") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


class _Taken:
    """What came. Only whole blocks are written, so the file is readable wherever it ends."""

    def __init__(self, file: BinaryIO) -> None:
        self.tally = CaptureTally()
        self.bytes = 0
        # Why its end is missing, if the relay went away.
        self.lost: str | None = None
        self._file = file
        self._cutter = BlockCutter()

    def feed(self, data: bytes) -> None:
        """Write the whole blocks of this. Raises PcapngError, and OSError if the disk is full."""
        for block in self._cutter.feed(data):
            self.tally.add(block)
            self._file.write(block)
            self.bytes += len(block)
        self._file.flush()


async def _fetch(taken: _Taken, listener: AdminListener, path: str, seconds: float) -> None:
    url = listener.shown(path)
    timeout = aiohttp.ClientTimeout(total=seconds + LATE_S, sock_connect=CONNECT_TIMEOUT_S)
    try:
        async with (
            listener.open(timeout) as http_client,
            http_client.post(listener.url_of(path), params={"seconds": f"{seconds:.3f}"}) as answer,
        ):
            if answer.status != 200:
                raise OperatorError(f"{url} answers {answer.status}: {await reason_of(answer)}")
            async for data in answer.content.iter_any():
                taken.feed(data)
    except PcapngError as error:
        raise OperatorError(f"{url} answers something else ({error}): is this the relay's admin listener?") from None
    except (TimeoutError, aiohttp.ClientError) as error:
        said = str(error) or "it sends nothing more"
        if not taken.bytes:
            said = f"{url} cannot be read ({said}): is the relay running, and listen.admin there?"
            raise OperatorError(said) from None
        taken.lost = f"{url}: the relay went away ({said})"
    except asyncio.CancelledError:
        # Ctrl-C: keep what came, if anything did.
        if not taken.bytes:
            raise


def _rename(temporary: Path, path: Path) -> None:
    """Give the file its name, unless another file has taken it meanwhile."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise OperatorError(f"{path} was created meanwhile; it is not overwritten") from None
    except OSError:
        # A file system without hard links.
        if path.exists():
            raise OperatorError(f"{path} was created meanwhile; it is not overwritten") from None
        temporary.rename(path)
