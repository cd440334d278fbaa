"""Links, commands, targets and files of the documentation exist; its configurations are valid."""

import importlib.machinery
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest

from tests.unit.test_architecture import FLOORS, INNER_FLOORS
from xenlb.cli.root import group
from xenlb.config.loader import parse

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
SITE = sorted(DOCS.rglob("*.md"))
PAGES = {
    str(page.relative_to(ROOT)): page.read_text()
    for page in (
        *(README, *SITE),
        *(ROOT / "tests/README.md", ROOT / "tests/scenarios/README.md"),
    )
}
README_LINES = 150
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(text: str, language: str) -> list[str]:
    """The fenced code blocks of a page in one language."""
    return [block for named, block in FENCE.findall(text) if named == language]


def code(text: str) -> list[str]:
    """Every piece of code, without its comments: lines of blocks, and code in sentences."""
    prose = FENCE.sub("", text)
    pieces = [line for _, block in FENCE.findall(text) for line in block.splitlines()]
    pieces += [line.strip() for line in re.findall(r"^    (.*)$", prose, re.MULTILINE)]
    pieces += re.findall(r"`([^`\n]+)`", prose)
    return [piece.partition(" # ")[0] for piece in pieces]


def anchors(text: str) -> set[str]:
    """The anchors of the headings, as MkDocs and GitHub make them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings)
    return {re.sub(r"[\s-]+", "-", heading) for heading in plain}


def links(text: str) -> list[str]:
    """The links to other pages and headings; those to other sites are not followed."""
    found = re.findall(r"\[[^\]]+\]\(([^)\s]+)\)", text)
    return [link for link in found if not link.startswith("https://")]


def test_links_lead_to_a_file_and_a_heading() -> None:
    wrong = []
    for name, text in PAGES.items():
        for link in links(text):
            path, _, heading = link.partition("#")
            target = ((ROOT / name).parent / path).resolve() if path else ROOT / name
            if not target.exists() or (heading and heading not in anchors(target.read_text())):
                wrong.append(f"{name}: {link}")
    assert not wrong


def test_pages_of_the_site_link_within_it() -> None:
    wrong = [
        f"{page}: {link}"
        for page in SITE
        for link in links(page.read_text())
        if not (page.parent / link).resolve().is_relative_to(DOCS)
    ]
    assert not wrong


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    named = re.findall(r"([\w/.-]+\.md)$", navigation, re.MULTILINE)
    assert sorted(named) == sorted(str(page.relative_to(DOCS)) for page in SITE)


def test_the_readme_is_short_and_names_every_page() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= README_LINES
    pages = {str(page.relative_to(ROOT)) for page in SITE if page.parent == DOCS}
    assert pages - {"docs/index.md"} <= {link.partition("#")[0] for link in links(text)}


def commands(text: str) -> Iterator[list[str]]:
    """The words after `xenlb` of each command in code, up to a pipe or a quotation."""
    for line in code(text):
        if re.match(r"xenlb \d", line):  # its output
            continue
        for match in re.finditer(r"(?:^|\$ |sudo |&& |\| |; |bin/)xenlb((?: +[\w./=:-]+)+)", line):
            yield match[1].split()


def unknown_words(words: list[str]) -> list[str]:
    """The verbs and options of a command that do not exist."""
    verbs = [word for word in words if not word.startswith("-")]
    command: click.Command | None = group
    known = {"--help", "--version", *(name for option in group.params for name in option.opts)}
    wrong = []
    for verb in verbs[:2]:
        if not isinstance(command, click.Group):
            break
        command = command.get_command(click.Context(command), verb)
        if command is None:
            return [verb]
        known |= {name for option in command.params for name in option.opts}
    wrong += [word for word in words if word.startswith("-") and word.split("=")[0] not in known]
    return wrong


def test_commands_and_their_options_exist() -> None:
    found = [(name, words) for name, text in PAGES.items() for words in commands(text)]
    assert len(found) > 50
    wrong = [f"{name}: xenlb {' '.join(words)}" for name, words in found if unknown_words(words)]
    assert not wrong


def test_unknown_commands_and_options_are_seen() -> None:
    assert unknown_words(["drain", "web1", "--timeout", "5m"]) == []
    assert unknown_words(["drian", "web1"]) == ["drian"]
    assert unknown_words(["guest", "explode", "web1"]) == ["explode"]
    assert unknown_words(["guest", "plan", "web1", "--tell"]) == ["--tell"]
    assert list(commands("`sudo xenlb plan`, ```\n$ xenlb why web1 # x\n```")) == [["plan"]]


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    variables = set(re.findall(r"^([A-Z]+) *\?=", makefile, re.MULTILINE))
    wrong = []
    for name, text in PAGES.items():
        for line in code(text):
            for match in re.finditer(r"(?:^|sudo |&& )make((?: +[\w=./-]+)+)", line):
                for word in match[1].split():
                    what, equals, _ = word.partition("=")
                    if what not in (variables if equals else targets):
                        wrong.append(f"{name}: {line}: {word}")
    assert not wrong


def test_files_of_the_sources_exist() -> None:
    """With the path that they have in the sources, in `xenlb` or in the unit tests."""
    wrong = []
    for name, text in PAGES.items():
        for piece in re.findall(r"`([A-Za-z][\w.-]*/[\w./-]+)`", text):
            if "NAME" in piece:
                continue
            if piece.partition("/")[0] in {"xenlb", "tests", "tools", "etc", "hooks", "docs"}:
                bases = [ROOT]
            elif piece.endswith(".py"):
                bases = [ROOT / "xenlb", ROOT / "tests/unit"]
            else:
                continue
            if not any((base / piece).exists() for base in bases):
                wrong.append(f"{name}: {piece}")
    assert not wrong


def test_configurations_are_valid() -> None:
    found = 0
    for name, text in PAGES.items():
        for block in blocks(text, "yaml"):
            if "services:" in block:
                settings = parse(block, name)
                assert settings.services
                assert not settings.warnings
                found += 1
    assert found >= 4


def test_the_architecture_page_has_every_floor_and_room() -> None:
    page = PAGES["docs/ARCHITECTURE.md"]
    rows = re.findall(r"^\| (\d) \| `(\w+)` \|", page, re.MULTILINE)
    rooms = [(str(number), room) for number, floor in enumerate(FLOORS, 1) for room in floor]
    assert sorted(rows) == sorted(rooms)
    inner = re.findall(r"^\| `(\w+/\w+)` \|", page, re.MULTILINE)
    assert sorted(inner) == sorted(
        f"{outer}/{folder.name}"
        for outer in INNER_FLOORS
        for folder in (ROOT / "xenlb" / outer).iterdir()
        if (folder / "__init__.py").exists()
    )


# --- tools/lint-words ----------------------------------------------------------------------------


def lint_words() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("lint_words", str(ROOT / "tools/lint-words"))
    spec = importlib.util.spec_from_loader("lint_words", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # no cache in tools
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = writes
    return module


@pytest.mark.parametrize(
    ("name", "text", "lines"),
    [
        ("a.md", "fine\nNobody waits\n", [2]),
        ("a.md", "the user `nobody`\n```\nnobody\n```\n    nobody\n", []),
        ("a.md", "the server is\ntold so\n", [1]),
        ("a.md", "the bearing, nobody-like\n", []),
        ("a.8", ".Pq Li nobody\nIt stands still.\n", [2]),
        ("a.yaml", "user: nobody # as whom\n# Left out: none.\n", [2]),
        (
            "a.py",
            "nobody = 1\n# who is it\nsay('is told')\nsay(f'{nobody} stands still')\n",
            [2, 3, 4],
        ),
        ("a.py", '"""Fine.\n\nNobody.\n"""\n', [3]),
    ],
)
def test_words_are_found_in_prose_alone(name: str, text: str, lines: list[int]) -> None:
    found = [int(problem.split(":")[1]) for problem in lint_words().problems(name, text)]
    assert found == lines
