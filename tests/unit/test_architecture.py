"""The import rules of the project, checked on the source: floors, rooms, purity, size.

Floors from top to bottom: the command line; the agent with what wires it; the rooms that touch the
world; the rules; the table. Imports point down, and never from one room to another of its floor.
Rooms that have rooms inside keep to the same.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 400

MODULES = sorted(ROOT.glob("xenlb/**/*.py"))

# The floors; a name is a room (a package) or a single module of xenlb. Those modules are one room:
# the owner task and what belongs to it.
CLI = {"cli"}
WIRING = {path.stem for path in MODULES if path.parent.name == "xenlb"} - {"__init__"}
TOP_ROOMS = {"doctor"}
GUESTSIDE = {"guestside"}  # below the agent, which lets a guest in when its inside is in place
ROOMS = {"hypervisor", "health", "config", "control", "director"}
FLOORS = (CLI, WIRING | TOP_ROOMS, GUESTSIDE, ROOMS, {"model"}, {"foreign", "ipvs"})
# The rooms inside a room; its own modules ("") put them together.
INNER_FLOORS = {"guestside": ({""}, {"files", "ways"}, {"seen", "plan"}, {"needed"})}
PURE = (
    {"model", "foreign"}
    | {
        f"ipvs/{name}"
        for name in ("table", "op", "diff", "text", "parse", "options", "codec", "wire", "__init__")
    }
    | {f"guestside/{name}" for name in ("needed", "seen", "plan", "files/facts")}
)
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
                    yield (f"{module}.{alias.name}" if inner or package else module), node.lineno
            case ast.ImportFrom():
                pytest.fail(f"{path}:{node.lineno}: a relative import; write it out")
            case _:
                pass


def room(module: str) -> str:
    """`xenlb.model.guest` → `model`; the package itself → ``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def floor(name: str) -> int:
    found = [n for n, floor in enumerate(FLOORS) if name in floor]
    assert found, f"xenlb/{name} stands on no floor; give it one here, and say so in the README"
    return found[0]


def allowed(mine: str, other: str) -> bool:
    if other in ("", mine) or (mine in WIRING and other in WIRING):
        return True
    return mine != "" and floor(other) > floor(mine)


def test_imports_point_down() -> None:
    wrong = [
        f"{path}:{line}: {room(dotted(path)) or 'xenlb'} must not import {module}"
        for path in MODULES
        for module, line in imports(path)
        if module.split(".")[0] == "xenlb" and not allowed(room(dotted(path)), room(module))
    ]
    assert not wrong, "\n".join(wrong)


def inner_room(module: str, outer: str) -> str:
    """`xenlb.guestside.ways.ssh` → `ways`, and "" for `xenlb.guestside.work`."""
    name = module.removeprefix(f"xenlb.{outer}").removeprefix(".").partition(".")[0]
    return name if (ROOT / "xenlb" / outer / name).is_dir() else ""


def inner_allowed(mine: str, other: str, outer: str) -> bool:
    """Also what stands on no floor is not: a new room, until it is given one here."""
    level = {name: n for n, floor in enumerate(INNER_FLOORS[outer]) for name in floor}
    return mine == other or level.get(mine, len(level)) < level.get(other, -1)


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
        if module.split(".")[0] in UNCLEAN
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


def test_the_rules_see_what_they_forbid() -> None:
    """The rules on imports that must not be, so that a rule that sees nothing is noticed."""
    assert not allowed("model", "hypervisor")
    assert not allowed("hypervisor", "control")
    assert not allowed("control", "agent")
    assert not allowed("agent", "doctor")
    assert not allowed("ipvs", "model")
    assert not allowed("", "model")
    assert allowed("cli", "config")
    assert allowed("agent", "once")
    with pytest.raises(AssertionError, match="stands on no floor"):
        floor("utils")
    assert not inner_allowed("needed", "seen", "guestside")
    assert not inner_allowed("plan", "ways", "guestside")
    assert not inner_allowed("ways", "files", "guestside")
    assert not inner_allowed("ways", "", "guestside")
    assert not inner_allowed("", "new", "guestside")
    assert not inner_allowed("new", "needed", "guestside")
    assert inner_allowed("", "ways", "guestside")
    assert inner_allowed("files", "plan", "guestside")
    assert inner_room("xenlb.guestside.ways.ssh", "guestside") == "ways"
    assert inner_room("xenlb.guestside.work", "guestside") == ""
    wrong = ast.parse("def f():\n    from xenlb.ipvs import text\n    import socket.x\n")
    assert {"xenlb.model.step", "xenlb.ipvs.codec"} <= {dotted(path) for path in PURE_MODULES}
    assert list(_imports(wrong, Path("x"))) == [("xenlb.ipvs.text", 2), ("socket.x", 3)]
