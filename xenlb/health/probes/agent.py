"""The agent check: a line that the server says about itself, in HAProxy's words.

They are parted by blanks, tabs or commas: `up`, `ready`, `down`, `fail`, `stopped`, `drain`,
`maint` and a share of the weight such as `75%`; what follows a `#` is for people, `maxconn:30` is
not for us. Words that are not known are passed over, and a line of such words alone tells nothing.
`drain` and `maint` are up with no share of the weight, whatever is the least: that is an order and
no measurement, and the server's connections go on. How much it may say otherwise: model/health.py.

Unlike HAProxy's, where another check stands beside it, a server that does not answer is down: this
check may be the only one.
"""

import re

from xenlb.health.transport.result import Answer
from xenlb.health.transport.stream import Stream, session
from xenlb.model.checks import Agent, octets
from xenlb.model.target import Target
from xenlb.untrusted.budget import Budget
from xenlb.untrusted.printable import first_line

LONGEST = 256  # bytes of the line

UP = frozenset({"up", "ready"})
AWAY = frozenset({"drain", "maint"})
DOWN = frozenset({"down", "fail", "failed", "stopped"})
_SHARE = re.compile(r"(\d{1,5})%", re.ASCII)


async def probe(target: Target, budget: Budget) -> Answer:
    asks = target.check.asks
    assert isinstance(asks, Agent)
    return await session(target, budget, lambda stream: _talk(stream, asks))


async def _talk(stream: Stream, asks: Agent) -> Answer:
    if asks.send:
        await stream.send(octets(asks.send))
    line = b""
    while b"\n" not in line and len(line) < LONGEST:
        more = await stream.piece("word")
        if not more:
            break
        line += more
    await stream.part()
    return understood(line[:LONGEST], stream.where)


def understood(line: bytes, where: str) -> Answer:
    """What the line says. The first word that settles whether it serves does so, whatever else."""
    said = line.partition(b"\n")[0].decode("utf-8", "replace").strip()
    words, _, why = said.partition("#")
    up: bool | None = None
    away = False
    share: float | None = None
    for word in re.split(r"[\s,]+", words.lower()):
        if word in DOWN:
            reason = f" ({first_line(why)})" if why.strip() else ""
            return Answer(up=False, detail=f"{where} says that it is {word}{reason}")
        if word in AWAY:
            up, away = True, True
        elif word in UP:
            up = True
        elif percent := _SHARE.fullmatch(word):
            up = True
            share = int(percent[1]) / 100
    if not said:
        return Answer(up=False, detail=f"expected up, down or a share from {where}, got nothing")
    if up is None:
        detail = f'expected up, down or a share from {where}, got "{first_line(said)}"'
        return Answer(up=None, detail=detail)
    return Answer(up=True, detail=f"{where} says {first_line(words)}", share=share, away=away)
