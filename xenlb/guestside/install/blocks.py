"""A block of xenlb in a file of the guest: inserted, and removed again to the byte. Pure.

The block is at the top, after a first line #!: an `exit 0` further down, as in rc.local, cannot
skip it.
"""

BEGIN = b"# BEGIN xenlb\n"
END = b"# END xenlb\n"
SHEBANG = b"#!/bin/sh\n"  # for a new script: without it the system would not run the script


class BadBlock(Exception):
    """The marks in the file are not as xenlb writes them."""


def insert(rest: bytes, inside: bytes) -> bytes:
    """The file with a block. Raises BadBlock if `inside` has marks."""
    if inside and not inside.endswith(b"\n"):
        inside += b"\n"
    block = BEGIN + inside + END
    if any(mark in b"\n" + inside for mark in (b"\n" + BEGIN, b"\n" + END)):
        raise BadBlock("the block has xenlb's marks inside")
    if not rest.startswith(b"#!"):
        return block + rest
    first, newline, below = rest.partition(b"\n")
    if not newline:
        # A mark without an end of line shows `split` that the first line had none either.
        return first + b"\n" + block.removesuffix(b"\n")
    return first + newline + block + below


def split(data: bytes) -> tuple[bytes, bytes | None]:
    """The file without its block, and the content of the block or None. Raises BadBlock."""
    lines = _lines(data)
    begins = [n for n, line in enumerate(lines) if line == BEGIN]
    ends = [n for n, line in enumerate(lines) if line in (END, END.removesuffix(b"\n"))]
    if not begins and not ends:
        return data, None
    if len(begins) != 1 or len(ends) != 1 or ends[0] < begins[0]:
        raise BadBlock("its lines '# BEGIN xenlb' and '# END xenlb' are not one of each in order")
    (begin,), (end,) = begins, ends
    before, inside = b"".join(lines[:begin]), b"".join(lines[begin + 1 : end])
    if lines[end] != END:
        before = before.removesuffix(b"\n")
    return before + b"".join(lines[end + 1 :]), inside


def _lines(data: bytes) -> list[bytes]:
    """The lines with their ends; line feeds are the only ends."""
    lines = [line + b"\n" for line in data.split(b"\n")]
    lines[-1] = lines[-1].removesuffix(b"\n")
    return lines if lines[-1] else lines[:-1]
