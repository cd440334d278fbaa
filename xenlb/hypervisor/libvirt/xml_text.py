"""XML text of a bounded size to the elements that are wanted of it, without a document type.

A DOCTYPE declares entities that swell or read files. libvirt writes none, so it is refused before
anything is parsed. One long call of the parser would hold Python's lock, and the agent's loop with
it: the text is fed in pieces, and elements that are not wanted are not built. What the elements
mean: metadata.py, domain_xml.py.
"""

import time
from collections.abc import Collection
from xml.etree import ElementTree

LONGEST = 1024 * 1024  # characters; domains with a hundred devices have a tenth of it
PIECE = 16 * 1024  # characters
MOST_ELEMENTS = 20_000  # that are built

Path = tuple[str, ...]  # of tags, below the root


class Malformed(ValueError):
    """Not XML that is read here; the message says why in one line."""


class _Builder:
    """The target of a parser: builds the root, and what lies on one of the paths or below it."""

    def __init__(self, wanted: Collection[Path]) -> None:
        self._wanted = wanted
        self._builder = ElementTree.TreeBuilder()
        self._path: list[str] = []
        self._skipped = 0  # how deep inside an element that is not built
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


EVERYTHING: tuple[Path, ...] = ((),)


def parse(
    text: str, *, wanted: Collection[Path] = EVERYTHING, longest: int = LONGEST
) -> ElementTree.Element:
    """The root element, with those below that lie on one of the `wanted` paths; text between tags
    is left out. Raises Malformed. `longest` is in characters."""
    if len(text) > longest:
        raise Malformed(f"it is longer than {longest} characters")
    if "<!DOCTYPE" in text:
        raise Malformed("it has a DOCTYPE, which is not allowed")
    parser = ElementTree.XMLParser(target=_Builder(wanted))
    try:
        for start in range(0, len(text), PIECE):
            parser.feed(text[start : start + PIECE])
            time.sleep(0)  # other threads, the loop's among them, go first
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
    """Namespace and name of a tag as ElementTree writes it: `{namespace}name`."""
    if tag.startswith("{"):
        namespace, _, name = tag[1:].partition("}")
        return namespace, name
    return "", tag
