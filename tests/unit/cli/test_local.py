"""The verbs that need no agent, `check`, `plan`, `apply` and `run`, and their log."""

import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Xenlb
from xenlb.cli.log_setup import JournalFormatter, to_journal

GOOD = """\
director: {interface: eth0, addresses: leave}
services:
  mail:
    address: 192.0.2.10
    ports: [25]
    check: none
    servers: [{host: 10.0.0.5}]
"""
BAD = GOOD.replace("ports: [25]", "ports: [70000]\n    wait: 3\n    scheduler: quickest")


def test_check_of_a_valid_file(xenlb: Xenlb, tmp_path: Path) -> None:
    file = tmp_path / "xenlb.yaml"
    file.write_text(GOOD)
    done = xenlb("check")
    assert (done.returncode, done.stdout) == (0, f"{file}: 1 service, no problem\n")
    assert json.loads(xenlb("check", "--json").stdout) == {
        "file": str(file),
        "problems": [],
        "warnings": [],
    }


def test_check_prints_every_problem_with_line_and_column(xenlb: Xenlb, tmp_path: Path) -> None:
    file = tmp_path / "other.yaml"
    file.write_text(BAD)
    done = xenlb("check", str(file))
    assert done.returncode == 1
    assert done.stderr == ""
    places = [line.split(": ")[0] for line in done.stdout.splitlines()]
    assert places == [f"{file}:5:13", f"{file}:6:5", f"{file}:7:16"]
    problems = json.loads(xenlb("check", "--json", str(file)).stdout)["problems"]
    assert [(p["line"], p["column"]) for p in problems] == [(5, 13), (6, 5), (7, 16)]
    assert all(problem["message"] for problem in problems)


@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user")
def test_missing_rights_end_with_status_5(tmp_path: Path) -> None:
    """As a user outside the group libvirt. `check` needs no socket."""
    file, socket_file = tmp_path / "xenlb.yaml", tmp_path / "control.sock"
    file.write_text(GOOD)
    file.chmod(0o644)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(socket_file))
    socket_file.chmod(0o600)
    for folder in (tmp_path, *tmp_path.parents):
        if folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    as_nobody = (
        "import os, sys; os.setgroups([]); os.setgid(65534); os.setuid(65534);"
        f" sys.path.insert(0, {os.getcwd()!r});"
        " from xenlb.cli.root import run; sys.exit(run(sys.argv[1:]))"
    )

    def run(*words: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-c", as_nobody, "--config", file, "--socket", socket_file, *words],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    status, output = run("status")
    assert (status, "a member of the group libvirt" in output) == (5, True), output
    assert run("check")[0] == 0
    listening.close()


def test_check_compares_the_file_with_this_host(xenlb: Xenlb, tmp_path: Path) -> None:
    file = tmp_path / "xenlb.yaml"
    file.write_text(GOOD.replace("eth0, addresses: leave", "no-such-0"))
    done = xenlb("check")
    assert done.returncode == 1
    assert done.stdout.startswith(
        f"{file}:1:23: director.interface: this host has no interface no-such-0 ("
    )
    done = xenlb("check", "--anywhere")
    assert (done.returncode, done.stdout) == (0, f"{file}: 1 service, no problem\n")


def test_check_refuses_a_pipe(xenlb: Xenlb, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    done = xenlb("check", str(tmp_path / "pipe"))
    assert done.returncode == 1
    assert "is not a regular file" in done.stdout


def test_check_warns_of_likely_mistakes(xenlb: Xenlb, tmp_path: Path) -> None:
    file = tmp_path / "xenlb.yaml"
    plain = (
        "director: {addresses: leave}\nservices:\n  mail:\n    {address: 192.0.2.10, ports: [25], "
    )
    cases = {
        "servers: []}": "has no server",
        "forwarding: gatewaying, servers: [{host: 10.0.0.5}]}": "lacks the service address",
        "scheduler: dh, servers: [{host: 10.0.0.5}]}": "dh refuses the clients of a server",
        "servers: [{guest: 'web*'}, {guest: web1, weight: 9}]}": "has precedence: weight 9",
    }
    for text, message in cases.items():
        file.write_text(plain + text)
        done = xenlb("check")
        assert done.returncode == 0
        warning, closing = done.stdout.splitlines()
        assert warning.startswith(f"warning: {file}:3:3: services.mail: ")
        assert message in warning
        assert closing == f"{file}: 1 service, no problem"
        (problem,) = json.loads(xenlb("check", "--json").stdout)["warnings"]
        assert (problem["line"], problem["path"]) == (3, "services.mail")


@pytest.mark.parametrize("verb", ["plan", "apply", "run"])
def test_other_verbs_refuse_an_invalid_configuration(
    xenlb: Xenlb, tmp_path: Path, verb: str
) -> None:
    file = tmp_path / "xenlb.yaml"
    file.write_text(BAD)
    done = xenlb(verb)
    assert (done.returncode, done.stdout) == (3, "")
    lines = done.stderr.splitlines()
    places = [f"{file}:5:13", f"{file}:6:5", f"{file}:7:16"]
    assert [line.split(": ")[0] for line in lines[:3]] == places
    assert lines[3] == "xenlb: the configuration has 3 problems"


@pytest.mark.parametrize(("verb", "status"), [("check", 1), ("plan", 3)])
def test_a_missing_configuration_is_a_problem(
    xenlb: Xenlb, tmp_path: Path, verb: str, status: int
) -> None:
    done = xenlb(verb)
    assert done.returncode == status
    output = done.stdout + done.stderr
    assert f"{tmp_path}/xenlb.yaml:1:1: there is no such file" in output
    assert "Traceback" not in output


def test_plan_without_ipvs_is_a_sentence_and_a_hint(xenlb: Xenlb, tmp_path: Path) -> None:
    """The kernel has no IPVS, or the test is not root. `apply` could change a real table."""
    (tmp_path / "xenlb.yaml").write_text(GOOD)
    done = xenlb("plan")
    if done.stdout:
        pytest.skip("this kernel has IPVS; the labs show the rest")
    assert done.returncode in {1, 5}
    sentence, hint = done.stderr.splitlines()
    assert sentence.startswith("xenlb: ")
    assert "IPVS" in sentence
    assert hint.startswith("  ")


def record(level: int, text: str) -> logging.LogRecord:
    return logging.LogRecord("xenlb.agent.loop", level, "", 0, text, None, None)


def test_journal_lines_carry_their_priority() -> None:
    form = JournalFormatter("%(message)s").format
    assert form(record(logging.INFO, "mail1: weight 2")) == "<6>mail1: weight 2"
    assert form(record(logging.DEBUG, "x")) == "<7>x"
    assert form(record(logging.WARNING, "one\ntwo")) == "<4>one\n<4>two"
    assert form(record(logging.ERROR, "")) == "<3>"


def test_the_journal_is_recognized_by_its_stream(tmp_path: Path) -> None:
    one, other = socket.socketpair()
    with one, other, other.makefile("w") as stream:
        status = os.fstat(stream.fileno())
        assert to_journal(stream, {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})
        assert not to_journal(stream, {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino + 1}"})
        assert not to_journal(stream, {})


@pytest.mark.parametrize("verbose", [0, 1, 2])
def test_errors_of_watchdog_are_logged_with_verbose_twice_only(verbose: int) -> None:
    program = (
        "import logging; from watchdog.observers import inotify;"
        " from xenlb.cli import log_setup as logs;"
        f" logs.set_up(verbose={verbose});"
        " logging.getLogger(inotify.__name__).error('queue_events() called');"
        " logging.getLogger('xenlb.config.watcher').warning('watching by looking')"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "watching by looking" in done.stderr
    assert ("queue_events() called" in done.stderr) == (verbose > 1)
