"""Guest agents that answer, are missing, or hang."""

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from types import SimpleNamespace
from typing import Any, TypeVar, cast
from uuid import UUID

import libvirt
import pytest

from xenlb.hypervisor.addresses import guest_agents
from xenlb.hypervisor.addresses.guest_agents import AgentHistory, GuestAgents, _query_agent
from xenlb.hypervisor.libvirt.queries import CallFailed, Connection
from xenlb.hypervisor.threads import CallTimeout

T = TypeVar("T")


class Source:
    """A LibvirtSource whose guests in `hung` have agents that never answer."""

    def __init__(self, hung: Iterable[UUID] = ()) -> None:
        self.hung = set(hung)
        self.asked: list[UUID] = []
        self.at_once = self.most_at_once = 0

    async def call(self, function: Callable[[Connection], T], *, limit: float | None) -> T:
        uuid = cast(partial[T], function).keywords["uuid"]
        self.asked.append(uuid)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if uuid in self.hung:
                async with asyncio.timeout(5):  # of the test
                    await asyncio.sleep(60 if limit is None else limit)
                raise CallTimeout(f"no answer within {limit} s")
            await asyncio.sleep(0)
            return cast(T, ["10.0.0.11"])
        finally:
            self.at_once -= 1


def uuids(number: int) -> list[UUID]:
    return [UUID(int=n + 1) for n in range(number)]


def test_hung_agents_do_not_delay_other_agents() -> None:
    async def main() -> None:
        *hung, good = uuids(9)
        source = Source(hung)
        agents = GuestAgents(lambda: 0.0, limit=0.01)
        tasks = [
            asyncio.create_task(agents.addresses(AgentHistory(), source, uuid))
            for uuid in [*hung, good]
        ]
        assert (await asyncio.gather(*tasks))[-1] == ["10.0.0.11"]
        assert source.most_at_once == guest_agents.MAX_QUERIES

    asyncio.run(main())


def test_hung_agent_is_queried_ever_less_often_and_in_separate_slots() -> None:
    async def main() -> None:
        now = 0.0
        bad, good, other = uuids(3)
        source = Source([bad, other])
        agents = GuestAgents(lambda: now, limit=0.01)
        history = AgentHistory()
        times = []
        for now in range(3600):
            before = len(source.asked)
            assert await agents.addresses(history, source, bad) == []
            times += [now] * (len(source.asked) > before)
        assert times[:5] == [0, 30, 90, 210, 450]
        assert len(times) == 10, "in an hour"
        # While it is asked again, with another one that hung, both places are free for others.
        now = 10_000
        slow = [
            asyncio.create_task(agents.addresses(each, source, uuid))
            for each, uuid in ((history, bad), (AgentHistory(hung=1), other))
        ]
        await asyncio.sleep(0)
        assert source.at_once == guest_agents.MAX_HUNG_QUERIES
        assert await agents.addresses(AgentHistory(), source, good) == ["10.0.0.11"]
        assert source.at_once == guest_agents.MAX_HUNG_QUERIES
        await asyncio.gather(*slow)
        source.hung.clear()
        now = 20_000
        assert await agents.addresses(history, source, bad) == ["10.0.0.11"]
        assert history.hung == 0, "it answers again"

    asyncio.run(main())


@pytest.mark.parametrize("known", [True, False])
def test_libvirt_s_agent_limit_is_set_once(known: bool) -> None:
    told: list[tuple[int, int]] = []
    domain: dict[str, Any] = {
        "interfaceAddresses": lambda *_: {"eth0": {"addrs": [{"addr": "10.0.0.11"}]}}
    }
    if known:
        domain["agentSetResponseTimeout"] = lambda *arguments: told.append(arguments)
    connection = SimpleNamespace(lookupByUUIDString=lambda _uuid: SimpleNamespace(**domain))
    history = AgentHistory()
    for _ in range(3):
        texts = _query_agent(cast(Connection, connection), UUID(int=1), history)
        assert texts == ["10.0.0.11"]
    assert told == [(guest_agents.RESPONSE, 0)] * known


def test_missing_agent_causes_no_pause() -> None:
    class Missing(Source):
        async def call(self, function: Callable[[Connection], T], *, limit: float | None) -> T:
            raise CallFailed(libvirt.libvirtError("guest agent is not connected"))

    async def main() -> None:
        history = AgentHistory()
        agents = GuestAgents(lambda: 0.0)
        assert await agents.addresses(history, Missing(), UUID(int=1)) == []
        assert history.hung == 0

    asyncio.run(main())
