"""Output of `status`, `why` and `events`: to a pipe, as JSON, on a terminal."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from typing import Any

import pytest

from tests.unit.cli import answers
from tests.unit.cli.conftest import COMMAND, SmallAgent, Xenlb
from xenlb.cli import format

TABLE = """\
xenlb 0.1.0, pid 812, up 3h: in step, 1 foreign server
libvirt xen:///system connected for 3h
libvirt xen+ssh://dom0b/system NOT CONNECTED for 40s: connection refused
/etc/xenlb/xenlb.yaml HAS PROBLEMS, the last good one is in use:
  /etc/xenlb/xenlb.yaml:3:5: services.mail.weight: is too much
2 services, 4 servers: 2 serving, 1 draining, 1 absent; 48 active connections

mail  192.0.2.10:25/tcp  lblc  gatewaying  1 foreign server
  guest                            address             phase     weight  act  inact  health   since
  mail1                            10.0.0.11           serving        2   12      3  up       3m
  mail2                            10.0.0.12           draining     0/2   12      3  up       3m
    asked for poweroff; back in service, unless it goes, in 61s
  a-guest-with-a-rather-long-name  -                   absent         -    -      -  unknown  -

web  fwmark 7 inet6  wlc  masquerade
  guest                            address             phase     weight  act  inact  health   since
  (host)                           [2001:db8::5]:8080  serving      1/2   12      3  up       3m
    check passed
"""


def test_table_in_a_pipe(xenlb: Xenlb, agent: SmallAgent) -> None:
    agent.answers["status"] = lambda _: answers.status()
    done = xenlb("status")
    assert done.returncode == 0, done.stderr
    assert re.sub(r"in 6[01]s", "in 61s", done.stdout) == TABLE
    assert agent.requests[0]["service"] is None


def test_an_alarm_is_shown_above_the_servers(xenlb: Xenlb, agent: SmallAgent) -> None:
    answer = answers.status()
    answer["services"][0] |= {"alarm": "2 of 3 servers fail", "alarm_since": answers.ago(minutes=5)}
    agent.answers["status"] = answer
    lines = xenlb("status").stdout.splitlines()
    (title,) = [n for n, line in enumerate(lines) if line.startswith("mail  192.0.2.10:25")]
    assert lines[title + 1] == "  ALARM for 5m: 2 of 3 servers fail"


def test_the_name_of_a_service_goes_to_the_agent(xenlb: Xenlb, agent: SmallAgent) -> None:
    agent.answers["status"] = lambda _: answers.status()
    xenlb("status", "mail")
    assert agent.requests[0]["service"] == "mail"


def test_json_is_the_answer_of_the_agent(xenlb: Xenlb, agent: SmallAgent) -> None:
    answer = answers.status()
    agent.answers["status"] = answer
    assert json.loads(xenlb("status", "--json").stdout) == answer


def test_the_header_names_what_is_wrong(xenlb: Xenlb, agent: SmallAgent) -> None:
    agent.answers["status"] = {
        **answers.status(),
        "synced": False,
        "kernel": "the kernel has no IPVS",
        "services": [],
        "director": {"problems": ["eth0 is gone"]},
    }
    out = xenlb("status").stdout
    assert "up 3h: the table cannot be read" in out
    assert "KERNEL TABLE UNREADABLE: the kernel has no IPVS" in out
    assert "DIRECTOR: eth0 is gone" in out
    agent.answers["status"] = {**answers.status(), "synced": False}
    assert "up 3h: starting: waiting for the first list of guests; until then" in (
        xenlb("status").stdout
    )


def test_why_explains_servers_checks_and_events(xenlb: Xenlb, agent: SmallAgent) -> None:
    agent.answers["why"] = lambda _: answers.why()
    done = xenlb("why", "mail2")
    assert agent.requests[0]["guest"] == "mail2"
    assert re.sub(r"\b(49|50)s\b", "50s", done.stdout) == (
        "mail2  3a0f4a8e-5f05-4c8e-9df8-3dd9d9a3d0f1  xen:///system\n"
        "  up for 3h, domain id 4\n"
        "  out of service for 10s: drained by alice (sudo), 50s left\n"
        "  address 10.0.0.12: interface xml\n"
        "  address 192.0.2.10 refused: a service address (reported by the guest)\n"
        "  inside, for service mail: 192.0.2.10 is missing, wanted on lo\n"
        "\n"
        "servers\n"
        "  mail  10.0.0.12:25  draining  weight 0 of 2: drained by alice (sudo)\n"
        "    check http 10.0.0.12:80  up for 3m: status 200; 50% of the weight\n"
        "      01-02 03:04:05.678 up: status 200\n"
        "    check smtp 10.0.0.12:25  down for 3m: expected 220, got 554; failed 3 times in a row,"
        " damped for 50s\n"
        "      01-02 03:04:05.678 up: status 200\n"
        "    check dns 10.0.0.12:53  unknown: no result yet\n"
        "\n"
        "events\n"
        "  01-02 03:04:05.678 mail2: drained by alice (sudo)\n"
    )
    timed_out = {"over": answers.ago(seconds=48), "outcome": "deadline", "connections_left": 1}
    reboot = {"reason": "asked for reboot", "by": "", "deadline": None, "end": "guest gone"}
    past = answers.drain(since=answers.ago(seconds=60), **timed_out, **reboot)
    agent.answers["why"] = {**answers.why(), "drain": None, "last_drain": past}
    shown = xenlb("why", "mail2").stdout
    assert "  last out of service 6" in shown
    assert "asked for reboot, timed out after 12s, 1 connection left, then guest gone\n" in shown
    request = {"asked_for": "reboot", "at": answers.ago(seconds=50), "until": answers.ago(hours=-3)}
    answer = {**answers.why(), "request": request}
    agent.answers["why"] = answer
    shown = xenlb("why", "mail2").stdout
    assert re.search(r"\n  reboot requested 5.s ago; back in service in .* unless it goes\n", shown)
    assert json.loads(xenlb("why", "mail2", "--json").stdout) == answer


def test_events_are_printed_with_local_times(xenlb: Xenlb, agent: SmallAgent) -> None:
    agent.answers["events"] = [answers.event("one"), answers.event("two")]
    assert xenlb("events").stdout == (
        "01-02 03:04:05.678 mail2: one\n01-02 03:04:05.678 mail2: two\n"
    )
    lines = xenlb("events", "--json").stdout.splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["one", "two"]


def test_events_follow_ends_with_ctrl_c(agent: SmallAgent) -> None:
    agent.answers["events"] = [answers.event("one")]
    process = subprocess.Popen(
        [*COMMAND, "--socket", str(agent.socket), "events", "--follow"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TZ": "UTC"},
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "01-02 03:04:05.678 mail2: one\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "\n")


class Terminal:
    """A process on its own pseudo-terminal."""

    def __init__(self, *arguments: str, columns: int = 80) -> None:
        self._fd, terminal = pty.openpty()
        self._process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
            env={
                "PATH": "/usr/bin:/bin",
                "LC_ALL": "C.UTF-8",
                "TERM": "xterm-256color",
                "COLUMNS": str(columns),
                "LINES": "40",
            },
        )
        os.close(terminal)
        self.shown = ""

    def read_until(self, text: str | None, seconds: float = 30) -> None:
        """Read until `text` was shown; with None to the end."""
        deadline = time.monotonic() + seconds
        while text is None or text not in self.shown:
            ready, _, _ = select.select([self._fd], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{text!r} was not shown, but: {self.shown}"
            try:
                data = os.read(self._fd, 65536)
            except OSError:  # EIO: the process has closed its side
                data = b""
            if not data:
                assert text is None, f"{text!r} was not shown, but: {self.shown}"
                return
            self.shown += data.decode()

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def end(self) -> int:
        self.read_until(None)
        os.close(self._fd)
        return self._process.wait(30)


def plain(shown: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)


def in_trouble() -> dict[str, Any]:
    """A status with an outage, and a reason that is longer than a line."""
    answer = answers.status()
    outage = {"text": "no server serves: 2 failed, 1 absent", "since": answers.ago(seconds=250)}
    answer["alarms"] = [{"service": "mail", "address": "192.0.2.10:25/tcp", **outage}]
    answer["services"][0] |= {"alarm": outage["text"], "alarm_since": outage["since"]}
    answer["services"][0]["servers"][0] |= {
        "phase": "failed",
        "reason": "check https 10.0.0.11:443 fails: expected status 200-399, got 503 from a server"
        " that explains at length what its trouble is",
    }
    return answer


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("options", [(), ("--watch",)])
def test_a_terminal_shows_what_a_pipe_shows(
    agent: SmallAgent, xenlb: Xenlb, columns: int, options: tuple[str, ...]
) -> None:
    """Alarm, addresses and all words of a reason are shown in each width; no line is longer."""
    agent.answers["status"] = in_trouble()
    terminal = Terminal("--socket", str(agent.socket), "status", *options, columns=columns)
    if options:
        terminal.read_until("[2001:db8::5]:8080")
        terminal.interrupt()
    assert terminal.end() == (130 if options else 0)
    shown = plain(terminal.shown).splitlines()
    assert max(map(len, shown)) <= columns
    words = " ".join(" ".join(shown).split())
    assert "ALARM mail 192.0.2.10:25/tcp for 4m: no server serves: 2 failed, 1 absent" in words
    assert "ALARM for 4m: no server serves" in words
    for server in ("10.0.0.11", "10.0.0.12", "[2001:db8::5]:8080"):
        assert server in words
    assert in_trouble()["services"][0]["servers"][0]["reason"] in words
    assert [text for text in shown if text.startswith("    check https")], "a line of its own"
    piped = " ".join(xenlb("status").stdout.split())
    if columns == 120 and not options:
        assert re.sub(r"\d+[sm]\b", "", words).replace("…", "") == re.sub(r"\d+[sm]\b", "", piped)


def test_a_terminal_gets_colours(agent: SmallAgent) -> None:
    agent.answers["status"] = in_trouble()
    terminal = Terminal("--socket", str(agent.socket), "status", columns=100)
    assert terminal.end() == 0
    assert "\x1b[32mserving" in terminal.shown, "green"
    assert "\x1b[31m\x1b[1mALARM" in terminal.shown, "red and bold"


def test_a_screen_that_is_too_small_shows_what_needs_attention(agent: SmallAgent) -> None:
    answer = in_trouble()
    answer["services"][1]["servers"] = [
        answers.server(f"web{number}", weight=2) for number in range(60)
    ]
    agent.answers["status"] = answer
    terminal = Terminal("--socket", str(agent.socket), "status", "--watch", columns=100)
    terminal.read_until("the rest does not fit")
    terminal.interrupt()
    terminal.end()
    shown = plain(terminal.shown)
    assert "62 serving" not in shown
    assert "60 serving, 1 draining, 1 failed, 1 absent" in shown
    assert "web59" not in shown
    assert "mail1" in shown


def test_failed_shows_what_needs_attention_only(xenlb: Xenlb, agent: SmallAgent) -> None:
    answer = answers.status()
    answer["services"][1]["servers"][0]["weight"] = 2
    agent.answers["status"] = answer
    out = xenlb("status", "--failed").stdout
    assert "mail2" in out
    assert "mail1" not in out
    assert "\nweb " not in out
    assert "2 services, 4 servers: 2 serving, 1 draining, 1 absent" in out


def test_watch_in_a_pipe_prints_the_status_again(agent: SmallAgent) -> None:
    agent.answers["status"] = lambda _: answers.status()
    process = subprocess.Popen(
        [*COMMAND, "--socket", str(agent.socket), "status", "--watch"],
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        heads = 0
        while heads < 2:
            heads += process.stdout.readline().startswith("xenlb 0.1.0")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130


def test_watch_shows_changes_and_restores_the_screen(agent: SmallAgent) -> None:
    """The screen follows the answers, also after the agent was away."""
    answer = answers.status()
    agent.answers["status"] = lambda _: answer
    terminal = Terminal("--socket", str(agent.socket), "status", "--watch", columns=100)
    terminal.read_until("mail1")
    answer["services"][0]["name"] = "post"
    terminal.read_until("post")
    agent.socket.rename(agent.socket.with_name("away"))
    terminal.read_until("cannot be reached")
    agent.socket.with_name("away").rename(agent.socket)
    answer["services"][0]["name"] = "letters"
    terminal.read_until("letters")
    terminal.interrupt()
    assert terminal.end() == 130
    assert "Traceback" not in terminal.shown
    assert terminal.shown.rstrip().endswith(("\x1b[?1049l", "\x1b[?25h", "\x1b[?1049l\x1b[?25h"))


def test_watch_as_json_prints_a_line_each_second(agent: SmallAgent) -> None:
    agent.answers["status"] = {"n": 1}
    process = subprocess.Popen(
        [*COMMAND, "--socket", str(agent.socket), "status", "--watch", "--json"],
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ['{"n": 1}\n'] * 2
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0s"), (119, "119s"), (120, "2m"), (7199, "119m"), (172800, "2d")]
)
def test_age_is_rounded(seconds: float, shown: str) -> None:
    assert format.age("2026-01-01T00:00:00Z", 1767225600 + seconds) == shown
