r"""PURE. Untrusted text made printable.

Guests, servers, guest agents, libvirt, hooks and users who define domains write text that reaches
terminals, `status` and the journal. A control character moves a terminal's cursor, a line separator
forges a line, a bidirectional override or an invisible character makes a name look like another.
All of them become escapes (\x1b, \u202e). Text is made printable once, where it comes in, after it
was parsed.
"""

import re

LONGEST = 80  # characters of a line that are shown

# str.isprintable() is false for control (C0, C1), format (bidi, zero width), surrogate, private
# and unassigned characters, and for separators of lines and paragraphs. It is true for these, which
# are invisible too (Default_Ignorable_Code_Point of Unicode 15; blank letters and braille).
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0100-\U000e01ef]"
)


def printable(text: bytes | str, longest: int | None = None, *, keep: str = "") -> str:
    """Return the text with an escape for each invisible character.

    `longest`: characters of the result; a longer one is cut and ends with an ellipsis. `keep`:
    characters that stay, for a text in lines or columns. Bytes are decoded as UTF-8.
    """
    if longest is not None:
        text = text[: 4 * longest + 4]  # a character has four bytes at most
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    if longest is not None:
        text = text[: longest + 1]
    if not text.isprintable() or _INVISIBLE.search(text):
        text = text.translate(_Escapes(keep))
    return text if longest is None or len(text) <= longest else f"{text[: longest - 1]}…"


def first_line(text: bytes | str, longest: int = LONGEST) -> str:
    """Return the first line that is not blank, made printable, with blanks for tabs."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return printable(line.replace("\t", " "), longest)


def quoted(text: str, longest: int = 64) -> str:
    """Return the text made printable and in quotes."""
    return f"'{printable(text, longest)}'"


class _Escapes(dict[int, str]):
    """A table for str.translate(), which looks each ASCII character up once."""

    def __init__(self, keep: str) -> None:
        super().__init__({ord(letter): letter for letter in keep})

    def __missing__(self, code: int) -> str:
        letter = chr(code)
        visible = letter.isprintable() and not _INVISIBLE.match(letter)
        return letter if visible else ascii(letter)[1:-1]
