"""Numbers that stand on both sides of the Cython border: what Python means by each is what the workers mean."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest

import relay
from relay.plane.api import Carrier, CloseReason, DropReason, Totals, Traffic
from relay.plane.certificates import ALPN_PROTOCOLS, HANDSHAKE_FAILURES
from relay.plane.client_certificates import ClientCertificates
from relay.plane.compiled.numbers import (
    CARRIERS,
    CLIENT_CERTIFICATES,
    DROPS,
    FAULTS,
    REASONS,
    TAP_DIRECTIONS,
    TAP_LOCAL,
    TRAFFICS,
    Notice,
)
from relay.plane.networks import NetworkKind
from relay.plane.settings import PlaneSettings
from relay.wire.stream import FramingFault

ROOT = Path(relay.__file__).parent
# The emulator has native parts too, with numbers of their own.
DICTIONARIES = sorted([*ROOT.glob("*.pxd"), *(ROOT / "plane").rglob("*.pxd")])
# A marker that is not one of the kinds: the last of the facts.
NO_NOTICE = {"LAST"}
TWIN_FOLDERS = ("wire", "turn", "quality", "plane/reference", "plane")
# Modules that have a compiled twin of the same name.
NAMESAKES = {path.stem: path for folder in TWIN_FOLDERS for path in (ROOT / folder).glob("*.py")}
# Modules whose numbers are in a dictionary of another name.
OTHER_TWINS = {
    "carriage": ["plane/reference/pings.py"],
    "downlink": ["plane/alternates.py", "plane/reference/turn_flow.py"],
}


def enumerated(source: str) -> list[tuple[str, int]]:
    """The members of all enumerations of a Cython source whose values are plain numbers, in order."""
    found: list[tuple[str, int]] = []
    for block in re.findall(r"^cdef enum\b.*:.*\n((?:    .*\n|\n)*)", source, re.MULTILINE):
        value: int | None = -1
        for name, given in re.findall(r"^    ([A-Z]\w*)(?: *= *([^#\n]*[^#\s]))?", block, re.MULTILINE):
            value = number(given) if given else None if value is None else value + 1
            if value is not None:
                found.append((name, value))
    return found


def number(text: str) -> int | None:
    shifted = re.fullmatch(r"(\w+) << (\w+)", text)
    try:
        return int(shifted[1], 0) << int(shifted[2], 0) if shifted else int(text, 0)
    except ValueError:  # made of other names
        return None


def prefixed(prefix: str) -> dict[str, int]:
    """The members that begin with a prefix, in whichever dictionary they stand, without it."""
    members = [member for path in DICTIONARIES for member in enumerated(path.read_text())]
    return {name.removeprefix(prefix): value for name, value in members if name.startswith(prefix)}


SOURCE = """
cdef enum Kind:
    ONE_A    # why

    # B
    ONE_B
    TWO = 1 << 4
    X = A + 1
cdef enum:
    N = -3
"""


def test_enumerations_are_read() -> None:
    assert enumerated(SOURCE) == [("ONE_A", 0), ("ONE_B", 1), ("TWO", 16), ("N", -3)]


# ---- Enumerations


@pytest.mark.parametrize(
    ("prefix", "meant", "order"),
    [
        ("REASON_", CloseReason, REASONS),
        ("DROP_", DropReason, DROPS),
        ("CARRIER_", Carrier, CARRIERS),
        ("TRAFFIC_", Traffic, TRAFFICS),
        ("ASK_", ClientCertificates, CLIENT_CERTIFICATES),
    ],
)
def test_enumerations_have_one_order_on_both_sides(
    prefix: str,
    meant: type[CloseReason | DropReason | Carrier | Traffic | ClientCertificates],
    order: tuple[object, ...],
) -> None:
    assert list(prefixed(prefix).items()) == [(member.name, place) for place, member in enumerate(meant)]
    assert list(meant) == list(order)


def test_the_words_of_reasons_have_room_in_a_close_frame() -> None:
    """``close_words`` has 32 bytes for each, with the NUL, and would cut a longer word without a sign."""
    source = (ROOT / "plane/compiled/engine.pxd").read_text()
    assert "char[REASONS][32] close_words" in source
    assert [reason.value for reason in CloseReason if len(reason.value) > 31] == []


def test_notices_have_one_number_on_both_sides() -> None:
    notices = {name: value for name, value in prefixed("NOTICE_").items() if name not in NO_NOTICE}
    assert notices == {notice.name: notice.value for notice in Notice}


def test_framing_faults_have_one_number_on_both_sides() -> None:
    assert prefixed("FAULT_") == {fault.name: -place for place, fault in enumerate(FAULTS, 1)}
    assert list(FramingFault) == list(FAULTS)


def test_kinds_of_tapped_datagrams_have_one_number_on_both_sides() -> None:
    kinds = {name: value for name, value in prefixed("TAP_").items() if name != "BYTES"}
    assert kinds == {direction.name: place for place, direction in enumerate(TAP_DIRECTIONS)} | {"LOCAL": TAP_LOCAL}


# ---- Lists and layouts


def test_both_sides_offer_the_same_protocols() -> None:
    """And number them in the order of the list, by their lengths."""
    offered = b"".join(bytes([len(protocol)]) + protocol.encode() for protocol in ALPN_PROTOCOLS)
    source = (ROOT / "plane/compiled/leaves/contexts.pxd").read_text()
    (literal,) = re.findall(r'ours = b"([^"]*)"', source)
    assert literal.encode().decode("unicode_escape").encode("latin-1") == offered
    assert f"ours, {len(offered)}," in source
    assert len({len(protocol) for protocol in ALPN_PROTOCOLS}) == len(ALPN_PROTOCOLS)


def fields_of(struct: str) -> list[str]:
    """The names in a struct of a dictionary, in order."""
    pattern = rf"^cdef struct {struct}:\n((?:    .*\n)*)"
    (block,) = (found for path in DICTIONARIES for found in re.findall(pattern, path.read_text(), re.MULTILINE))
    return re.findall(r"^    \S+ (\w+)", block, re.MULTILINE)


def test_counters_are_in_the_order_of_totals() -> None:
    assert fields_of("Counters") == list(Totals.__dataclass_fields__)


def test_bounds_are_called_after_the_settings() -> None:
    """The workers take each setting by its name; the sources of UDP are Python's alone."""
    names = [name.removesuffix("us") + "s" if name.endswith("_us") else name for name in fields_of("Bounds")]
    own = {"source_ipv4", "source_ipv6"}
    networks = {"allowed_clients", "denied_clients", "exempt_clients"}  # a list each, see below
    assert {*names, *own, *networks} == set(PlaneSettings.__dataclass_fields__)


def test_lists_of_networks_have_one_number_on_both_sides() -> None:
    assert prefixed("NETWORK_") == {kind.name: kind.value for kind in NetworkKind}


def test_the_words_for_a_bad_hello_are_known() -> None:
    """What the workers say of it is looked up in Python."""
    source = (ROOT / "plane/compiled/leaves/hello.pxd").read_text()
    words = re.findall(r'return b"(.*)"$', source, re.MULTILINE)
    assert len(words) > 3
    assert {word.upper().replace(" ", "_") for word in words} - set(HANDSHAKE_FAILURES) <= {"WRONG_VERSION_NUMBER"}


# ---- Constants of a module and of its compiled twin


def constants(module: ModuleType) -> dict[str, int]:
    """The numbers of a module, times in microseconds, without the underscore of what is its own."""
    found: dict[str, int] = {}
    for name, value in vars(module).items():
        if name.isupper() and isinstance(value, int | float):
            own = name.lstrip("_")
            found[own.removesuffix("_S") + "_US" if own.endswith("_S") else own] = (
                round(value * 1e6) if own.endswith("_S") else int(value)
            )
    return found


def twins() -> list[tuple[Path, Path]]:
    """Dictionaries, each with a Python module that may have the same constants."""
    namesakes = [(path, NAMESAKES[path.stem]) for path in DICTIONARIES if path.stem in NAMESAKES]
    return namesakes + [(path, ROOT / name) for path in DICTIONARIES for name in OTHER_TWINS.get(path.stem, ())]


def module_of(path: Path) -> ModuleType:
    return importlib.import_module(".".join(path.relative_to(ROOT.parent).with_suffix("").parts))


def in_common(dictionary: Path, twin: Path) -> dict[str, tuple[int, int]]:
    """The constants that a dictionary and its twin both have, as the two have them."""
    compiled, obvious = dict(enumerated(dictionary.read_text())), constants(module_of(twin))
    return {name: (compiled[name], obvious[name]) for name in compiled.keys() & obvious.keys()}


@pytest.mark.parametrize(("dictionary", "twin"), twins(), ids=lambda path: path.stem)
def test_constants_of_twins_are_equal(dictionary: Path, twin: Path) -> None:
    assert {name: values for name, values in in_common(dictionary, twin).items() if len(set(values)) > 1} == {}


def test_constants_of_twins_are_seen() -> None:
    seen = {name for dictionary, twin in twins() for name in in_common(dictionary, twin)}
    assert seen >= {"BEHIND_US", "MAX_HELLO_BYTES", "METHOD_BYTES", "PEER_CONTROL_PERIOD_US", "SURE_BYTES"}
    assert seen >= {"MAX_CLIENT_CHAIN_BYTES", "MAX_FRESH_PORTS", "MAX_HOPS", "MAX_TEXTS_A_PING", "MAX_UNASKED_A_PING"}
