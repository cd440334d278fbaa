"""`xenlb guest apply` and `remove` while another is at work in the guest, by every delivery."""

import fcntl
import os
from pathlib import Path

import pytest

from tests.unit.cli import answers
from tests.unit.cli.conftest import SmallAgent
from tests.unit.cli.forks import Forks
from tests.unit.cli.test_guest_selfconfig import CONFIG, UUID

# What each says once it is its turn: none of the ways leads anywhere here. By which marks a machine
# is the guest is asked of libvirt before anything runs in one.
WAYS = {
    "--ssh=root@g": "libvirt was asked about mail2",
    "--delivery=agent": "libvirt was asked about mail2",
    "--root=HERE": "is the guest's file system mounted there?",
    "--delivery=xenstore": "xenstore: there is no xenstored",
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("verb", ["apply", "remove"])
def test_it_waits_for_its_turn(
    agent: SmallAgent, forks: Forks, tmp_path: Path, verb: str, way: str
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
        words = ("guest", verb, "mail2", way.replace("HERE", str(tmp_path)))
        environment = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "XENLB_SOCKET": str(tmp_path / "control.sock"),
            "XENLB_CONFIG": str(tmp_path / "xenlb.yaml"),
            "XENSTORED_PATH": "/nowhere",
        }
        with (
            out.open("wb") as writes,
            open(err[0]) as said,
            forks.start(words, environment, out=writes.fileno(), err=err[1]) as wait,
        ):
            os.close(err[1])
            waits = said.readline()
            assert waits == "xenlb: process 7 of xenlb is at work in mail2; waiting for its end\n"
            assert not (tmp_path / "called").exists()
            lock.close()
            assert WAYS[way] in said.read()
            assert (wait(), out.read_text()) == (1, "")
            assert not (tmp_path / "called").exists()
