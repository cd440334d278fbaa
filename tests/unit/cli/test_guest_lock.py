"""`xenlb guest apply` and `remove` while another xenlb has the lock, for every delivery."""

import fcntl
import os
from pathlib import Path

import pytest

from tests.unit.cli import answers
from tests.unit.cli.conftest import SmallAgent
from tests.unit.cli.forks import Forks
from tests.unit.cli.test_guest_selfconfig import CONFIG, UUID

# The error of each delivery once it has the lock: no guest can be reached here. Before anything
# runs in a guest, libvirt is asked how to recognize it.
ERRORS = {
    "--ssh=root@g": "the libvirt call about mail2 failed",
    "--delivery=agent": "the libvirt call about mail2 failed",
    "--root=HERE": "check that the guest's file system is mounted there",
    "--delivery=xenstore": "xenstore: there is no xenstored",
}


@pytest.mark.parametrize("option", ERRORS)
@pytest.mark.parametrize("verb", ["apply", "remove"])
def test_a_locked_guest_is_waited_for(
    agent: SmallAgent, forks: Forks, tmp_path: Path, verb: str, option: str
) -> None:
    (tmp_path / "xenlb.yaml").write_text(CONFIG)
    agent.answers["why"] = answers.why()
    (tmp_path / "ssh").write_text(f"#!/bin/sh\ntouch {tmp_path}/called\nexit 1\n")
    (tmp_path / "ssh").chmod(0o755)
    (tmp_path / "guests").mkdir()
    (tmp_path / f"guests/{UUID}.lock").write_text("7")
    with (tmp_path / f"guests/{UUID}.lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        out, err = tmp_path / "out", os.pipe()
        words = ("guest", verb, "mail2", option.replace("HERE", str(tmp_path)))
        environment = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "XENLB_SOCKET": str(tmp_path / "control.sock"),
            "XENLB_CONFIG": str(tmp_path / "xenlb.yaml"),
            "XENSTORED_PATH": "/nowhere",
        }
        with (
            out.open("wb") as stdout,
            open(err[0]) as stderr,
            forks.start(words, environment, out=stdout.fileno(), err=err[1]) as wait,
        ):
            os.close(err[1])
            waiting = stderr.readline()
            assert waiting == "xenlb: mail2 is locked by xenlb (pid 7); waiting\n"
            assert not (tmp_path / "called").exists()
            lock.close()
            assert ERRORS[option] in stderr.read()
            assert (wait(), out.read_text()) == (1, "")
            assert not (tmp_path / "called").exists()
