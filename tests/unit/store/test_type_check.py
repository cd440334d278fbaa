"""Values against their declared types: what a file can hold and the state must not."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any, get_args
from uuid import UUID

import pytest

from xenlb.ipvs.table import AddressKey, IPAddress, Protocol, ServerKey
from xenlb.model.addresses import AddressCandidate, AddressSource
from xenlb.model.checks import Asks, Exec
from xenlb.model.domain import GuestId, MetadataService
from xenlb.model.drain import Drain, Outcome
from xenlb.model.guest import Guest, Phase
from xenlb.model.settings import Check
from xenlb.model.target import Target
from xenlb.store.type_check import check_type

GUEST = Guest(
    id=GuestId(uri="xen:///system", uuid=UUID(int=1)),
    name="mail1",
    phase=Phase.UP,
    incarnation=5,
    drain=Drain(reason="drained", by="root", since=1.0, outcome=Outcome.EMPTY, warnings=("a",)),
    candidates=(AddressCandidate(address=ip_address("10.0.0.11"), source=AddressSource.LEASE),),
    metadata=(MetadataService(name="mail", weight=2),),
)
TARGET = Target(check=Check(), address=ip_address("10.0.0.11"), port=25)


def test_what_is_right() -> None:
    assert check_type(GUEST, Guest) is GUEST
    for kind in get_args(Asks):
        asks = Exec(command=("/bin/true",)) if kind is Exec else kind()
        check_type(replace(TARGET, check=Check(asks=asks)), Target)
    key = AddressKey(protocol=Protocol.TCP, address=ip_address("::1"), port=0)
    check_type({key: 1}, Mapping[AddressKey, float])
    check_type(frozenset({ip_address("::1")}), frozenset[IPAddress])


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": None},
        {"name": "x" * 100_000},
        {"phase": "up"},
        {"incarnation": -1},
        {"incarnation": True},
        {"incarnation": 10**30},
        {"incarnation": 5.0},
        {"since": float("nan")},
        {"booted": float("inf")},
        {"recheck": 1e308},
        {"last_event": False},
        {"candidates": [GUEST.candidates[0]]},
        {"candidates": ("10.0.0.11",)},
        {"metadata": (MetadataService(name="mail", weight=65536),)},
        {"drain": Drain(reason="drained", by="root", since=1.0, deadline=float("inf"))},
        {"drain": Drain(reason="drained", by="root", since=1.0, left=-1)},
        {"id": "mail1"},
    ],
)
def test_what_is_wrong(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not a"):
        check_type(replace(GUEST, **wrong), Guest)


def test_a_port() -> None:
    with pytest.raises(ValueError, match="not a ServerKey"):
        check_type(ServerKey(address=ip_address("10.0.0.11"), port=65536), ServerKey)


def test_pairs() -> None:
    check_type(("a", 1), tuple[str, int])
    for wrong in (("a",), ("a", 1, 2), (1, "a"), ["a", 1]):
        with pytest.raises(ValueError, match="not a"):
            check_type(wrong, tuple[str, int])


def test_a_type_for_which_there_is_no_check_is_a_mistake_of_ours() -> None:
    @dataclass
    class Odd:
        value: bytes

    with pytest.raises(TypeError, match="no check"):
        check_type(Odd(value=b""), Odd)
