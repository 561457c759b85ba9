"""What reads bytes of the network, on whatever bytes a fuzzer thinks of.

The compiled leaves are compared with their Python twins (``targets``), and what has no twin must keep what it promises
(``parsers``, ``turn``). ``python -m tests.fuzz`` lets atheris search; ``test_corpus`` replays what it found, and a few
thousand scenarios of its own. ``_leaves`` is built by ``build``. ``face`` speaks to a whole relay through a socket.
"""

from pathlib import Path

from tests.support.compiled import folder_of

ROOT = Path(__file__).parents[2]
CORPUS = Path(__file__).parent / "corpus"
# What a search finds worth keeping, and where it fails.
FOUND = ROOT / "build" / "fuzz"
# The targets, by what is searched side by side; a test compares.
GROUPS = {
    "twins": (
        "framing", "first_bytes", "hello", "questions", "transactions", "meter", "schedule", "websocket", "capsule",
        "traffic",
    ),
    "parsers": (
        "stun", "packet", "proxy_header", "client_hello", "http_answer", "upgrade_answer", "request", "engineio",
        "media_v1", "entitlement", "ocsp", "turn_server", "turn_client",
    ),
}  # fmt: skip
__path__.append(folder_of("tests.fuzz._leaves"))
