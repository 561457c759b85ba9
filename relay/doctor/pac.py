"""Asks a PAC file which proxy is to be used, in a child process that cannot hang, grow or be steered by it.

The file is a program of somebody else's: it may loop, fill the memory, or ask DNS for minutes. So ``pac_engine`` runs
it with limits of the kernel on time and memory, and is killed at the deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from relay import deadlines
from relay.addresses import parse_address
from relay.client.connect import Proxy
from relay.errors import RelayError
from relay.logs import printable

# All hosts together. Functions of PAC ask DNS, which may take a while; a user waits for this at each start of a client.
DEADLINE_S = 5.0
# Real files have some KiB, the largest some hundred. Browsers take 1 MiB.
MAX_FILE_BYTES = 1024 * 1024
# A line for each host. An answer has some dozen characters.
MAX_OUTPUT_BYTES = 256 * 1024
ENGINE = "pypac"
# As a file, so that it does not load the whole package first.
PROGRAM = str(Path(__file__).with_name("pac_engine.py"))
NO_ENGINE = "evaluating a PAC file needs the extra doctor: install cloud9-relay[doctor]"


class PacError(RelayError):
    """The PAC file cannot be used; the message says why."""


def has_engine() -> bool:
    """Whether the extra is installed."""
    return importlib.util.find_spec(ENGINE) is not None


async def ask(text: str, hosts: Sequence[str], deadline_s: float = DEADLINE_S) -> Mapping[str, str]:
    """The answer for each host, as the file gives it, such as ``PROXY a:3128; DIRECT``. Raises PacError."""
    if not has_engine():
        raise PacError(NO_ENGINE)
    if len(text.encode()) > MAX_FILE_BYTES:
        raise PacError(f"the file has more than {MAX_FILE_BYTES // 1024} KiB")
    question = json.dumps({"pac": text, "hosts": list(hosts)}).encode()
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", PROGRAM),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        limit=MAX_OUTPUT_BYTES,
    )
    try:
        async with deadlines.timeout(deadline_s):
            output, _ = await child.communicate(question)
    except TimeoutError:
        raise PacError(f"it gave no answer within {deadline_s:g} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()
    return _answers(output)


def _answers(output: bytes) -> Mapping[str, str]:
    try:
        told = json.loads(output[:MAX_OUTPUT_BYTES])
        if "error" in told:
            raise PacError(printable(str(told["error"])))
        return {str(host): printable(str(answer)) for host, answer in told["answers"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise PacError("it needed more time or memory than it may have") from None


def parse_answer(answer: str) -> tuple[tuple[Proxy | None, ...], list[str]]:
    """The ways of an answer in turn, None for DIRECT, and what of it is not understood."""
    ways: list[Proxy | None] = []
    faults: list[str] = []
    for part in answer.split(";"):
        word, _, server = part.strip().partition(" ")
        if not word:
            continue
        if word.upper() == "DIRECT" and not server:
            ways.append(None)
        elif word.upper() in {"PROXY", "HTTP"} and (proxy := _proxy(server.strip())) is not None:
            ways.append(proxy)
        else:
            faults.append(f"{part.strip()!r} is not DIRECT or PROXY host:port")
    return tuple(ways), faults


def _proxy(server: str) -> Proxy | None:
    try:
        # RFC 9110 section 4.2.1: the port of http is 80.
        return Proxy(parse_address(server if ":" in server else f"{server}:80"))
    except ValueError:
        return None
