"""Asks servers as the agent does, inside a lab: a list of questions on stdin, answers on stdout.

    python -m tests.lab.asks <<<'[{"check": {…}, "address": "10.0.0.1", "port": 25, "times": 1}]'

Each is asked `times` times, one after the other; the answers are those that differ.
"""

from __future__ import annotations

import asyncio
import json
import sys
from ipaddress import ip_address
from typing import Any

from xenlb.health.registry import run_probe
from xenlb.health.transport.result import Answer, answer_budget, over_budget, timed_out
from xenlb.model.settings import Check
from xenlb.model.target import Target
from xenlb.store.json_codec import decoder
from xenlb.untrusted.budget import BudgetSpent


async def _asked(target: Target) -> Answer:
    try:
        async with asyncio.timeout(target.check.timeout):
            return await run_probe(target, answer_budget())
    except TimeoutError as late:
        return timed_out(target, late)
    except BudgetSpent as spent:
        return over_budget(target, spent)


async def _answers(question: dict[str, Any]) -> list[list[Any]]:
    target = Target(
        check=decoder(Check)(question["check"]),
        address=ip_address(question["address"]),
        port=question["port"],
    )
    seen: dict[Answer, None] = {}
    for _ in range(question["times"]):
        seen[await _asked(target)] = None
    return [[answer.up, answer.detail] for answer in seen]


async def _main() -> None:
    print(json.dumps([await _answers(question) for question in json.load(sys.stdin)]))


if __name__ == "__main__":
    asyncio.run(_main())
