"""Options, usage and exit statuses that all verbs share."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.cli.conftest import COMMAND, SmallAgent, Xenlb
from xenlb import __version__
from xenlb.cli.root import VERBS, move_global_options_first
from xenlb.control.protocol import NOT_PERMITTED, ControlError


def test_version_is_printed(xenlb: Xenlb) -> None:
    assert xenlb("--version").stdout == f"xenlb {__version__}\n"


def test_help_names_every_verb(xenlb: Xenlb) -> None:
    done = xenlb("--help")
    assert done.returncode == 0
    assert re.findall(r"^  (\w+) {2,}", done.stdout.partition("Commands:")[2], re.M) == list(VERBS)


def test_help_without_arguments_is_wrong_usage(xenlb: Xenlb) -> None:
    done = xenlb()
    assert done.returncode == 2
    assert "Commands:" in done.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(xenlb: Xenlb, verb: str) -> None:
    done = xenlb(verb, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: xenlb {verb}")
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["nonsense"], "there is no verb 'nonsense'", "xenlb --help"),
        (["undrian", "mail1"], "there is no verb 'undrian'; did you mean undrain?", "xenlb --help"),
        (["--nonsense"], "No such option", "xenlb --help"),
        (["status", "--nonsense"], "No such option", "xenlb status --help"),
        (["why"], "Missing argument 'GUEST'", "xenlb why --help"),
        (["drain", "mail1", "--timeout", "soon"], "'soon' is not a duration", "xenlb drain --help"),
        (["drain", "mail1", "--timeout", "3"], "'3' is not a duration", "xenlb drain --help"),
    ],
)
def test_wrong_usage_is_a_sentence_and_a_hint(
    xenlb: Xenlb, arguments: list[str], message: str, hint: str
) -> None:
    done = xenlb(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    sentence, second = done.stderr.splitlines()
    assert sentence.startswith("xenlb: ")
    assert message in sentence
    assert second == f"  see {hint}"


def test_help_is_not_cut_and_a_group_alone_prints_help(xenlb: Xenlb) -> None:
    out = xenlb("--help").stdout
    assert all(verb in out for verb in VERBS)
    assert "…" not in out
    assert "..." not in out.split("Commands:")[1]
    done = xenlb("guest")
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: xenlb guest")


def test_global_options_are_taken_behind_the_verb(
    xenlb: Xenlb, agent: SmallAgent, tmp_path: Path
) -> None:
    agent.answers["why"] = ControlError("no such guest")
    missing = str(tmp_path / "missing")
    for options in (["--socket", missing], [f"--socket={missing}"]):
        assert xenlb("why", "mail1", *options).returncode == 4
        assert f"there is no {missing}" in xenlb("why", *options, "mail1").stderr
    file = tmp_path / "other.yaml"
    file.write_text("services: {}")
    assert xenlb("check", "--config", str(file)).stdout.startswith(str(file))
    assert move_global_options_first(["x", "--", "--config", "y"]) == ["x", "--", "--config", "y"]


def test_an_error_is_json_with_the_option_json(xenlb: Xenlb, tmp_path: Path) -> None:
    done = xenlb("status", "--json")
    assert done.returncode == 4
    error = json.loads(done.stdout)["error"]
    assert error["status"] == 4
    assert error["message"].startswith("the agent cannot be reached")
    assert error["hint"] == "start it with: systemctl start xenlb"
    assert done.stderr.startswith("xenlb: the agent cannot be reached"), "also as a sentence"


@pytest.mark.parametrize(
    "verb",
    [
        ["status"],
        ["why", "x"],
        ["events"],
        ["drain", "x"],
        ["undrain", "x"],
        ["reload"],
        ["debug", "state"],
    ],
)
def test_without_an_agent_the_status_is_4(xenlb: Xenlb, verb: list[str], tmp_path: Path) -> None:
    done = xenlb(*verb)
    assert done.returncode == 4
    assert done.stdout == ""
    assert done.stderr == (
        f"xenlb: the agent cannot be reached: there is no {tmp_path}/control.sock\n"
        "  start it with: systemctl start xenlb\n"
    )


def test_a_refusal_of_the_agent_is_printed(xenlb: Xenlb, agent: SmallAgent) -> None:
    agent.answers["drain"] = ControlError(
        "only root may drain", hint="run it as root", status=NOT_PERMITTED
    )
    done = xenlb("drain", "mail1")
    assert done.returncode == 5
    assert done.stderr == "xenlb: only root may drain\n  run it as root\n"


def test_an_error_in_xenlb_is_a_sentence(xenlb: Xenlb, agent: SmallAgent) -> None:
    """Here a key is missing in the agent's answer."""
    agent.answers["status"] = {"version": "9"}
    done = xenlb("status")
    assert done.returncode == 1
    assert done.stderr.startswith("xenlb: an error in xenlb itself: KeyError: ")
    assert "Traceback" not in done.stderr
    assert "--verbose" in done.stderr
    assert "Traceback" in xenlb("--verbose", "status").stderr


def test_a_full_file_system_is_a_sentence_and_a_hint(tmp_path: Path) -> None:
    (tmp_path / "xenlb.yaml").write_text("services: {}")
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*COMMAND, "check", "--anywhere", str(tmp_path / "xenlb.yaml")],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    sentence, hint = done.stderr.splitlines()
    assert sentence == "xenlb: a file cannot be written: No space left on device"
    assert hint == "  df /run /var/lib shows which file system is full"


def test_a_closed_pipe_ends_the_command_quietly(agent: SmallAgent) -> None:
    agent.answers["status"] = {"x": "y" * 1_000_000}
    process = subprocess.Popen(
        [*COMMAND, "--socket", str(agent.socket), "status", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.read(1) == b"{"
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait(30) == 1


def test_debug_state_prints_the_answer_as_json(agent: SmallAgent, xenlb: Xenlb) -> None:
    agent.answers["debug-state"] = {"guests": [{"name": "wéb1"}]}
    done = xenlb("debug", "state")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == '{\n  "guests": [\n    {\n      "name": "wéb1"\n    }\n  ]\n}\n'
    assert agent.requests[0]["verb"] == "debug-state"
    agent.answers["debug-state"] = ControlError("only root may", status=NOT_PERMITTED)
    done = xenlb("debug", "state")
    assert (done.returncode, done.stdout, done.stderr) == (5, "", "xenlb: only root may\n")


def test_the_option_socket_wins_over_the_environment(agent: SmallAgent, xenlb: Xenlb) -> None:
    agent.answers["status"] = {"fine": True}
    done = xenlb("--socket", str(agent.socket), "status", "--json", XENLB_SOCKET="/nowhere")
    assert done.stdout == '{\n  "fine": true\n}\n'


@pytest.mark.parametrize("verb", ["status", "why", "events", "drain", "undrain", "reload"])
def test_a_request_to_the_agent_loads_no_heavy_module(verb: str, tmp_path: Path) -> None:
    """`xenlb status` has 150 ms in all, and these take most of it."""
    arguments = [] if verb in {"status", "events", "reload"} else ["mail1"]
    done = subprocess.run(
        [sys.executable, "-I", "-X", "importtime", "-m", "xenlb.cli", verb, *arguments],
        env={**os.environ, "LC_ALL": "C.UTF-8", "XENLB_SOCKET": str(tmp_path / "none")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 4
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "xenlb.control.client" in modules
    heavy = {"asyncio", "yaml", "libvirt", "pyroute2", "watchdog", "logging"}
    assert modules & heavy == set()
    rooms = {name.split(".")[1] for name in modules if name.startswith("xenlb.")}
    assert rooms == {"cli", "control"}


def test_completion_in_bash_offers_verbs_options_and_guests(
    agent: SmallAgent, tmp_path: Path
) -> None:
    """With the shipped file, and a command of that name in PATH."""
    agent.answers["status"] = {"services": [{"servers": [{"guest": "mail1"}, {"guest": None}]}]}
    command = tmp_path / "xenlb"
    command.write_text(f'#!/bin/sh\nexec {" ".join(COMMAND)} "$@"\n')
    command.chmod(0o755)
    shipped = Path(__file__).resolve().parents[3] / "etc" / "completion" / "xenlb.bash"

    def complete(*words: str) -> list[str]:
        script = f"""
            source {shipped}
            compopt() {{ :; }}  # only inside a real completion
            COMP_WORDS=({" ".join(repr(w) for w in words)}) COMP_CWORD={len(words) - 1}
            _xenlb xenlb
            printf '%s\\n' "${{COMPREPLY[@]}}"
        """
        done = subprocess.run(
            ["bash", "--norc", "-c", script],
            env={
                "PATH": f"{tmp_path}:/usr/bin:/bin",
                "LC_ALL": "C.UTF-8",
                "XENLB_SOCKET": str(agent.socket),
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout.split()

    assert complete("xenlb", "dr") == ["drain"]
    assert complete("xenlb", "status", "--w") == ["--watch"]
    assert complete("xenlb", "why", "m") == ["mail1"]
    assert complete("xenlb", "debug", "") == ["state"]
