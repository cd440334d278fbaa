"""Untrusted input made by Hypothesis: from a corpus of valid input with some damage.

A corpus has whole messages, of real programs where possible. Input that once failed is added.
"""

import os
from collections.abc import Sequence

from hypothesis import settings
from hypothesis import strategies as st

from tests.soak import often

# Seconds in the usual form; in the long form, hours.
EXAMPLES = often(40, soak=int(os.environ.get("XENLB_EXAMPLES", "1000000")))
LIMIT = often(120, soak=36_000)  # s
MANY = settings(max_examples=EXAMPLES)

# Bytes that mean something to some parser.
TOKENS = (
    *(b"\0", b"\n", b"\r\n", b"\t", b" ", b"=", b":", b"-", b"+", b"/", b"<", b">", b"&", b'"'),
    *(b"[", b"]", b"{", b"}", b",", b"\xff", b"\x80", b"\x7f", b"\xc3\xa9", b"\xe2\x80\xae"),
    *(b"0", b"-1", b"1e9", b"99999999999999999999", b"0x", b"NaN", b"null", b"\\u0000", b"%"),
    *(b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\xff\xff\xff\xff", b"::", b"255", b"65536"),
)


@st.composite
def damaged(draw: st.DrawFn, corpus: Sequence[bytes]) -> bytes:
    """One or two entries of the corpus with up to five changes; sometimes any bytes."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    data = draw(st.sampled_from(corpus))
    for _ in range(draw(st.integers(0, 5))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 12)))
        middle = data[start:end]
        match draw(st.integers(0, 6)):
            case 0:
                new = b""
            case 1:
                new = middle * draw(st.integers(2, 40))
            case 2:
                new = draw(st.sampled_from(TOKENS))
            case 3:
                new = draw(st.binary(max_size=8))
            case 4:
                new = middle + draw(st.sampled_from(corpus))
            case 5:
                new = bytes(byte ^ 1 << draw(st.integers(0, 7)) for byte in middle)
            case _:
                data, new = data[:start], b""
                end = start
        data = data[:start] + new + data[end:]
    return data


@st.composite
def pieces(draw: st.DrawFn, corpus: Sequence[bytes]) -> list[bytes]:
    """The same in pieces, some of one byte."""
    data = draw(damaged(corpus))
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=6)))
    ends = [*cuts, len(data)]
    return [data[a:b] for a, b in zip([0, *cuts], ends, strict=True) if a < b]
