"""The compiled leaves against their Python twins, on whatever bytes a fuzzer thinks of.

``targets`` reads bytes as a scenario and plays it to both; ``python -m tests.fuzz TARGET`` lets atheris search;
``test_corpus`` replays what it found, and a few thousand scenarios of its own. ``_leaves`` is built by ``build``.
"""

from pathlib import Path

ROOT = Path(__file__).parents[2]
CORPUS = Path(__file__).parent / "corpus"
# What a search finds worth keeping, and where it fails.
FOUND = ROOT / "build" / "fuzz"
# Out of the tree, where it belongs to no wheel.
BUILT = ROOT / "build" / "leaves"
__path__.append(str(BUILT / "tests" / "fuzz"))
