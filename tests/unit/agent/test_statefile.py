"""The state file: what is read is what was written, and a bad file is never fatal."""

import json
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from uuid import UUID

import pytest

from xenlb import statefile
from xenlb.ipvs.table import AddressKey, Family, MarkKey, Protocol, ServerKey
from xenlb.model.drain import Drain
from xenlb.model.events import Ask, GuestId, MetadataService, Target
from xenlb.model.found import Found, Source
from xenlb.model.guest import Death, Guest, Phase, Request
from xenlb.model.health import Change, Health
from xenlb.model.settings import Check
from xenlb.model.state import Admission, Slot, State

ME = GuestId(uri="xen:///system", uuid=UUID(int=7))
KEY = AddressKey(protocol=Protocol.UDP, address=ip_address("2001:db8::1"), port=53)
MARK = MarkKey(family=Family.INET6, mark=7)
SERVER = ServerKey(address=ip_address("10.0.0.11"), port=26)
OTHER = ServerKey(address=ip_address("10.0.0.12"), port=26)
TARGET = Target(check=Check(rise=2, port=80), address=ip_address("10.0.0.11"), port=80)


def saved() -> statefile.Saved:
    guest = Guest(
        id=ME,
        name="mail1",
        phase=Phase.LEAVING,
        incarnation=5,
        since=10.0,
        booted=1.0,
        recheck=2.0,
        request=Request(ask=Ask.POWEROFF, at=10.0, deadline=310.0),
        deaths=(Death(incarnation=4, at=0.5),),
        drain=Drain(reason="drained", by="root", since=9.0, deadline=None),
        found=(Found(address=ip_address("10.0.0.11"), source=Source.LEASE),),
        metadata=(MetadataService(name="mail", weight=2, address=ip_address("10.0.0.11")),),
    )
    return statefile.Saved(
        state=State(
            guests={ME: guest},
            admitted={
                Slot(owner=ME, service=KEY, server=SERVER): Admission(at=3.0, ramp=True),
                Slot(owner=None, service=MARK, server=SERVER): Admission(at=4.0, quiesced=True),
                Slot(owner=None, service=KEY, server=OTHER): Admission(
                    at=5.0,
                    apart={
                        TARGET: Health(valid_from=5.0, up=True, since=4.0, assumed=True, share=0.5)
                    },
                ),
            },
            health={
                TARGET: Health(
                    valid_from=2.0,
                    up=True,
                    since=3.0,
                    detail="passed before a restart",
                    share=0.25,
                    failures=3,
                    held_until=8.0,
                    changes=(Change(at=2.5, up=False, detail="refused"),),
                )
            },
            alarms={MARK: 7.0},
        ),
        services=frozenset({KEY, MARK}),
        servers={(KEY, SERVER): "xen:///system", (MARK, SERVER): ""},
        addresses=frozenset({("front0", ip_address("192.0.2.10"))}),
        sysctls={"net.ipv4.vs.expire_nodest_conn": "0"},
    )


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    statefile.save(path, saved())
    assert statefile.load(path) == saved()
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("up", [None, False, True])
def test_every_verdict_is_kept(tmp_path: Path, up: bool | None) -> None:
    """Also that nothing is known: of a check that is not in the file it is known that it is new."""
    path = tmp_path / "state.json"
    health = {TARGET: Health(valid_from=0.0, up=up, since=3.0, detail="refused", assumed=bool(up))}
    statefile.save(path, statefile.Saved(state=State(health=health)))
    assert statefile.load(path).state.health == health


def test_results_in_a_row_do_not_reach_across_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    health = Health(valid_from=0.0, up=True, against=2)
    statefile.save(path, statefile.Saved(state=State(health={TARGET: health})))
    assert statefile.load(path).state.health == {TARGET: replace(health, against=0)}


def test_no_file_is_a_fresh_start(tmp_path: Path) -> None:
    assert statefile.load(tmp_path / "state.json") == statefile.Saved()


def test_a_file_of_an_earlier_boot_is_void(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    statefile.save(path, saved())
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"boot": "another"}))
    assert statefile.load(path) == statefile.Saved()


@pytest.mark.parametrize(
    "key", ["guests", "admitted", "verdicts", "alarms", "services", "servers", "addresses"]
)
@pytest.mark.parametrize("value", [None, 5, "text", [[]], [[1, 2, 3]], [["tcp", "x", 1]], {}])
def test_a_damaged_file_is_put_aside(tmp_path: Path, key: str, value: object) -> None:
    path = tmp_path / "state.json"
    statefile.save(path, saved())
    data = json.loads(path.read_text())
    text = json.dumps(data | {key: value})
    path.write_text(text)
    found = statefile.load(path)
    if value == {}:
        return  # an empty mapping reads as an empty list
    assert found == statefile.Saved()
    assert (tmp_path / "state.broken").read_text() == text


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"version": 99}', "\x00"])
def test_what_is_no_state_at_all_is_put_aside(tmp_path: Path, text: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(text)
    assert statefile.load(path) == statefile.Saved()
    assert (tmp_path / "state.broken").exists()
