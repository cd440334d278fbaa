"""`plan` and `apply` beside an agent, and where none has ever run."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.fakes.kernel import FakeKernel
from tests.unit.agent.test_statefile import saved
from xenlb import once, statefile
from xenlb.cli.options import Options
from xenlb.cli.root import group
from xenlb.config import parse
from xenlb.control.lock import Lock, holder
from xenlb.control.protocol import ControlError
from xenlb.once import run_once

TEXT = """\
director: {addresses: leave}
services:
  mail:
    address: 192.0.2.10
    ports: [25]
    check: none
    servers: [{host: 10.0.0.5}]
"""


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    fake = FakeKernel()
    monkeypatch.setattr(once, "Kernel", lambda: fake)
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
    assert "another xenlb works on the table, pid " in done.exception.message
    assert "xenlb reload is enough" in done.exception.hint
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
    statefile.save(path, saved())
    with path.open("a") as stream:
        stream.write('\n{"now":')
    before = path.read_bytes()
    run_once(parse(TEXT, "x"), state_path=path, change=False, kernel=FakeKernel())
    assert path.read_bytes() == before
