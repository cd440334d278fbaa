"""PURE. A block of ours in a file that is somebody else's: into it, and out again to the byte.

The block is at the top, after a first line #! if there is one: what follows it, an `exit 0` at the
end of rc.local for one, cannot keep it from being read.
"""

BEGIN = b"# BEGIN xenlb\n"
END = b"# END xenlb\n"
SHEBANG = b"#!/bin/sh\n"  # of a script that there was not: the system would not run it without


class BadBlock(Exception):
    """The marks in the file are not as xenlb sets them; one sentence."""


def insert(rest: bytes, inside: bytes) -> bytes:
    """`rest`, which has no block, with one. Raises BadBlock where `inside` has marks."""
    if inside and not inside.endswith(b"\n"):
        inside += b"\n"
    block = BEGIN + inside + END
    if any(mark in b"\n" + inside for mark in (b"\n" + BEGIN, b"\n" + END)):
        raise BadBlock("the block has xenlb's marks inside")
    if not rest.startswith(b"#!"):
        return block + rest
    first, newline, below = rest.partition(b"\n")
    if not newline:
        # The mark without an end of line tells `split` that the first line had none either.
        return first + b"\n" + block.removesuffix(b"\n")
    return first + newline + block + below


def split(data: bytes) -> tuple[bytes, bytes | None]:
    """The rest of a file, and what is in its block; None: there is none. Raises BadBlock."""
    lines = _lines(data)
    begins = [n for n, line in enumerate(lines) if line == BEGIN]
    ends = [n for n, line in enumerate(lines) if line in (END, END.removesuffix(b"\n"))]
    if not begins and not ends:
        return data, None
    if len(begins) != 1 or len(ends) != 1 or ends[0] < begins[0]:
        raise BadBlock("its lines '# BEGIN xenlb' and '# END xenlb' are not one of each, in order")
    (begin,), (end,) = begins, ends
    before, inside = b"".join(lines[:begin]), b"".join(lines[begin + 1 : end])
    if lines[end] != END:
        before = before.removesuffix(b"\n")
    return before + b"".join(lines[end + 1 :]), inside


def _lines(data: bytes) -> list[bytes]:
    """By line feeds alone: others are part of a line."""
    lines = [line + b"\n" for line in data.split(b"\n")]
    lines[-1] = lines[-1].removesuffix(b"\n")
    return lines if lines[-1] else lines[:-1]
