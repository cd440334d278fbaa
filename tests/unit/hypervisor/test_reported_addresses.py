"""The number of xenstore requests for a guest's addresses, whatever the guest has written."""

import asyncio
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.fakes.xenstored import FakeXenstored
from xenlb.hypervisor.xenstore import reported_addresses
from xenlb.hypervisor.xenstore.client import XenstoreClient

ATTR = "/local/domain/4/attr"


def look(short: Path, nodes: Iterable[tuple[str, str]]) -> tuple[tuple[str, ...], int]:
    """Return the texts and the number of requests."""

    async def main() -> tuple[tuple[str, ...], int]:
        async with FakeXenstored(str(short / "socket")) as daemon:
            for path, value in nodes:
                daemon.write(path, value)
            client = XenstoreClient(lambda _path, _token: None)
            client.connect(daemon.path)
            try:
                texts = await reported_addresses.read_reported_addresses(client, 4, 16)
            finally:
                client.close()
            return texts, len(daemon.requests)

    return asyncio.run(main())


@pytest.mark.parametrize(
    "names",
    [
        [f"attr/eth{n}" for n in range(300)],
        [f"attr/vif/{n}" for n in range(300)],
        [f"attr/vif/{n}/ipv{f}/{m}" for n in range(9) for f in (4, 6) for m in range(9)],
        [f"attr/eth{n}/ipv6/{m}/addr" for n in range(9) for m in range(9)],
    ],
    ids=["eth", "vif", "addresses", "ipv6"],
)
def test_empty_nodes_cost_no_more_than_a_few_requests(short: Path, names: list[str]) -> None:
    nodes = [(f"/local/domain/4/{name}", "") for name in names]
    texts, requests = look(short, [*nodes, ("/local/domain/4/data/ip", "10.0.0.11")])
    assert requests <= 24
    assert texts == ("10.0.0.11",), "what comes last is read all the same"


def test_addresses_of_three_interfaces_are_read(short: Path) -> None:
    """Three interfaces, each with one address of IPv4 and two of IPv6."""
    nodes = [
        (f"{ATTR}/vif/{vif}/{family}/{number}", f"{vif}-{family}-{number}")
        for vif in range(3)
        for family, most in (("ipv4", 1), ("ipv6", 2))
        for number in range(most)
    ]
    texts, requests = look(short, [*nodes, ("/local/domain/4/data/ip", "10.0.0.11")])
    assert texts == (*(value for _, value in nodes), "10.0.0.11")
    assert requests <= 24
