"""Encode JSON in chunks, between which the event loop runs.

Encoding the status of a large table at once would block the loop, and the guests' weights with it,
for tens of milliseconds.
"""

import json
from collections.abc import Iterator, Mapping

from xenlb.control.protocol import Json

SIZE = 64 * 1024  # characters of a chunk, about


class SharedJson(dict[str, object]):
    """An answer for many clients, whose value must not change any more.

    Each chunk of its JSON is encoded once, by the first client that needs it.
    """

    def __init__(self, value: Mapping[str, object]) -> None:
        super().__init__(value)
        self._encoded: list[str] = []
        self._remaining = _in_chunks(_fragments(value))

    def chunks(self) -> Iterator[str]:
        """Yield the chunks of the JSON; several clients may iterate at the same time."""
        number = 0
        while True:
            if number == len(self._encoded):
                chunk = next(self._remaining, None)
                if chunk is None:
                    return
                self._encoded.append(chunk)
            yield self._encoded[number]
            number += 1


def json_chunks(value: object) -> Iterator[str]:
    """The JSON of a value, in chunks."""
    return _in_chunks(_fragments(value))


def _in_chunks(fragments: Iterator[str]) -> Iterator[str]:
    """The same text in chunks of SIZE."""
    pending: list[str] = []
    size = 0
    for fragment in fragments:
        pending.append(fragment)
        size += len(fragment)
        if size >= SIZE:
            yield "".join(pending)
            pending.clear()
            size = 0
    if pending:
        yield "".join(pending)


def _fragments(value: object, depth: int = 4) -> Iterator[str]:
    if isinstance(value, SharedJson):
        yield from value.chunks()
    elif isinstance(value, Iterator):  # of fragments of JSON
        yield from value
    elif depth and isinstance(value, Mapping) and value:
        for n, (key, item) in enumerate(value.items()):
            yield f"{', ' if n else '{'}{json.dumps(str(key))}: "
            yield from _fragments(item, depth - 1)
        yield "}"
    elif depth and isinstance(value, list | tuple) and value:
        for n, item in enumerate(value):
            yield ", " if n else "["
            yield from _fragments(item, depth - 1)
        yield "]"
    elif isinstance(value, Json):
        yield value
    else:
        yield json.dumps(value)
