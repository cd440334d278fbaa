"""The lab protocol, without a lab: execd.py as a child process on this machine."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.host import LabError, LabHost

EXECD = Path(__file__).with_name("execd.py")


class Here(LabHost):
    """A "lab" that is a child process on this machine."""

    patience = 1.0

    def __init__(self) -> None:
        super().__init__("here")
        self.child: subprocess.Popen[str] | None = None

    def boot(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.child = subprocess.Popen(
                [sys.executable, str(EXECD), "--fd", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                text=True,
            )
        self.attach(ours)

    def close(self) -> None:
        self.detach()
        if self.child:
            assert self.child.wait(10) == 0
            self.child = None


@pytest.fixture
def here() -> Iterator[Here]:
    with Here() as lab:
        yield lab


def test_run_tells_status_output_and_times(here: Here) -> None:
    result = here.run("cat; echo oops >&2; exit 3", input="in\n", check=False)
    assert (result.rc, result.out, result.err) == (3, "in\n", "oops\n")
    assert result.started <= result.ended
    assert here.run(["printf", r"\377\0é"]).out == "\udcff\0é"
    assert here.run("echo $A", env={"A": "b c"}).out == "b c\n"
    assert here.run("pwd", cwd="/").out == "/\n"


def test_failure_shows_the_command_and_both_outputs(here: Here) -> None:
    with pytest.raises(LabError, match=r"(?s)status 1.*echo x.*stdout\nx.*stderr\ny"):
        here.run("echo x; echo y >&2; false")
    with pytest.raises(LabError, match="could not run /no/such: FileNotFoundError"):
        here.run(["/no/such"])


def test_timeout_kills_the_whole_group(here: Here, tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"(?s)killed after 0.3 s.*stdout\nstarted"):
        here.run(f"(sleep 1; touch {tmp_path}/late) & echo started; wait", timeout=0.3)
    time.sleep(1.2)
    assert not (tmp_path / "late").exists()


def test_a_daemon_left_behind_does_not_hold_the_answer(here: Here) -> None:
    result = here.run("sleep 5 & echo $!", timeout=3)
    here.run(["kill", result.out.strip()])


def test_spawn_signal_wait_log(here: Here, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    process = here.spawn(
        "trap 'echo bye; exit 4' TERM; echo up; while :; do sleep 0.05; done", log=log
    )
    here.wait_until(lambda: "up" in process.log(), 5, "the process to start")
    assert process.alive()
    with pytest.raises(LabError, match=r"(?s)still runs.*up"):
        process.wait(0.1)
    assert process.signal(signal.SIGTERM)
    assert process.wait(5) == 4
    assert process.ended is not None
    assert process.ended >= process.started
    assert process.log() == "up\nbye\n"
    assert not process.signal(signal.SIGTERM)
    other = here.spawn(["sleep", "60"], log=log)
    other.kill()
    assert other.poll() == -signal.SIGKILL


def test_files_pass_whole(here: Here, tmp_path: Path) -> None:
    data = bytes(range(256)) * 8192
    here.write(f"{tmp_path}/new/file", data, mode=0o600)
    assert (tmp_path / "new/file").stat().st_mode & 0o777 == 0o600
    assert here.read(f"{tmp_path}/new/file") == data
    with pytest.raises(LabError, match="could not read"):
        here.read(f"{tmp_path}/none")


def test_wait_until(here: Here, tmp_path: Path) -> None:
    here.spawn(f"sleep 0.2; echo 1 > {tmp_path}/flag", log="/dev/null")
    assert here.wait_until(f"cat {tmp_path}/flag", 5, "the flag") == "1\n"
    with pytest.raises(LabError, match="in vain for pigs to fly"):
        here.wait_until("false", 0.2, "pigs to fly")


def test_requests_do_not_wait_for_each_other(here: Here) -> None:
    slow = threading.Thread(target=lambda: here.run("sleep 1"))
    slow.start()
    assert here.run("true").rc == 0
    assert abs(here.time() - time.time()) < 5
    assert slow.is_alive()
    slow.join()


def test_a_dead_lab_is_told_not_waited_for(here: Here) -> None:
    with pytest.raises(LabError, match="went away during: run kill"):
        here.run("kill -9 $PPID; sleep 5")
    with pytest.raises(LabError, match="is gone"):
        here.run("true")
    assert here.child
    here.child.wait()
    here.child = None


def test_tcp(here: Here, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    server = here.spawn([sys.executable, str(EXECD), "--tcp", "127.0.0.1:0"], log=log)
    try:
        here.wait_until(lambda: "listening" in server.log(), 10, "execd to listen")
        port = int(server.log().split()[-1])
        labs = [LabHost("one"), LabHost("two")]
        for lab in labs:
            lab.attach_tcp("127.0.0.1", port, timeout=5)
        assert [lab.out(["echo", lab.name]) for lab in labs] == ["one\n", "two\n"]
        for lab in labs:
            lab.detach()
    finally:
        server.kill()
    with pytest.raises(LabError, match="did not wait for execd"):
        LabHost("three").attach_tcp("127.0.0.1", port, timeout=0.3)


class Captured(Here):
    def __init__(self, files: str) -> None:
        super().__init__()
        self.files = files

    def capture_commands(self) -> dict[str, str]:
        return {"a.txt": "echo seen", "b.txt": "nonsense-command"}

    def capture_files(self) -> tuple[str]:
        return (self.files,)


def test_capture(tmp_path: Path) -> None:
    (tmp_path / "x.log").write_text("a log")
    with Captured(f"{tmp_path}/*.log") as lab:
        lab.capture(tmp_path / "artifacts")
    files = {path.name: path.read_text() for path in (tmp_path / "artifacts").iterdir()}
    assert files["a.txt"] == "seen\n"
    assert "not found" in files["b.txt"]
    assert [text for name, text in files.items() if name.endswith("x.log")] == ["a log"]
