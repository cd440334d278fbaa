"""How a text of the configuration is refused, and how it is quoted in the message."""

from difflib import get_close_matches

from xenlb.untrusted import printable


class InvalidValue(Exception):
    """A value that cannot be taken. `message` says why, `hint` what to write."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def quoted(text: str) -> str:
    """The text as it is shown in a message: in quotes, on one line, at most 60 characters."""
    return printable.quoted(text, 60)


def did_you_mean(text: str, known: tuple[str, ...]) -> str:
    """The hint for a word that is not among those known."""
    match = get_close_matches(text.lower().replace("_", "-")[:64], known, n=1)
    return f"did you mean {match[0]}?" if match else f"one of: {', '.join(known)}"
