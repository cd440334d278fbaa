"""The import rules of the project, checked on the source: floors, rooms, purity, size.

Imports point down, never up and never to another room of the same floor. Rooms that have rooms
inside keep to the same rule. `pytest -s -k floors` prints the house, with the lines of each room.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 400

MODULES = sorted(ROOT.glob("xenlb/**/*.py"))

# The floors of the house, top down: a room imports rooms of lower floors only, without exemption.
FLOORS = (
    {"cli"},
    {"agent", "oneshot"},
    {"guestside", "store"},
    {"config", "control", "director", "health", "hypervisor"},
    {"model"},
    {"ipvs", "untrusted"},
    {"clock"},
)
# The floors inside a room, by the names of its rooms and modules; "" is every module not named.
INNER_FLOORS = {
    "guestside": (
        {""},
        {"render", "transport"},
        {"inspect", "install", "target"},
        {"requirements"},
    ),
    "health": ({"runner"}, {"registry", "pacing"}, {"probes"}, {"via_vip"}, {"transport"}),
    "hypervisor": (
        {"addresses", "uri"},
        {"xenstore"},
        {"libvirt"},
        {"address_policy", "threads"},
    ),
}
LOOSE_MODULES = {"__init__", "clock"}  # of xenlb itself
LARGEST_ROOM = 0.2  # of all lines
PURE = (
    {"model", "untrusted"}
    | {
        f"ipvs/{name}"
        for name in (
            *("table", "op", "errors", "diff", "text"),
            *("netlink", "netlink_codec", "reconciler", "__init__"),
        )
    }
    | {f"guestside/{name}" for name in ("requirements", "inspect", "install", "render/facts")}
)
TABLES = {"os.strerror"}  # names of unclean modules that are a table of texts only
UNCLEAN = {"asyncio", "os", "socket", "time", "logging", "libvirt", "libvirtaio", "pyroute2"}


def dotted(path: Path) -> str:
    name = str(path.relative_to(ROOT).with_suffix(""))
    return name.replace("/", ".").removesuffix(".__init__")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imports(path: Path) -> tuple[tuple[str, int], ...]:
    """Every module imported anywhere in a file, lazily or for types too, with its line."""
    return tuple(_imports(tree(path), path))


def _imports(tree: ast.Module, path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    yield alias.name, node.lineno
            case ast.ImportFrom(module=module, names=names, level=0):
                assert module is not None
                for alias in names:
                    inner = (ROOT / module.replace(".", "/") / f"{alias.name}.py").exists()
                    package = (ROOT / module.replace(".", "/") / alias.name).is_dir()
                    table = f"{module}.{alias.name}" in TABLES
                    part = inner or package or table
                    yield (f"{module}.{alias.name}" if part else module), node.lineno
            case ast.ImportFrom():
                pytest.fail(f"{path}:{node.lineno}: a relative import; write it out")
            case _:
                pass


def room(module: str) -> str:
    """`xenlb.model.guest` → `model`; the package itself → ``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def floor(name: str) -> int:
    levels = [level for level, rooms in enumerate(FLOORS) if name in rooms]
    assert levels, f"xenlb/{name} stands on no floor; add it to FLOORS and to ARCHITECTURE"
    return levels[0]


def allowed(importer: str, imported: str) -> bool:
    """Whether a room may import another; the package itself ("") holds the version only."""
    if imported in ("", importer):
        return True
    return importer != "" and floor(imported) > floor(importer)


def test_imports_point_down() -> None:
    wrong = [
        f"{path}:{line}: {room(dotted(path)) or 'xenlb'} must not import {module}"
        for path in MODULES
        for module, line in imports(path)
        if module.split(".")[0] == "xenlb" and not allowed(room(dotted(path)), room(module))
    ]
    assert not wrong, "\n".join(wrong)


def inner_room(module: str, outer: str) -> str:
    """`xenlb.guestside.transport.ssh` → `transport`; "" for a module without a floor."""
    name = module.removeprefix(f"xenlb.{outer}").removeprefix(".").partition(".")[0]
    named = any(name in rooms for rooms in INNER_FLOORS[outer])
    return name if named or (ROOT / "xenlb" / outer / name).is_dir() else ""


def inner_allowed(importer: str, imported: str, outer: str) -> bool:
    """A room without a floor may import nothing, and nothing may import it."""
    level = {name: n for n, rooms in enumerate(INNER_FLOORS[outer]) for name in rooms}
    return importer == imported or level.get(importer, len(level)) < level.get(imported, -1)


def test_imports_inside_a_room_point_down() -> None:
    wrong = [
        f"{path}:{line}: {inner_room(dotted(path), outer) or outer} must not import {module}"
        for outer in INNER_FLOORS
        for path in MODULES
        if room(dotted(path)) == outer
        for module, line in imports(path)
        if module.startswith(f"xenlb.{outer}")
        and not inner_allowed(inner_room(dotted(path), outer), inner_room(module, outer), outer)
    ]
    assert not wrong, "\n".join(wrong)


def is_pure(path: Path) -> bool:
    place = path.relative_to(ROOT / "xenlb").with_suffix("")
    return not PURE.isdisjoint(map(str, (place, *place.parents)))


PURE_MODULES = [path for path in MODULES if is_pure(path)]


def test_pure_modules_touch_nothing() -> None:
    """Neither themselves nor through one of ours that they import."""
    clean = {"xenlb", *map(dotted, PURE_MODULES)}
    wrong = [
        f"{path}:{line}: a pure module imports {module}"
        for path in PURE_MODULES
        for module, line in imports(path)
        if (module.split(".")[0] in UNCLEAN and module not in TABLES)
        or (module.split(".")[0] == "xenlb" and module not in clean)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_module_asks_to_be_two() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in MODULES}
    wrong = [f"{path} has {length} lines" for path, length in lengths.items() if length > LONGEST]
    assert not wrong, "\n".join(wrong)


def test_a_module_says_what_lives_in_it() -> None:
    wrong = [f"{path} has no docstring" for path in MODULES if not ast.get_docstring(tree(path))]
    assert not wrong, "\n".join(wrong)


def lines_of_rooms() -> dict[str, int]:
    lines = dict.fromkeys((name for rooms in FLOORS for name in sorted(rooms)), 0)
    for path in MODULES:
        if name := room(dotted(path)):
            lines[name] += len(path.read_text().splitlines())
    return lines


def test_floors_and_rooms() -> None:
    lines = lines_of_rooms()
    for number, rooms in enumerate(FLOORS, 1):
        print(f"{number}: " + ", ".join(f"{name} {lines[name]}" for name in sorted(rooms)))
    loose = {path.stem for path in MODULES if path.parent.name == "xenlb"}
    assert loose == LOOSE_MODULES
    large = [name for name, count in lines.items() if count > LARGEST_ROOM * sum(lines.values())]
    assert not large, f"above a fifth of the house: {large}"


def test_no_import_circle() -> None:
    modules = {dotted(path): {name for name, _ in imports(path)} for path in MODULES}
    while free := {
        name for name, needed in modules.items() if not needed & modules.keys() - {name}
    }:
        for name in free:
            del modules[name]
    assert not modules, f"these import each other in a circle, or one that does: {sorted(modules)}"


def test_the_rules_see_what_they_forbid() -> None:
    """The rules on imports that must not be, so that a rule that sees nothing is noticed."""
    assert not allowed("model", "hypervisor")
    assert not allowed("hypervisor", "control")
    assert not allowed("control", "agent")
    assert not allowed("agent", "oneshot")
    assert not allowed("ipvs", "model")
    assert not allowed("", "model")
    assert allowed("cli", "config")
    with pytest.raises(AssertionError, match="stands on no floor"):
        floor("utils")
    assert not inner_allowed("requirements", "inspect", "guestside")
    assert not inner_allowed("install", "transport", "guestside")
    assert not inner_allowed("transport", "render", "guestside")
    assert not inner_allowed("transport", "", "guestside")
    assert not inner_allowed("", "new", "guestside")
    assert not inner_allowed("new", "requirements", "guestside")
    assert inner_allowed("", "transport", "guestside")
    assert inner_allowed("render", "install", "guestside")
    assert inner_room("xenlb.guestside.transport.ssh", "guestside") == "transport"
    assert inner_room("xenlb.guestside.provision", "guestside") == ""
    assert inner_room("xenlb.health.runner", "health") == "runner"
    wrong = ast.parse("def f():\n    from xenlb.ipvs import text\n    import socket.x\n")
    assert {"xenlb.model.reducer", "xenlb.ipvs.netlink_codec"} <= {
        dotted(path) for path in PURE_MODULES
    }
    assert list(_imports(wrong, Path("x"))) == [("xenlb.ipvs.text", 2), ("socket.x", 3)]
