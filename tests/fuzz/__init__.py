"""The compiled leaves against their Python twins, on whatever bytes a fuzzer thinks of.

``targets`` reads bytes as a scenario and plays it to both; ``python -m tests.fuzz TARGET`` lets atheris search;
``test_corpus`` replays what it found, and a few thousand scenarios of its own. ``_leaves`` is built by ``build``.
"""

from pathlib import Path

from tests.support.compiled import folder_of

ROOT = Path(__file__).parents[2]
CORPUS = Path(__file__).parent / "corpus"
# What a search finds worth keeping, and where it fails.
FOUND = ROOT / "build" / "fuzz"
__path__.append(folder_of("tests.fuzz._leaves"))
