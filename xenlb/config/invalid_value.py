"""A value that the configuration may not have, and hints for what to write instead."""

from collections.abc import Collection

from xenlb.untrusted.suggestions import did_you_mean


class InvalidValue(Exception):
    """A value that is refused. `message` says why, `hint` what to write instead."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def known_words_hint(text: str, known: Collection[str]) -> str:
    """The hint for a word that is not known: the most similar one, or all."""
    similar = did_you_mean(text.lower().replace("_", "-")[:64], known)
    return similar or f"one of: {', '.join(known)}"
