"""`plan` and `apply` beside an agent, and where none has ever run."""

import json
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.fakes.kernel import FakeKernel
from tests.unit.store.test_state_file import saved
from xenlb.cli.options import Options
from xenlb.cli.root import group
from xenlb.config import parse
from xenlb.control.lock import Lock, holder
from xenlb.control.protocol import ControlError
from xenlb.ipvs.table import AddressKey, Counters, Protocol, ServerKey
from xenlb.model.settings import Member, Port, ServiceSettings, Settings
from xenlb.oneshot import reconcile_once
from xenlb.oneshot.reconcile_once import run_once
from xenlb.store import state_file

TEXT = """\
director: {addresses: leave}
services:
  mail:
    address: 192.0.2.10
    ports: [25]
    check: none
    servers: [{host: 10.0.0.5}]
"""

VIP = ip_address("192.0.2.10")
KEY = AddressKey(protocol=Protocol.TCP, address=VIP, port=25)
HOSTS = tuple(Member(host=ip_address(f"10.0.0.{last}")) for last in (11, 12))
SERVICE = ServiceSettings(
    name="mail", address=VIP, ports=(Port(number=25),), checks=(), servers=HOSTS
)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    fake = FakeKernel()
    monkeypatch.setattr(reconcile_once, "Kernel", lambda: fake)
    return fake


@pytest.fixture
def xenlb(tmp_path: Path) -> Callable[..., Result]:
    (tmp_path / "xenlb.yaml").write_text(TEXT)
    run = tmp_path / "run" / "xenlb"

    def call(verb: str) -> Result:
        words = ["--config", tmp_path / "xenlb.yaml", "--socket", run / "control.sock", verb]
        words += ["--state", run / "state.json"]
        return CliRunner().invoke(group, list(map(str, words)), obj=Options())

    return call


def test_apply_makes_the_folder_of_the_state_file(
    kernel: FakeKernel, xenlb: Callable[..., Result], tmp_path: Path
) -> None:
    done = xenlb("apply")
    assert done.exception is None
    folder = tmp_path / "run" / "xenlb"
    assert oct(folder.stat().st_mode & 0o777) == "0o755"
    assert (folder / "state.json").exists()
    assert len(kernel.read().table.entries) == 1
    assert holder(folder / "control.sock") == "", "the lock is given back"


def test_apply_beside_an_agent_is_refused(
    kernel: FakeKernel, xenlb: Callable[..., Result], tmp_path: Path
) -> None:
    agent = Lock(tmp_path / "run" / "xenlb" / "control.sock")
    agent.take()
    done = xenlb("apply")
    assert isinstance(done.exception, ControlError)
    assert "another xenlb manages the table, pid " in done.exception.message
    assert "to apply a changed configuration: xenlb reload" in done.exception.hint
    assert not kernel.read().table.entries
    assert "ipvsadm -A -t 192.0.2.10:25" in xenlb("plan").output, "plan changes nothing"
    agent.release()
    assert xenlb("apply").exception is None


@pytest.mark.parametrize("content", ["[", json.dumps({"version": 1})])
def test_plan_touches_no_file_of_the_agent(tmp_path: Path, content: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(content)
    run_once(parse(TEXT, "x"), state_path=path, change=False, kernel=FakeKernel())
    assert path.read_text() == content
    assert list(tmp_path.iterdir()) == [path]


def test_plan_leaves_the_line_that_an_agent_is_writing(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    state_file.save(path, saved())
    with path.open("a") as stream:
        stream.write('\n{"now":')
    before = path.read_bytes()
    run_once(parse(TEXT, "x"), state_path=path, change=False, kernel=FakeKernel())
    assert path.read_bytes() == before


def test_a_plan_says_how_many_connections_its_removals_cut(tmp_path: Path) -> None:
    state, kernel = tmp_path / "state.json", FakeKernel()
    run_once(Settings(services=(SERVICE,)), state_path=state, change=True, kernel=kernel)
    for last, count in ((11, 4), (12, 3)):
        server = ServerKey(address=ip_address(f"10.0.0.{last}"), port=25)
        kernel.count(KEY, server, Counters(active_connections=count, inactive_connections=9))
    one = Settings(services=(replace(SERVICE, servers=HOSTS[:1]),))
    plan = run_once(one, state_path=state, change=False, kernel=kernel)
    where = "mail (192.0.2.10:25/tcp)"
    assert plan.summary == f"{where}: 1 server removed (10.0.0.12:25) with 3 connections"
    plan = run_once(Settings(), state_path=state, change=False, kernel=kernel)
    place = "192.0.2.10:25/tcp"
    assert plan.summary == f"{place} removed with 2 servers and 7 connections"
