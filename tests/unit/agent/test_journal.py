"""The journal: what followers get, and that a line is made JSON once for all of them."""

import asyncio
import json

from xenlb import journal as journal_module
from xenlb.journal import Journal
from xenlb.model.state import Note


def write(journal: Journal, *numbers: int) -> None:
    for number in numbers:
        journal.write(Note(at=float(number), text=str(number)), {})


def test_followers_get_every_line_in_order() -> None:
    async def story() -> None:
        journal = Journal(wall=str)
        write(journal, 1, 2)
        one, other = journal.follow(), journal.follow()
        first = [await anext(one), await anext(one)]
        write(journal, 3)
        first.append(await anext(one))
        assert [json.loads(line)["text"] for line in first] == ["1", "2", "3"]
        second = [await anext(other) for _ in range(3)]
        assert all(a is b for a, b in zip(first, second, strict=True)), "made once for all"
        assert [json.loads(line) for line in first] == journal.lines()
        await one.aclose()
        await other.aclose()

    asyncio.run(story())


def test_a_slow_follower_loses_what_is_not_kept_any_more() -> None:
    async def story() -> None:
        journal = Journal(wall=str)
        write(journal, 1)
        slow = journal.follow()
        await anext(slow)
        write(journal, *range(2, journal_module.KEPT + 10))
        assert json.loads(await anext(slow))["text"] == "10"
        await slow.aclose()

    asyncio.run(story())
