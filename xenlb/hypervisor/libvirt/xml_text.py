"""Parser for XML of a bounded size, which builds only the wanted elements.

A DOCTYPE can declare entities that expand without end or read files. libvirt writes none, so it is
refused before parsing. One long call of the parser would hold Python's lock, and so the agent's
loop: the text is fed in pieces, and unwanted elements are not built.
"""

import time
from collections.abc import Collection
from xml.etree import ElementTree

LONGEST = 1024 * 1024  # characters; domains with a hundred devices have a tenth of it
PIECE = 16 * 1024  # characters
MOST_ELEMENTS = 20_000  # that are built

Path = tuple[str, ...]  # of tags, below the root


class Malformed(ValueError):
    """The XML is not accepted; the message gives the reason in one line."""


class _Builder:
    """Target of a parser: builds the root and the elements on or below one of the paths."""

    def __init__(self, wanted: Collection[Path]) -> None:
        self._wanted = wanted
        self._builder = ElementTree.TreeBuilder()
        self._path: list[str] = []
        self._skipped = 0  # depth inside an element that is not built
        self._built = 0

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if self._skipped or not self._is_wanted(tag):
            self._skipped += 1
            return
        self._built += 1
        if self._built > MOST_ELEMENTS:
            raise Malformed(f"it has more than {MOST_ELEMENTS} elements")
        self._path.append(tag)
        self._builder.start(tag, attributes)

    def end(self, tag: str) -> None:
        if self._skipped:
            self._skipped -= 1
            return
        self._path.pop()
        self._builder.end(tag)

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise Malformed("it has a DOCTYPE, which is not allowed")

    def close(self) -> ElementTree.Element:
        return self._builder.close()

    def _is_wanted(self, tag: str) -> bool:
        if not self._path:
            return True
        path = (*self._path[1:], tag)
        return any(all(map(str.__eq__, path, wanted)) for wanted in self._wanted)


def parse_xml(
    text: str, *, wanted: Collection[Path] = ((),), longest: int = LONGEST
) -> ElementTree.Element:
    """Return the root element with the elements on or below the `wanted` paths, by default all.

    Text between tags is left out. `longest`: in characters. Raises Malformed.
    """
    if len(text) > longest:
        raise Malformed(f"it is longer than {longest} characters")
    if "<!DOCTYPE" in text:
        raise Malformed("it has a DOCTYPE, which is not allowed")
    parser = ElementTree.XMLParser(target=_Builder(wanted))
    try:
        for start in range(0, len(text), PIECE):
            parser.feed(text[start : start + PIECE])
            time.sleep(0)  # lets other threads run, such as the loop's
        root = parser.close()
    except ElementTree.ParseError as error:
        raise Malformed(f"it is not well-formed XML: {error}") from None
    except (ValueError, RecursionError) as error:  # surrogates and the like
        if isinstance(error, Malformed):
            raise
        raise Malformed(f"it cannot be read: {error}") from None
    if not isinstance(root, ElementTree.Element):
        raise Malformed("it is empty")
    return root


def local_name(tag: str) -> tuple[str, str]:
    """Split a tag as ElementTree writes it, `{namespace}name`, into namespace and name."""
    if tag.startswith("{"):
        namespace, _, name = tag[1:].partition("}")
        return namespace, name
    return "", tag
