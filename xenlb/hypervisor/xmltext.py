"""PURE. XML text of a bounded size to elements, without a document type.

A DOCTYPE is where entities are declared that swell or read files; nothing that libvirt writes
has one, so it is refused. What the elements mean: metadata.py, domainxml.py.
"""

from xml.etree import ElementTree

from xenlb.foreign.printable import printable, quoted

LONGEST = 4 * 1024 * 1024


class Malformed(ValueError):
    """Not XML that is read here; the message says why in one line."""


class _Builder(ElementTree.TreeBuilder):
    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise Malformed("it has a DOCTYPE, which is not allowed")


def parse(text: str, *, longest: int = LONGEST) -> ElementTree.Element:
    """The root element; raises Malformed. `longest` is in characters."""
    if len(text) > longest:
        raise Malformed(f"it is longer than {longest} characters")
    parser = ElementTree.XMLParser(target=_Builder())
    try:
        parser.feed(text)
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


def shown(text: str, longest: int = 64) -> str:
    """Text that somebody else wrote, quoted, cut and made harmless for a log or a terminal."""
    return quoted(text, longest)


def harmless(text: str, longest: int = 64) -> str:
    """At most `longest` printable characters of it; the rest becomes an ellipsis."""
    return printable(text, longest)
