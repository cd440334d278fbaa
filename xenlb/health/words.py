"""What a server or a program said, as it may be shown: one line, printable, short.

Nobody's words are trusted: they may hold control characters, be endless, or be no text at all.
"""

LONGEST = 80  # characters of it that are shown


def shown(said: bytes | str, longest: int = LONGEST) -> str:
    """Its first line that is not empty; what cannot be printed is a question mark, a tab a blank.
    For people only: what is parsed is what was said."""
    text = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
    line = next((each.strip() for each in text.splitlines() if each.strip()), "")
    line = line.replace("\t", " ")
    clean = "".join(letter if letter.isprintable() else "?" for letter in line[: longest + 1])
    return clean if len(clean) <= longest else f"{clean[: longest - 1]}…"
