"""The child process in which a PAC file runs. A question as JSON comes on stdin, the answer goes to stdout.

PyPAC has the functions that a PAC file may call, and dukpy's JavaScript interpreter. Neither has limits, so the kernel
sets them here before the file is looked at.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from typing import Any

# The interpreter and Python take some 100 MB of address space; a file of 1 MiB as much again.
MAX_MEMORY_BYTES = 512 * 1024 * 1024
# The parent kills it before, unless the parent is gone.
MAX_CPU_S = 6


def main() -> None:
    """Answer one question."""
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_S, MAX_CPU_S))
    question = json.loads(sys.stdin.buffer.read())
    try:
        find = _load(question["pac"])
        answers = {host: _text(find(f"https://{host}/", host)) for host in question["hosts"]}
        told: dict[str, Any] = {"answers": answers}
    except MemoryError:
        told = {"error": "it needed more memory than it may have"}
    # Whatever a file of somebody else's makes the interpreter raise.
    except Exception as error:
        told = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    sys.stdout.write(json.dumps(told))


def _load(text: str) -> Callable[[str, str], object]:
    from pypac.parser import PACFile  # noqa: PLC0415 - limits come first

    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    find: Callable[[str, str], object] = PACFile(text).find_proxy_for_url
    return find


def _text(answer: object) -> str:
    if not isinstance(answer, str):
        raise TypeError(f"FindProxyForURL returned {type(answer).__name__}, expected a text")
    return answer


if __name__ == "__main__":
    main()
