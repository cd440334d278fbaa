"""The agent check: a line with the server's own state, in the words of HAProxy's agent-check.

Words are separated by blanks, tabs or commas: `up`, `ready`, `down`, `fail`, `stopped`, `drain`,
`maint` and a share of the weight such as `75%`. Text after a `#` is a comment. `maxconn:30` and
unknown words are ignored; from a line without known words nothing follows. `drain` and `maint` mean
up with weight 0, even if `least` is higher, and the server's connections go on.

In HAProxy another check stands beside it. Here the check may be the only one, so a server that does
not answer is down.
"""

import re

from xenlb.health.transport.result import Answer
from xenlb.health.transport.stream import Stream, stream_probe
from xenlb.model.checks import Agent, octets
from xenlb.untrusted.printable import first_line

LONGEST = 256  # bytes of the line

UP = frozenset({"up", "ready"})
DECLINES = frozenset({"drain", "maint"})
DOWN = frozenset({"down", "fail", "failed", "stopped"})
_SHARE = re.compile(r"(\d{1,5})%", re.ASCII)


async def _check(stream: Stream, asks: Agent) -> Answer:
    if asks.send:
        await stream.send(octets(asks.send))
    line = b""
    while b"\n" not in line and len(line) < LONGEST:
        piece = await stream.read_some("word")
        if not piece:
            break
        line += piece
    await stream.hang_up()
    return parse_state(line[:LONGEST], stream.where)


def parse_state(line: bytes, where: str) -> Answer:
    """Translate the server's line. A word that means down overrides all others."""
    text = line.partition(b"\n")[0].decode("utf-8", "replace").strip()
    words, _, comment = text.partition("#")
    up: bool | None = None
    declines = False
    share: float | None = None
    for word in re.split(r"[\s,]+", words.lower()):
        if word in DOWN:
            reason = f" ({first_line(comment)})" if comment.strip() else ""
            return Answer(up=False, detail=f"{where} says that it is {word}{reason}")
        if word in DECLINES:
            up, declines = True, True
        elif word in UP:
            up = True
        elif percent := _SHARE.fullmatch(word):
            up = True
            share = int(percent[1]) / 100
    if not text:
        return Answer(up=False, detail=f"expected up, down or a share from {where}, got nothing")
    if up is None:
        detail = f'expected up, down or a share from {where}, got "{first_line(text)}"'
        return Answer(up=None, detail=detail)
    detail = f"{where} says {first_line(words)}"
    return Answer(up=True, detail=detail, share=share, declines=declines)


probe = stream_probe(Agent, _check)
