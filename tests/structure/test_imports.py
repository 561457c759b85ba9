"""Imports point one way: each folder imports only what stands above it in the list of ``relay/__init__.py``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import relay
import relay.emulator
import relay.plane.compiled
from tests.support.imports import cython_imported_modules, imported_modules

ROOT = Path(relay.__file__).parent
# From the bottom up, as the front door lists them; what stands in one line is one layer.
LAYERS = [
    {"addresses", "name_patterns"},
    {"sockaddr"},
    {"errors"},
    {"writing", "rate_limit", "timer", "deadlines"},
    {"config"},
    {"catalog"},
    {"wire"},
    {"turn"},
    {"quality"},
    {"output"},
    {"logs", "tasks", "local_datagrams", "garbage", "bodies"},
    {"plane", "_fastpath"},
    {"ca"},
    {"client"},
    {"doctor"},
    {"gateway", "console", "emulator"},
    {"floor"},
    {"demo"},
    {"cli"},
    {"__main__"},
]
# The floors of the gateway, from the bottom up; what stands in one line does not know each other.
FLOORS = [
    {"lines", "descriptors", "listening", "file_state", "memory"},
    {"pauses", "plane_bounds"},
    {"accepting"},
    {"calls", "certificates", "cluster", "routing"},
    {"entitlement", "signaling"},
    {"sessions"},
    {"http"},
    {"balancers"},
    {"proxied", "web_proxy"},
    {"admin"},
    {"read_ahead", "checking", "hardening", "departure"},
    {"app"},
    {"notify", "inherited", "config_watch"},
    {"successor"},
    {"serve"},
]
HEIGHTS = {room: height for height, floor in enumerate(FLOORS) for room in floor}
# What the front door leaves to those who are inside.
UNLISTED = {"_fastpath", "__main__", "output", "logs", "tasks"}
RANKS = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
# Whoever imports one of these has a socket, or a loop to wait in.
IO = {"asyncio", "socket", "ssl", "select", "selectors", "socketserver", "uvloop", "aiohttp", "threading", "subprocess"}
CLOCK = {"time", "datetime", "logging", "structlog"}


def part_of(module: str) -> str | None:
    """The folder or file below ``relay`` that a module belongs to; None for what is not ours."""
    first, _, rest = module.partition(".")
    return rest.partition(".")[0] or None if first == "relay" else None


def sources() -> list[Path]:
    return sorted(path for suffix in ("py", "pyi", "pyx", "pxd") for path in ROOT.rglob(f"*.{suffix}"))


def imports_of(path: Path) -> set[str]:
    source = path.read_text()
    if path.suffix in {".pyx", ".pxd"}:
        return cython_imported_modules(source)
    return imported_modules(source, ".".join(["relay", *path.parent.relative_to(ROOT).parts]))


def owner_of(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def violations(owner: str, modules: set[str]) -> set[str]:
    """What ``owner`` must not import: what stands below it, or beside it under another name."""
    parts = {part for module in modules if (part := part_of(module)) in RANKS}
    beside = {"plane", "_fastpath"}  # They are two halves of one layer.
    return {
        part
        for part in parts
        if part is not None and part != owner and not {part, owner} <= beside and RANKS[part] >= RANKS[owner]
    }


RELATIVE = [str(path.relative_to(ROOT)) for path in sources()]


@pytest.mark.parametrize("name", [name for name in RELATIVE if name != "__init__.py"])
def test_each_module_imports_only_what_stands_above_it(name: str) -> None:
    path = ROOT / name
    assert owner_of(path) in RANKS, "a new folder needs its place in the list"
    assert violations(owner_of(path), imports_of(path)) == set()


def test_the_front_door_imports_nothing() -> None:
    assert imports_of(ROOT / "__init__.py") == set()


def test_the_list_is_that_of_the_front_door() -> None:
    """The docstring names the same folders in the same order."""
    assert relay.__doc__ is not None
    listed = re.findall(r"^(\w[\w, ]*?)/?  +\S", relay.__doc__.partition("Folders")[2], re.MULTILINE)
    names = [name.strip() for line in listed for name in line.split(",")]
    assert sorted(names, key=RANKS.__getitem__) == names
    assert set(names) | UNLISTED == set(RANKS)


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in RELATIVE
        if name.startswith(("catalog/", "wire/", "turn/", "quality/", "rate_limit.", "name_patterns."))
    ],
)
def test_protocol_code_has_no_io(name: str) -> None:
    roots = {module.partition(".")[0] for module in imports_of(ROOT / name)}
    assert roots & IO == set()
    if name.startswith("wire/"):
        assert roots & CLOCK == set()


def test_gateway_console_and_emulator_do_not_know_each_other() -> None:
    assert violations("gateway", {"relay.console.top"}) == {"console"}
    assert violations("console", {"relay.gateway.admin.view"}) == {"gateway"}
    assert violations("gateway", {"relay.emulator.turn.slow"}) == {"emulator"}
    assert violations("emulator", {"relay.gateway"}) == {"gateway"}


def rooms_of(modules: set[str]) -> set[str]:
    """The folders and files of ``gateway`` that are among the imported modules."""
    return {
        rest.partition(".")[0]
        for module in modules
        for rest in [module.removeprefix("relay.gateway.")]
        if rest != module
    }


def room_of(path: Path) -> str:
    """The folder or file of ``gateway`` that a file belongs to."""
    return path.relative_to(ROOT / "gateway").parts[0].removesuffix(".py")


@pytest.mark.parametrize(
    "name", [name for name in RELATIVE if name.startswith("gateway/") and name != "gateway/__init__.py"]
)
def test_each_room_of_the_gateway_imports_only_lower_floors(name: str) -> None:
    path = ROOT / name
    room = room_of(path)
    assert room in HEIGHTS, "a new room needs its floor"
    above = {other for other in rooms_of(imports_of(path)) - {room} if HEIGHTS[other] >= HEIGHTS[room]}
    assert above == set()


# The parts of the emulator

PARTS_OF_THE_EMULATOR = [
    name.strip()
    for line in re.findall(r"^(\w[\w, ]*?)/?  +\S", (relay.emulator.__doc__ or "").partition("-\n")[2], re.MULTILINE)
    for name in line.split(",")
]


def parts_of(modules: set[str]) -> set[str]:
    """The folders and files of ``emulator`` that are among the imported modules."""
    inside = "relay.emulator."
    return {module.removeprefix(inside).partition(".")[0] for module in modules if module.startswith(inside)}


@pytest.mark.parametrize(
    "name", [name for name in RELATIVE if name.startswith("emulator/") and name != "emulator/__init__.py"]
)
def test_each_part_of_the_emulator_imports_only_what_stands_above_it(name: str) -> None:
    path = ROOT / name
    part = path.relative_to(ROOT / "emulator").parts[0].partition(".")[0]
    assert part in PARTS_OF_THE_EMULATOR, "a new part needs its place in the list"
    above = PARTS_OF_THE_EMULATOR[: PARTS_OF_THE_EMULATOR.index(part)]
    assert parts_of(imports_of(path)) - {part} - set(above) == set()


def test_parts_are_seen() -> None:
    assert parts_of({"relay.emulator.store.tables", "relay.emulator", "relay.wire"}) == {"store"}


def planes_of(modules: set[str]) -> set[str]:
    """Which planes are among the imported modules; the compiled one has two names."""
    names = {f"{module}." for module in modules}
    compiled = ("relay.plane.compiled.", "relay._fastpath.")
    found = {"compiled"} if any(name.startswith(compiled) for name in names) else set()
    return found | ({"reference"} if any(name.startswith("relay.plane.reference.") for name in names) else set())


@pytest.mark.parametrize("name", [name for name in RELATIVE if name.startswith(("plane/", "_fastpath"))])
def test_neither_plane_imports_the_other(name: str) -> None:
    """And what both share knows neither."""
    own = {"reference"} if name.startswith("plane/reference/") else set()
    own |= {"compiled"} if name.startswith(("plane/compiled/", "_fastpath")) else set()
    assert planes_of(imports_of(ROOT / name)) - own == set()


# The layers of the compiled plane

LAYERS_OF_THE_COMPILED_PLANE = re.findall(
    r"^(\w+)  +\S", (relay.plane.compiled.__doc__ or "").partition("What all the others")[2], re.MULTILINE
)


def layers_of(modules: set[str]) -> set[str]:
    """Which layers are among the cimported modules."""
    return {module.removeprefix("relay.plane.compiled.") for module in modules} & set(LAYERS_OF_THE_COMPILED_PLANE)


def test_the_door_of_the_compiled_plane_lists_all_layers() -> None:
    files = {path.stem for path in (ROOT / "plane" / "compiled").glob("*.pxd")}
    assert set(LAYERS_OF_THE_COMPILED_PLANE) == files - {"engine"}


@pytest.mark.parametrize("name", LAYERS_OF_THE_COMPILED_PLANE)
def test_each_layer_cimports_only_those_named_before_it(name: str) -> None:
    before = LAYERS_OF_THE_COMPILED_PLANE[: LAYERS_OF_THE_COMPILED_PLANE.index(name)]
    assert layers_of(imports_of(ROOT / "plane" / "compiled" / f"{name}.pxd")) <= set(before)


def test_neither_leaves_nor_the_data_dictionary_know_a_layer() -> None:
    below = [ROOT / "plane" / "compiled" / "engine.pxd", *(ROOT / "plane" / "compiled" / "leaves").glob("*.pxd")]
    assert set().union(*(layers_of(imports_of(path)) for path in below)) == set()


# The proof proves nothing if it cannot see


def test_layers_are_seen() -> None:
    assert layers_of({"relay.plane.compiled.slots", "relay.plane.compiled.leaves.ring", "relay.wire"}) == {"slots"}


def test_rooms_are_seen() -> None:
    assert rooms_of({"relay.gateway.admin", "relay.gateway.signaling.proxy.SignalingProxy"}) == {"admin", "signaling"}
    assert rooms_of({"relay.gateway", "relay.plane.api", "aiohttp"}) == set()


def test_planes_are_seen() -> None:
    assert planes_of({"relay.plane.compiled.plane", "relay.plane.api"}) == {"compiled"}
    assert planes_of({"relay._fastpath", "relay.plane.reference.tls.ServerContexts"}) == {"compiled", "reference"}
    assert planes_of({"relay.plane.api", "relay.plane.source_ports"}) == set()


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import relay.turn.server", {"relay.turn.server"}),
        ("import asyncio as a, ssl", {"asyncio", "ssl"}),
        ("from relay import turn", {"relay", "relay.turn"}),
        ("from relay.turn.server import TurnServer", {"relay.turn.server", "relay.turn.server.TurnServer"}),
        ("from . import stream", {"relay.wire", "relay.wire.stream"}),
        ("from .stream import cut", {"relay.wire.stream", "relay.wire.stream.cut"}),
        ("from ..turn import server", {"relay.turn", "relay.turn.server"}),
        ("from .. import turn", {"relay", "relay.turn"}),
        ("def f():\n    import socket", {"socket"}),
        ("if TYPE_CHECKING:\n    from relay.gateway import x", {"relay.gateway", "relay.gateway.x"}),
    ],
)
def test_every_form_of_import_is_seen(source: str, names: set[str]) -> None:
    assert imported_modules(source, "relay.wire") == names


def test_cython_imports_are_seen() -> None:
    source = "from relay.plane.framing cimport Unit\nfrom relay.gateway import x\ncimport cython\n    import socket\n"
    assert cython_imported_modules(source) == {"relay.plane.framing", "relay.gateway", "cython", "socket"}


@pytest.mark.parametrize(
    ("owner", "module", "allowed"),
    [
        ("wire", "relay.errors", True),
        ("wire", "relay.wire.stun", True),
        ("wire", "relay.turn.server", False),
        ("wire", "relay._fastpath", False),
        ("turn", "relay.quality.emodel", False),
        ("plane", "relay._fastpath", True),
        ("_fastpath", "relay.plane.framing", True),
        ("plane", "relay.client", False),
        ("gateway", "relay.client", True),
        ("demo", "relay.gateway", True),
        ("demo", "relay.cli", False),
        ("addresses", "relay.errors", False),
        ("wire", "relay.__version__", True),
        ("wire", "struct", True),
    ],
)
def test_the_rule(owner: str, module: str, allowed: bool) -> None:
    assert (violations(owner, {module}) == set()) is allowed
