"""JSON of an answer in pieces, between which the loop runs on.

The status of a big table at once would stop the loop for tens of milliseconds, and a guest's weight
with it.
"""

import json
from collections.abc import Iterator, Mapping

from xenlb.control.protocol import Json

SIZE = 64 * 1024  # characters of a piece, about


class Shared(dict[str, object]):
    """An answer that many get at the same time: its JSON is made once, by whoever needs the next
    piece first. It must not change any more."""

    def __init__(self, value: Mapping[str, object]) -> None:
        super().__init__(value)
        self._made: list[str] = []
        self._rest = joined(_parts(value))

    def pieces(self) -> Iterator[str]:
        number = 0
        while True:
            if number == len(self._made):
                piece = next(self._rest, None)
                if piece is None:
                    return
                self._made.append(piece)
            yield self._made[number]
            number += 1


def pieces(value: object) -> Iterator[str]:
    """The JSON of a value."""
    return joined(_parts(value))


def joined(parts: Iterator[str]) -> Iterator[str]:
    """The same text in pieces of SIZE."""
    pending: list[str] = []
    size = 0
    for part in parts:
        pending.append(part)
        size += len(part)
        if size >= SIZE:
            yield "".join(pending)
            pending.clear()
            size = 0
    if pending:
        yield "".join(pending)


def _parts(value: object, depth: int = 4) -> Iterator[str]:
    if isinstance(value, Shared):
        yield from value.pieces()
    elif isinstance(value, Iterator):  # of pieces of JSON
        yield from value
    elif depth and isinstance(value, Mapping) and value:
        for n, (key, each) in enumerate(value.items()):
            yield f"{', ' if n else '{'}{json.dumps(str(key))}: "
            yield from _parts(each, depth - 1)
        yield "}"
    elif depth and isinstance(value, list | tuple) and value:
        for n, each in enumerate(value):
            yield ", " if n else "["
            yield from _parts(each, depth - 1)
        yield "]"
    elif isinstance(value, Json):
        yield value
    else:
        yield json.dumps(value)
