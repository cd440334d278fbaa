"""Runs in a lab: asks the targets that standard input names, in JSON, all at once, round by round.

Says the answers of the last round, in their order, and the rounds that differ from the one before.
"""

import asyncio
import json
import sys
from ipaddress import ip_address
from typing import Any

from xenlb.health.registry import load_probe, run_probe
from xenlb.health.transport.result import Answer, answer_budget, timed_out
from xenlb.ipvs.table import Tunnel, TunnelType
from xenlb.model.settings import Check
from xenlb.model.target import Target
from xenlb.store.json_codec import decoder


def target(item: dict[str, Any]) -> Target:
    tunnel = item.get("tunnel")
    return Target(
        check=decoder(Check)(item["check"]),
        address=ip_address(item["address"]),
        port=item["port"],
        vip=ip_address(item["vip"]) if item.get("vip") else None,
        tunnel=Tunnel(type=TunnelType(tunnel), port=item.get("tunnel_port", 0)) if tunnel else None,
    )


async def one(target: Target) -> Answer:
    """As the runner does it."""
    await load_probe(target)
    try:
        async with asyncio.timeout(target.check.timeout):
            return await run_probe(target, answer_budget())
    except TimeoutError:
        return timed_out(target)


async def main() -> None:
    asked = json.load(sys.stdin)
    targets = [target(item) for item in asked["targets"] for _ in range(item.get("copies", 1))]
    answers: list[Answer] = []
    others: list[str] = []
    for number in range(asked["rounds"]):
        before, answers = answers, list(await asyncio.gather(*map(one, targets)))
        if number > 0 and before != answers:
            others.append(f"round {number}: {before[0]} … {answers[0]}")
    told = [[each.up, each.detail, each.share] for each in answers]
    print(json.dumps({"answers": told, "others": others}))


asyncio.run(main())
