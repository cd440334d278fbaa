"""`xenlb guest apply` and `remove` while another is at work in the guest, by every delivery."""

import fcntl
import os
import subprocess
from pathlib import Path

import pytest

from tests.unit.cli import answers
from tests.unit.cli.conftest import COMMAND, SmallAgent
from tests.unit.cli.test_guest_selfmade import CONFIG, UUID

# What each says once it is its turn: none of the ways leads anywhere here.
WAYS = {
    "--ssh=root@g": "ssh to root@g failed",
    "--delivery=agent": "guest agent of mail2 failed",
    "--root=HERE": "is the guest's file system mounted there?",
    "--delivery=xenstore": "xenstore: there is no xenstored",
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("verb", ["apply", "remove"])
def test_it_waits_for_its_turn(agent: SmallAgent, tmp_path: Path, verb: str, way: str) -> None:
    (tmp_path / "xenlb.yaml").write_text(CONFIG)
    agent.answers["why"] = answers.why()
    (tmp_path / "ssh").write_text(f"#!/bin/sh\ntouch {tmp_path}/called\nexit 1\n")
    (tmp_path / "ssh").chmod(0o755)
    (tmp_path / "guests").mkdir()
    (tmp_path / f"guests/{UUID}.lock").write_text("7")
    with (tmp_path / f"guests/{UUID}.lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = subprocess.Popen(
            [*COMMAND, "guest", verb, "mail2", way.replace("HERE", str(tmp_path))],
            env={
                "PATH": f"{tmp_path}:{os.environ['PATH']}",
                "XENLB_SOCKET": str(tmp_path / "control.sock"),
                "XENLB_CONFIG": str(tmp_path / "xenlb.yaml"),
                "XENSTORED_PATH": "/nowhere",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with command:
            assert command.stderr is not None
            waits = command.stderr.readline()
            assert waits == "xenlb: process 7 of xenlb is at work in mail2; waiting for its end\n"
            assert not (tmp_path / "called").exists()
            lock.close()
            out, said = command.communicate(timeout=60)
            assert (command.returncode, out) == (1, "")
            assert WAYS[way] in said
            assert (tmp_path / "called").exists() == ("ssh" in way)
