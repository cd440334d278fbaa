"""Values as JSON and back; and what a file can contain that the state must not."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from ipaddress import ip_address
from typing import Any, get_args
from uuid import UUID

import pytest

from xenlb.ipvs.table import AddressKey, IPAddress, Protocol, ServerKey, ServiceKey
from xenlb.model.addresses import AddressCandidate, AddressSource
from xenlb.model.checks import Asks, Exec, Http, Share, Tls
from xenlb.model.domain import GuestId, MetadataService
from xenlb.model.drain import Drain, Outcome
from xenlb.model.guest import Guest, Phase
from xenlb.model.health import Health
from xenlb.model.settings import Check
from xenlb.model.state import RealServer
from xenlb.model.target import Target
from xenlb.store.json_codec import TRANSIENT, decoder, dumps, same_json

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
KEY = AddressKey(protocol=Protocol.TCP, address=ip_address("::1"), port=0)


def decoded(kind: Any, value: object) -> Any:
    return decoder(kind)(json.loads(dumps(value)))


def test_a_decoded_value_is_the_encoded_one() -> None:
    assert decoded(Guest, GUEST) == GUEST
    server = RealServer(
        owner=None, service=KEY, key=ServerKey(address=ip_address("10.0.0.1"), port=1)
    )
    assert decoded(RealServer, server) == server
    assert decoded(frozenset[IPAddress], {ip_address("::1")}) == {ip_address("::1")}
    assert decoded(tuple[str, int], ("a", 1)) == ("a", 1)


@pytest.mark.parametrize("kind", get_args(Asks))
def test_each_class_of_check_is_decoded(kind: Any) -> None:
    asks = Exec(command=("/bin/true",), share=Share(most=2.0)) if kind is Exec else kind()
    target = replace(TARGET, check=Check(asks=asks))
    assert decoded(Target, target) == target


def test_json_is_short_and_has_names() -> None:
    assert dumps(KEY) == '["tcp","::1",0]'
    assert dumps(Check()) == "{}"
    check = Check(asks=Http(tls=Tls(verify=False)), rise=2)
    assert dumps(check) == '{"asks":["Http",{"tls":{"verify":false}}],"rise":2}'


def test_values_that_occur_several_times_are_one_object() -> None:
    raw = json.loads(dumps(TARGET.check))
    assert decoder(Check)(raw) is decoder(Check)(raw)


def test_fields_that_a_restart_learns_anew_make_no_difference() -> None:
    health = Health(valid_from=0.0, up=True)
    assert same_json(health, replace(health, streak=1))
    assert not same_json(health, replace(health, detail="refused"))


def test_fields_that_are_not_encoded_exist_and_have_defaults() -> None:
    for kind, names in TRANSIENT.items():
        optional = {each.name for each in fields(kind) if each.default is not MISSING}
        assert names <= optional


RAW: dict[str, Any] = json.loads(dumps(GUEST))


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": None},
        {"name": 7},
        {"name": "x" * 100_000},
        {"phase": "top"},
        {"phase": ["up"]},
        {"incarnation": -1},
        {"incarnation": True},
        {"incarnation": False},
        {"incarnation": ""},
        {"incarnation": 10**30},
        {"incarnation": 5.0},
        {"since": float("nan")},
        {"booted": float("inf")},
        {"recheck": 1e308},
        {"last_event": False},
        {"candidates": "10.0.0.11"},
        {"candidates": {"address": "10.0.0.11"}},
        {"candidates": ["10.0.0.11"]},
        {"candidates": [["10.0.0.11"]]},
        {"candidates": [[10, "dhcp lease"]]},
        {"candidates": [["10.0.0.256", "dhcp lease"]]},
        {"metadata": [{"name": "mail", "weight": 65536}]},
        {"metadata": [{"weight": 1}]},
        {"metadata": [{"name": "mail", "address": ""}]},
        {"drain": {**RAW["drain"], "deadline": float("inf")}},
        {"drain": {**RAW["drain"], "left": -1}},
        {"drain": {**RAW["drain"], "unknown": 1}},
        {"drain": []},
        {"drain": 0},
        {"id": "mail1"},
        {"id": ["xen:///system", 1]},
        {"unknown": 1},
    ],
)
def test_a_wrong_value_is_refused(wrong: dict[str, Any]) -> None:
    assert decoder(Guest)(RAW) == GUEST
    with pytest.raises((ValueError, TypeError, LookupError, AttributeError)):
        decoder(Guest)(RAW | wrong)


@pytest.mark.parametrize(
    "wrong",
    [[], ["Tcp"], ["Tcp", []], ["Other", {}], ["Share", {}], "Tcp", {"is": "Tcp"}, None],
)
def test_a_wrong_class_of_check_is_refused(wrong: object) -> None:
    with pytest.raises((ValueError, TypeError, LookupError, AttributeError)):
        decoder(Check)({"asks": wrong})


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (ServerKey, ["10.0.0.11", 65536]),
        (ServiceKey, ["tcp", "::1", True]),
        (ServiceKey, ["inet", 1, 2, 3]),
        (ServiceKey, {"protocol": "tcp", "address": "::1", "port": 1}),
        (bool | None, 0),
        (tuple[str, int], ["a"]),
        (tuple[str, int], ["a", 1, 2]),
        (tuple[str, int], [1, "a"]),
        (tuple[str, int], "a1"),
        (Mapping[str, int], {"a": 1}),
        (Mapping[str, int], [["a"]]),
        (Mapping[str, int], ["a1"]),
    ],
)
def test_a_wrong_form_is_refused(kind: Any, wrong: object) -> None:
    decoder(ServiceKey)(["tcp", "::1", 1])
    with pytest.raises((ValueError, TypeError, LookupError, AttributeError)):
        decoder(kind)(wrong)


def test_a_type_without_a_decoder_is_a_mistake_of_the_program() -> None:
    @dataclass
    class Odd:
        value: bytes

    with pytest.raises(TypeError, match="no decoder"):
        decoder(Odd)({"value": ""})
