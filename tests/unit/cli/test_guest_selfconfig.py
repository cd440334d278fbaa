"""`xenlb guest plan|apply|verify|remove` for a guest that configures itself.

xenstored is a fake, and so is the guest behind it.
"""

import asyncio
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fakes.xenstored import FakeXenstored
from tests.unit.cli import answers
from tests.unit.cli.conftest import SmallAgent
from xenlb.cli import log_setup
from xenlb.cli.root import run
from xenlb.guestside import self_config
from xenlb.guestside.provision import NO_SETTINGS
from xenlb.hypervisor.xenstore.guest_settings import settings_serial

UUID = "3a0f4a8e-5f05-4c8e-9df8-3dd9d9a3d0f1"
CONFIG = """\
libvirt: {uris: ["xen:///system"]}
director: {addresses: leave}
services:
  mail:
    address: 192.0.2.10
    ports: [25]
    forwarding: gatewaying
    guest-side: {delivery: xenstore}
    servers: [{guest: "mail*"}]
"""
MAIL2 = "/local/domain/4"
SETTINGS = f"{MAIL2}/vm-data/xenlb"
REPORT = f"{MAIL2}/data/xenlb-guest"
NOTHING = "xenlb 1\nhold tell=xenstore\nhold timeout=3600\nhold until=established\n"
# A host of libvirt's test driver, with a guest that is off (runstate 5).
OFF = f"""\
<node>
  <domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>
    <name>mail2</name>
    <uuid>{UUID}</uuid>
    <memory>1024</memory>
    <os><type>hvm</type></os>
    <test:runstate>5</test:runstate>
  </domain>
</node>
"""
VERBS = ("plan", "apply", "verify", "remove")


@dataclass(frozen=True, slots=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


class Dom0(FakeXenstored):
    """`answer` returns the guest's report on settings with a serial; None for no report."""

    answer: Callable[[str], str | None] = staticmethod(lambda number: f"{number} ok")

    def write(self, path: str, value: str) -> None:
        super().write(path, value)
        if path == f"{SETTINGS}/serial" and value:
            self.report(self.answer(value))

    def report(self, text: str | None) -> None:
        if text is not None:
            super().write(REPORT, text)

    @property
    def text(self) -> str:
        count = int(self.values.get(f"{SETTINGS}/parts", "0"))
        return "".join(self.values[f"{SETTINGS}/{n}"] for n in range(count))

    def set_settings(self, text: str) -> None:
        self.values |= {
            f"{SETTINGS}/0": text,
            f"{SETTINGS}/parts": "1",
            f"{SETTINGS}/serial": settings_serial(text),
        }


@pytest.fixture
def dom0(agent: SmallAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dom0]:
    (tmp_path / "xenlb.yaml").write_text(CONFIG)
    agent.answers["why"] = answers.why()
    daemon = Dom0(str(tmp_path / "xenstored"))
    daemon.create(4, UUID)
    started, loop, stop = threading.Event(), asyncio.new_event_loop(), asyncio.Event()

    async def serve() -> None:
        async with daemon:
            started.set()
            await stop.wait()

    def work() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=work)
    thread.start()
    assert started.wait(10)
    yield daemon
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)


@pytest.fixture
def guest(
    tmp_path: Path,
    dom0: Dom0,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Runs `xenlb guest …` in this process: a start costs half a second."""
    monkeypatch.setenv("XENLB_SOCKET", str(tmp_path / "control.sock"))
    monkeypatch.setenv("XENLB_CONFIG", str(tmp_path / "xenlb.yaml"))
    monkeypatch.setenv("XENLB_KEY", str(tmp_path / "key"))
    monkeypatch.setenv("XENSTORED_PATH", dom0.path)
    monkeypatch.setattr(self_config, "ANSWER", 0.1)  # seconds, for a guest without a report
    monkeypatch.setattr(log_setup, "set_up", lambda **_: None)  # the tests set up logging

    def call(*arguments: str) -> Done:
        try:
            status = run(["guest", *arguments])
        except SystemExit as ended:
            status = int(ended.code or 0)
        out, err = capsys.readouterr()
        return Done(status, out, err)

    return call


def test_plan_apply_and_verify(guest: Run, dom0: Dom0) -> None:
    planned = guest("plan", "mail2")
    assert (planned.returncode, planned.stderr) == (1, "")
    lines = planned.stdout.splitlines()
    assert lines[:2] == [f"--- {SETTINGS}", f"+++ {SETTINGS}"]
    assert "+address 192.0.2.10 lo" in lines
    assert "+hold watch=192.0.2.10 25" in lines
    assert lines[-1] == "xenstore has no settings for it (xenlb guest apply corrects it)"
    assert dom0.text == "", "a plan changes nothing"

    applied = guest("apply", "mail2")
    assert (applied.returncode, applied.stderr) == (0, "")
    success = "mail2 has all that it needs, by its own report\n"
    assert applied.stdout == f"write {SETTINGS}\n{success}"
    written = [line[1:] for line in lines if line[0] == "+" and line[1] != "+"]
    assert dom0.text.splitlines() == written

    for verb, out in (("plan", ""), ("verify", success), ("apply", success)):
        done = guest(verb, "mail2")
        assert (done.returncode, done.stdout, done.stderr) == (0, out, ""), verb


def test_remove_leaves_the_settings_of_the_image(guest: Run, dom0: Dom0) -> None:
    guest("apply", "mail2")
    for writes in (f"write {SETTINGS}\n", ""):
        removed = guest("remove", "mail2")
        assert (removed.returncode, removed.stderr) == (0, "")
        assert removed.stdout == (
            f"{writes}mail2 has nothing of xenlb but the programs of its image, by its own report\n"
        )
        assert dom0.text == NOTHING
    verified = guest("verify", "mail2")
    assert verified.returncode == 1
    assert (
        "its settings in xenstore differ from what it needs now (xenlb guest apply"
        in verified.stderr
    )
    assert "-hold timeout=3600" in guest("plan", "mail2").stdout.splitlines()


REPORTS: dict[str, tuple[Callable[[str], str | None], str]] = {
    "failed": (lambda number: f"{number} failed", "it could not apply all of its settings"),
    "missing": (lambda _: None, "it has not reported on its settings"),
    "old": (lambda _: "0123456789abcdef ok", "its report is about earlier settings"),
    "broken": (lambda n: f"{n} ok\n\x1b[2J" * 99, "its report has an unknown form: '"),
}


@pytest.mark.parametrize("state", REPORTS)
def test_a_report_of_a_problem_is_printed(guest: Run, dom0: Dom0, state: str) -> None:
    dom0.answer, sentence = REPORTS[state]
    applied = guest("apply", "mail2")
    assert (applied.returncode, applied.stdout) == (1, f"write {SETTINGS}\n")
    verified = guest("verify", "mail2")
    assert (verified.returncode, verified.stdout) == (1, "")
    assert applied.stderr == verified.stderr
    details, *last = verified.stderr.splitlines()
    assert details.startswith(sentence)
    assert last == ["xenlb: mail2: 1 difference found"]
    assert len(details) < 300
    assert details.isprintable(), "no control characters of a guest"
    planned = guest("plan", "mail2")
    assert (planned.returncode, planned.stdout) == (1, details + "\n")
    answer = json.loads(guest("verify", "mail2", "--json").stdout)
    assert answer["report"]["state"] == state
    assert [f"{d['message']} ({d['hint']})" for d in answer["differences"]] == [details]

    removed = guest("remove", "mail2")
    assert (removed.returncode, removed.stdout) == (1, f"write {SETTINGS}\n")
    assert removed.stderr.startswith(sentence)
    assert "mail2 has not confirmed that it has undone what it made\n" in removed.stderr
    assert dom0.text == NOTHING, "the settings are removed all the same"


def test_the_output_as_json(guest: Run, dom0: Dom0) -> None:
    planned = guest("plan", "mail2", "--json")
    assert (planned.returncode, planned.stderr) == (1, "")
    before = json.loads(planned.stdout)
    wanted = before["settings"]["wanted"]
    assert before["settings"]["given"] is None
    assert "+address 192.0.2.10 lo" in before["settings"]["changes"]
    assert [d["message"] for d in before["differences"]] == ["xenstore has no settings for it"]
    guest("apply", "mail2")
    for verb in ("plan", "verify"):
        done = guest(verb, "mail2", "--json")
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout) == {
            "guest": "mail2",
            "uuid": UUID,
            "uri": "xen:///system",
            "delivery": "xenstore",
            "differences": [],
            "system": None,
            "init": None,
            "files": [],
            "settings": {"path": SETTINGS, "given": wanted, "wanted": wanted, "changes": []},
            "report": {"state": "ok", "settings": wanted},
        }
    # The guest was given other settings, and has applied them.
    dom0.set_settings(NO_SETTINGS)
    dom0.report(f"{settings_serial(NO_SETTINGS)} ok")
    done = guest("verify", "mail2", "--json")
    answer = json.loads(done.stdout)
    assert done.returncode == 1
    assert answer["report"] == {"state": "ok", "settings": answer["settings"]["given"]}
    assert [d["message"] for d in answer["differences"]] == [
        "its settings in xenstore differ from what it needs now"
    ]


@pytest.mark.parametrize("damage", ["serial", "0", "parts"])
def test_damaged_settings_are_written_again(guest: Run, dom0: Dom0, damage: str) -> None:
    guest("apply", "mail2")
    whole = dom0.text
    # As an apply leaves them that was killed, or another program.
    dom0.values[f"{SETTINGS}/{damage}"] = {"serial": "", "0": "é\x1b[2J", "parts": "x"}[damage]
    verified = guest("verify", "mail2")
    assert verified.returncode == 1
    assert "its settings in xenstore are incomplete, so it applies none of them" in verified.stderr
    planned = guest("plan", "mail2", "--json")
    assert json.loads(planned.stdout)["settings"]["given"] is None
    if damage == "0":
        assert "\\x1b[2J" in guest("plan", "mail2").stdout, "made visible"
    assert guest("apply", "mail2").returncode == 0
    assert dom0.text == whole


@pytest.mark.parametrize("verb", VERBS)
def test_a_domain_that_is_another_guest_is_refused(
    guest: Run, agent: SmallAgent, dom0: Dom0, verb: str
) -> None:
    """A domain id is valid for one host, one hypervisor and one boot. Nothing is written."""
    before = dict(dom0.values)
    for uri in ("xen+ssh://dom0b/system", "qemu:///system"):
        agent.answers["why"] = {**answers.why(), "uri": uri}
        done = guest(verb, "mail2")
        assert (done.returncode, done.stdout) == (1, "")
        assert f"mail2 is not a guest of this host's Xen ({uri})" in done.stderr
    agent.answers["why"] = {**answers.why(), "uuid": UUID.replace("3", "4")}
    done = guest(verb, "mail2")
    assert (done.returncode, done.stdout) == (1, "")
    assert "mail2 is not domain 4 of this host any more" in done.stderr
    assert dom0.values == before


@pytest.mark.parametrize("verb", VERBS)
def test_a_guest_that_is_off(guest: Run, agent: SmallAgent, verb: str) -> None:
    agent.answers["why"] = {**answers.why(), "phase": "absent"}
    done = guest(verb, "mail2")
    if verb == "remove":
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == (
            "mail2 is not running, so it has nothing of xenlb but the programs of its image\n"
        )
    else:
        assert (done.returncode, done.stdout) == (1, "")
        assert "mail2 is not running; it configures itself at boot\n" in done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_without_a_xenstore(guest: Run, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XENSTORED_PATH", "/nowhere")
    done = guest(verb, "mail2")
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr
        == "xenlb: xenstore: there is no xenstored\n  does xenstored run in this Dom0?\n"
    )


@pytest.mark.parametrize("verb", VERBS)
def test_missing_rights_end_with_status_5(guest: Run, dom0: Dom0, verb: str) -> None:
    dom0.refusing = "EACCES"
    done = guest(verb, "mail2")
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.startswith("xenlb: xenstore reports EACCES\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="chroot(2) takes root")
@pytest.mark.parametrize("verb", ["plan", "verify"])
def test_the_keys_of_the_json_are_those_of_other_deliveries(
    guest: Run, agent: SmallAgent, tmp_path: Path, verb: str
) -> None:
    own = json.loads(guest(verb, "mail2", "--json").stdout)
    (tmp_path / "host.xml").write_text(OFF)
    agent.answers["why"] = {**answers.why(), "uri": f"test://{tmp_path}/host.xml"}
    for folder in ("etc/network", "etc/systemd/system", "usr/lib/systemd", "var/lib"):
        (tmp_path / "root" / folder).mkdir(parents=True)
    (tmp_path / "root/usr/lib/systemd/systemd").write_text("")
    (tmp_path / "root/etc/network/interfaces").write_text("auto lo\niface lo inet loopback\n")
    done = guest(verb, "mail2", "--root", str(tmp_path / "root"), "--json")
    assert (done.returncode, done.stderr) == (1, "")
    other = json.loads(done.stdout)
    assert (other["delivery"], other["init"]) == ("rootfs", "systemd")
    assert list(other) == [key for key in own if key not in {"settings", "report"}]
    assert [set(d) for d in other["differences"]] == [{"message", "hint"}]
    assert [set(d) for d in own["differences"]] == [{"message", "hint"}]
