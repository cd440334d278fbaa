"""The state file: what is read is what was written, and a bad file is never fatal."""

import asyncio
import json
import logging
import os
import re
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from uuid import UUID

import pytest

from tests.soak import SOAK
from xenlb.ipvs.table import (
    AddressKey,
    Family,
    MarkKey,
    Protocol,
    ServerKey,
    ServiceKey,
    Tunnel,
    TunnelChecksum,
    TunnelType,
)
from xenlb.model.addresses import AddressCandidate, AddressSource
from xenlb.model.checks import Exec, Http, Share, Tls
from xenlb.model.domain import GuestId, MetadataService, RequestKind
from xenlb.model.drain import Drain, Outcome
from xenlb.model.guest import Death, Guest, Phase, Request
from xenlb.model.health import Change, Health
from xenlb.model.settings import Check
from xenlb.model.state import Admission, Alarm, AlarmKind, RealServer, Remembered
from xenlb.model.target import Target
from xenlb.store import state_file
from xenlb.store.saved_state import SavedState

ME = GuestId(uri="xen:///system", uuid=UUID(int=7))
KEY = AddressKey(protocol=Protocol.UDP, address=ip_address("2001:db8::1"), port=53)
MARK = MarkKey(family=Family.INET6, mark=7)
SERVER = ServerKey(address=ip_address("10.0.0.11"), port=26)
OTHER = ServerKey(address=ip_address("10.0.0.12"), port=26)
TARGET = Target(check=Check(rise=2, port=80), address=ip_address("10.0.0.11"), port=80)


def saved() -> SavedState:
    guest = Guest(
        id=ME,
        name="mail1",
        phase=Phase.LEAVING,
        incarnation=5,
        since=10.0,
        booted=1.0,
        recheck=2.0,
        request=Request(kind=RequestKind.POWEROFF, at=10.0, deadline=310.0),
        deaths=(Death(incarnation=4, at=0.5),),
        drain=Drain(reason="drained", by="root", since=9.0, deadline=None),
        candidates=(AddressCandidate(address=ip_address("10.0.0.11"), source=AddressSource.LEASE),),
        metadata=(MetadataService(name="mail", weight=2, address=ip_address("10.0.0.11")),),
    )
    return SavedState(
        remembered=Remembered(
            guests={ME: guest},
            admitted={
                RealServer(owner=ME, service=KEY, key=SERVER): Admission(at=3.0, ramp=True),
                RealServer(owner=None, service=MARK, key=SERVER): Admission(
                    at=4.0, quiesced=True, zero_since=6.0
                ),
                RealServer(owner=None, service=KEY, key=OTHER): Admission(
                    at=5.0,
                    overrides={
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
            alarms={MARK: Alarm(kind=AlarmKind.DOWN, since=7.0)},
        ),
        services=frozenset({KEY, MARK}),
        servers={(KEY, SERVER): "xen:///system", (MARK, SERVER): ""},
        addresses=frozenset({("front0", ip_address("192.0.2.10"))}),
        sysctls={"net.ipv4.vs.expire_nodest_conn": "0"},
    )


def test_a_saved_state_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    state_file.save(path, saved())
    assert state_file.load(path) == saved()
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("up", [None, False, True])
def test_every_verdict_is_saved(tmp_path: Path, up: bool | None) -> None:
    """Also one that is unknown: a check that is not in the file is a new one."""
    path = tmp_path / "state.json"
    health = {TARGET: Health(valid_from=0.0, up=up, since=3.0, detail="refused", assumed=bool(up))}
    state_file.save(path, SavedState(remembered=Remembered(health=health)))
    assert state_file.load(path).remembered.health == health


def test_results_in_a_row_do_not_reach_across_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    health = Health(valid_from=0.0, up=True, streak=2)
    state_file.save(path, SavedState(remembered=Remembered(health={TARGET: health})))
    assert state_file.load(path).remembered.health == {TARGET: replace(health, streak=0)}


def test_no_file_is_a_fresh_start(tmp_path: Path) -> None:
    assert state_file.load(tmp_path / "state.json") == SavedState()


def test_a_file_of_an_earlier_boot_is_void(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    state_file.save(path, saved())
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"boot": "another"}))
    assert state_file.load(path) == SavedState()


@pytest.mark.parametrize(
    "key", ["guests", "admitted", "health", "alarms", "services", "servers", "addresses", "sysctls"]
)
@pytest.mark.parametrize("value", [None, 5, "text", [[]], [[1, 2, 3]], [["tcp", "x", 1]], {}])
def test_a_damaged_file_is_put_aside(tmp_path: Path, key: str, value: object) -> None:
    path = tmp_path / "state.json"
    state_file.save(path, saved())
    data = json.loads(path.read_text())
    text = json.dumps(data | {"saved": data["saved"] | {key: value}})
    path.write_text(text)
    assert state_file.load(path) == SavedState()
    assert (tmp_path / "state.broken").read_text() == text


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"version": 99}', "\x00"])
def test_a_file_of_something_else_is_put_aside(tmp_path: Path, text: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(text)
    assert state_file.load(path) == SavedState()
    assert (tmp_path / "state.broken").exists()


# The changes below it -----------------------------------------------------------------------------


def drained_guest(number: int, *, by: str = "root") -> SavedState:
    """A drain of a guest, and what that guest has of the table."""
    address = ip_address("10.0.1.0") + number
    here = ServerKey(address=address, port=26)
    guest = GuestId(uri=ME.uri, uuid=UUID(int=100 + number))
    drain = Drain(reason="drained", by=by, since=9.0, deadline=None)
    target = replace(TARGET, address=address)
    return SavedState(
        remembered=Remembered(
            guests={guest: Guest(id=guest, name=f"g{number}", drain=drain)},
            admitted={RealServer(owner=guest, service=KEY, key=here): Admission(at=number)},
            health={target: Health(valid_from=0.0, up=True)},
            alarms={KEY: Alarm(kind=AlarmKind.BELOW, since=1.0 * number)},
        ),
        services=frozenset({KEY}),
        servers={(KEY, here): ME.uri},
        addresses=frozenset({("front0", address)}),
        sysctls={f"net.ipv4.vs.{number}": "0"},
    )


def states() -> list[SavedState]:
    """Each has something new, something other and something less than the one before."""
    return [
        saved(),
        drained_guest(1),
        drained_guest(2),
        drained_guest(2, by="admin"),
        saved(),
        SavedState(),
        drained_guest(3),
        drained_guest(2),
    ]


def save_each(path: Path, states: list[SavedState]) -> None:
    file = state_file.StateFile(path)
    for each in states:
        file.save(each)


def lines(path: Path) -> int:
    return len(path.read_bytes().splitlines())


@contextmanager
def room(size: int) -> Iterator[None]:
    """Files of this process may have so many bytes, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_each_change_adds_one_line(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    for number in range(1, len(states()) + 1):
        path.unlink(missing_ok=True)
        save_each(path, states()[:number])
        assert state_file.load(path) == states()[number - 1]
        assert lines(path) == number
    before = path.read_bytes()
    heard = states()[-1]
    guests = {key: replace(guest, last_event=7.0) for key, guest in heard.remembered.guests.items()}
    health = {key: replace(each, streak=1) for key, each in heard.remembered.health.items()}
    save_each(path, [heard, replace(heard, remembered=replace(heard.remembered, guests=guests))])
    save_each(path, [heard, replace(heard, remembered=replace(heard.remembered, health=health))])
    me = heard.remembered.guests[GuestId(uri=ME.uri, uuid=UUID(int=102))]
    assert me.drain is not None
    counted = {me.id: replace(me, drain=replace(me.drain, left=3))}
    save_each(path, [heard, replace(heard, remembered=replace(heard.remembered, guests=counted))])
    assert path.read_bytes() == before


def test_the_line_of_a_change_is_short(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    many = [drained_guest(number).remembered for number in range(200)]
    state = Remembered(
        guests={key: guest for each in many for key, guest in each.guests.items()},
        admitted={key: entry for each in many for key, entry in each.admitted.items()},
        health={key: health for each in many for key, health in each.health.items()},
    )
    file = state_file.StateFile(path)
    file.save(SavedState(remembered=state))
    size = path.stat().st_size
    (target, health), *_ = state.health.items()
    failed = {**state.health, target: replace(health, up=False)}
    # Drawn anew in another order, as settle() does.
    admitted = dict(reversed(list(state.admitted.items())))
    file.save(SavedState(remembered=replace(state, health=failed, admitted=admitted)))
    assert size > 40_000
    assert path.stat().st_size - size < 300


@pytest.mark.parametrize("more", [drained_guest(2), drained_guest(1, by="admin"), SavedState()])
def test_a_line_that_a_kill_has_cut_is_removed(tmp_path: Path, more: SavedState) -> None:
    path = tmp_path / "state.json"
    save_each(path, [saved(), drained_guest(1)])
    whole = path.stat().st_size
    save_each(path, [more])
    full = path.read_bytes()
    last = len(full) - 1
    for size in range(whole, len(full)) if SOAK else {*range(whole, last, 11), whole + 1, last}:
        path.write_bytes(full[:size])
        assert state_file.read(path) == drained_guest(1)
        assert path.stat().st_size == size, "an agent may be writing it"
        assert state_file.load(path) == drained_guest(1)
        assert path.stat().st_size == whole
        save_each(path, [drained_guest(3)])
        assert state_file.load(path) == drained_guest(3)
    assert not (tmp_path / "state.broken").exists()


def test_a_damaged_line_among_others_voids_the_file(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    save_each(path, states())
    first, second, *rest = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([first, second[:-9], *rest]))
    assert state_file.load(path) == SavedState()
    assert (tmp_path / "state.broken").exists()


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda text: b"[" * 200_000, id="nested"),
        pytest.param(lambda text: text + b"\n" + b"[" * 200_000, id="nested, in a line"),
        pytest.param(lambda text: b"\xff\xfe", id="no text"),
        pytest.param(lambda text: re.sub(rb'"since":[0-9.]+', b'"since":1e308', text), id="number"),
        pytest.param(lambda text: re.sub(rb'"since":[0-9.]+', b'"since":NaN', text), id="NaN"),
        pytest.param(lambda text: re.sub(rb'"uuid"|"id":\[[^]]*\]', b'"id":[]', text), id="short"),
        pytest.param(lambda text: text.replace(b'"name":"', b'"name":7,"x":"'), id="type"),
    ],
)
def test_no_damage_is_fatal(
    tmp_path: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "state.json"
    state_file.save(path, saved())
    damaged = damage(path.read_bytes())
    assert damaged != path.read_bytes()
    path.write_bytes(damaged)
    assert state_file.read(path) == SavedState()
    assert path.read_bytes() == damaged, "reading changes nothing"
    caplog.clear()
    assert state_file.load(path) == SavedState()
    assert len(caplog.records) == 1
    assert (tmp_path / "state.broken").read_bytes() == damaged
    assert not path.exists()


def test_a_fifo_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    os.mkfifo(path)
    assert state_file.load(path) == SavedState()
    assert (tmp_path / "state.broken").is_fifo()


def test_reading_leaves_a_file_of_an_earlier_boot(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    state_file.save(path, saved())
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "boot": "another"}))
    assert state_file.read(path) == SavedState()
    assert path.exists()


def test_a_full_disk_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "state.json"
    file = state_file.StateFile(path)
    file.save(saved())
    with caplog.at_level(logging.INFO):
        with room(path.stat().st_size + 20):
            for number in range(1, 4):
                file.save(drained_guest(number))
        assert file.problem.startswith(f"{path} cannot be written: ")
        assert len(caplog.records) == 1
        file.save(drained_guest(4))
        assert file.problem == ""
        assert [record.getMessage() for record in caplog.records[1:]] == [
            f"{path} is written again"
        ]


def test_a_change_without_room_is_part_of_the_next_line(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    file = state_file.StateFile(path)
    file.save(saved())
    before = path.read_bytes()
    with room(len(before) + 20):
        file.save(drained_guest(1))
    assert path.read_bytes() == before
    file.save(replace(drained_guest(1), sysctls={}))
    assert state_file.load(path) == replace(drained_guest(1), sysctls={})


def test_a_removed_file_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    file = state_file.StateFile(path)
    file.save(saved())
    path.unlink()
    file.save(drained_guest(1))
    assert state_file.load(path) == drained_guest(1)


class SlowDisk:
    """A disk that writes the whole file once `let` is set, in the calling thread."""

    def __init__(self) -> None:
        self.let = threading.Event()
        self.busy = 0
        self.most = 0
        self.times = 0
        self.error: OSError | None = None

    def write(self, file: Path, text: str) -> None:
        self.times += 1
        self.busy += 1
        self.most = max(self.busy, self.most)
        assert self.let.wait(20), "the owner's thread waits for the disk"
        self.busy -= 1
        if self.error is not None:
            raise self.error
        state_file.write(file, text)


async def until_asked(disk: SlowDisk) -> None:
    async with asyncio.timeout(10):
        while not disk.busy:
            await asyncio.sleep(0.001)


def test_a_change_during_a_rewrite_is_in_both_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_file, "SMALLEST", 0)
    path = tmp_path / "state.json"
    disk = SlowDisk()

    async def story() -> None:
        file = state_file.StateFile(path, write=disk.write)
        for number in range(20):
            file.save(drained_guest(number % 3))
        await until_asked(disk)
        for each in states():
            file.save(each)
            assert state_file.load(path) == each, "a kill now would lose it"
        old = path.stat().st_ino
        disk.let.set()
        await file.close()
        assert path.stat().st_ino != old
        assert state_file.load(path) == states()[-1]
        file.save(drained_guest(5))
        assert state_file.load(path) == drained_guest(5)
        await file.close()

    asyncio.run(story())
    assert disk.most == 1, "two writers at a time"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]


def test_the_file_is_rewritten_before_it_grows_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_file, "SMALLEST", 4000)
    path = tmp_path / "state.json"
    disk = SlowDisk()
    disk.let.set()

    async def story() -> None:
        file = state_file.StateFile(path, write=disk.write)
        for number in range(100):
            file.save(drained_guest(number % 3))
            await file.close()
            assert path.stat().st_size < 12_000
            assert state_file.load(path) == drained_guest(number % 3)

    asyncio.run(story())
    assert 5 < disk.times < 50


def test_a_failed_rewrite_leaves_the_file_and_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(state_file, "SMALLEST", 0)
    path = tmp_path / "state.json"
    disk = SlowDisk()
    disk.let.set()
    disk.error = OSError(28, "No space left on device")

    async def story() -> None:
        file = state_file.StateFile(path, write=disk.write)
        for number in range(20):
            file.save(drained_guest(number % 3))
            await file.close()
            assert state_file.load(path) == drained_guest(number % 3)
        failures = disk.times
        assert failures > 1
        assert "No space left" in caplog.text
        disk.error = None
        for number in range(20):
            file.save(drained_guest(number % 3))
            await file.close()
            assert state_file.load(path) == drained_guest(number % 3)
        assert lines(path) < 20

    asyncio.run(story())


# Files of this version and of earlier ones --------------------------------------------------------


def recorded(tmp_path: Path, version: int) -> Path:
    """A copy of the file that an agent of that version wrote, as if in this boot of the host."""
    text = Path(__file__).with_name(f"state-version-{version}.json").read_text()
    path = tmp_path / "state.json"
    path.write_text(text.replace("BOOT", state_file.BOOT_ID.read_text().strip(), 1))
    return path


def recorded_states() -> list[SavedState]:
    """What the recorded files hold after their first line, their second and so on."""
    via_vip = Target(
        check=Check(
            type="https", asks=Http(tls=Tls(verify=False), header=("Server", "x")), via_vip=True
        ),
        address=ip_address("2001:db8::11"),
        port=443,
        vip=ip_address("2001:db8::1"),
        tunnel=Tunnel(type=TunnelType.GUE, port=6080, checksum=TunnelChecksum.CHECKSUM),
    )
    program = Target(
        check=Check(type="exec", asks=Exec(command=("/bin/true", "-x"), share=Share(most=2.0))),
        address=ip_address("10.0.0.12"),
        port=0,
    )
    start = saved()
    guest = replace(
        start.remembered.guests[ME],
        given_up=frozenset({ip_address("10.0.0.9")}),
        reserved=frozenset({ip_address("10.0.0.8"), ip_address("10.0.0.7")}),
        reserved_until=40.0,
        last_drain=Drain(
            reason="rebooted",
            by="root",
            since=1.0,
            deadline=5.0,
            then=RequestKind.REBOOT,
            asked=True,
            failure="no",
            over=4.0,
            outcome=Outcome.EMPTY,
            end=Outcome.GONE,
            warnings=("a", "b"),
        ),
    )
    health = {
        **start.remembered.health,
        via_vip: Health(valid_from=1.0, up=False, since=2.0, detail="closed"),
        program: Health(valid_from=0.0),
    }
    first = replace(start, remembered=replace(start.remembered, guests={ME: guest}, health=health))
    passed = health | {via_vip: Health(valid_from=1.0, up=True, since=9.0, detail="200")}
    alarms: dict[ServiceKey, Alarm] = {KEY: Alarm(kind=AlarmKind.BELOW, since=8.0)}
    second = replace(first, remembered=replace(first.remembered, alarms=alarms, health=passed))
    admitted = {
        server: entry
        for server, entry in first.remembered.admitted.items()
        if server.service == KEY
    }
    fewer = {target: verdict for target, verdict in passed.items() if target != program}
    third = SavedState(
        remembered=replace(second.remembered, admitted=admitted, health=fewer),
        services=frozenset({KEY}),
        servers={(KEY, SERVER): "xen:///system", (KEY, OTHER): ""},
    )
    return [first, second, third]


@pytest.mark.parametrize("version", [7, 8])
@pytest.mark.parametrize("lines", [1, 2, 3])
def test_a_recorded_file_is_read(tmp_path: Path, version: int, lines: int) -> None:
    """A failure means that the format has changed: then raise the version, and convert this one."""
    path = recorded(tmp_path, version)
    path.write_bytes(b"\n".join(path.read_bytes().split(b"\n")[:lines]))
    assert state_file.load(path) == recorded_states()[lines - 1]


def test_a_change_after_an_older_version_is_read(tmp_path: Path) -> None:
    path = recorded(tmp_path, 7)
    save_each(path, [drained_guest(1), drained_guest(2)])
    assert state_file.load(path) == drained_guest(2)


def test_a_file_of_version_6_is_read(tmp_path: Path) -> None:
    """It has less than version 7: no time since when a server has weight 0, and one kind of
    alarm."""
    state, today = state_file.load(recorded(tmp_path, 6)), saved()
    assert state.remembered.guests[ME].drain == today.remembered.guests[ME].drain
    assert state.remembered.guests[ME].request == today.remembered.guests[ME].request
    assert state.remembered.health == today.remembered.health
    admitted = {
        server: replace(entry, zero_since=None)
        for server, entry in today.remembered.admitted.items()
    }
    assert state.remembered.admitted == admitted
    assert state.remembered.alarms == {MARK: Alarm(kind=AlarmKind.KEPT, since=7.0)}
    assert (state.services, state.servers) == (today.services, today.servers)
    assert (state.addresses, state.sysctls) == (today.addresses, today.sysctls)
