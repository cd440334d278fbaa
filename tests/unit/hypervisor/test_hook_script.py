"""The hook script itself, in each shell that may be /bin/sh, with the XML that libvirt sends.

hook-xml has what libvirt 9.0 wrote to hooks in the labs, less what stands in <devices> and <os>.
"""

import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import pytest

from xenlb.hypervisor.libvirt.hooks import HookCall, parse_line

SCRIPT = Path(__file__).resolve().parents[3] / "hooks" / "xenlb"
SAMPLES = sorted((Path(__file__).parent / "hook-xml").glob("*.xml"))
SHELLS = (["dash"], ["busybox", "sh"], ["bash", "--posix"], ["bash"])
DRIVERS = ("libxl", "qemu", "lxc")
NOBODY = 65533  # whoever is root here can be made this one
# Which domain's id libvirt tells in which call: the table of xenlb/hypervisor/libvirt/hooks.py.
WITH_ID = {
    *(f"{each}-{op}" for each in DRIVERS for op in ("started-begin", "reconnect-begin")),
    *("libxl-stopped-end", "lxc-stopped-end", "qemu-prepare-begin", "qemu-start-begin"),
}
IDENTITY = UUID("71d91c56-6195-5fe0-9bce-7f4cabe3c5ab")
XML = f"<domain type='xen' id='7'>\n  <name>one</name>\n  <uuid>{IDENTITY}</uuid>\n</domain>\n"


def no_forks() -> None:
    """Forbid new processes in the child; the kernel exempts root from the limit."""
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


class Hooks:
    """The folders of hooks below a readable folder, and the agent's file."""

    def __init__(self, folder: Path, shell: list[str]) -> None:
        self.folder = folder
        self.shell = shell
        self.file = folder / "hooks"
        text = SCRIPT.read_text()
        assert text.count("/run/xenlb/hooks\n") == 1
        for driver in (*DRIVERS, "network"):
            hook = folder / f"{driver}.d" / "xenlb"
            hook.parent.mkdir()
            hook.write_text(text.replace("/run/xenlb/hooks\n", f"{self.file}\n"))
            hook.chmod(0o755)
        self.agent()

    def agent(self) -> None:
        """Create the file, as a running agent does."""
        self.file.write_text("")
        self.file.chmod(0o666)

    def path(self, driver: str) -> Path:
        return self.folder / f"{driver}.d" / "xenlb"

    def command(self, *arguments: str | bytes, driver: str = "libxl") -> list[str | bytes | Path]:
        program = shutil.which(self.shell[0])
        assert program is not None
        return [program, *self.shell[1:], self.path(driver), *arguments]

    def call(
        self,
        *arguments: str | bytes,
        driver: str = "libxl",
        xml: str | bytes = XML,
        before: Callable[[], None] = no_forks,
        signals: bool = True,
        timeout: float = 30,
    ) -> list[HookCall]:
        """Call the script as libvirt does and return its lines. It must end with 0, and in time,
        and print nothing; it cannot start a process, nor find a command."""
        if self.file.is_file():
            self.file.write_text("")
        done = subprocess.run(
            self.command(*arguments, driver=driver),
            input=xml.encode() if isinstance(xml, str) else xml,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"PATH": "", "LANG": "C.UTF-8"},
            user=NOBODY if os.geteuid() == 0 else None,
            preexec_fn=before,
            restore_signals=signals,
            timeout=timeout,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, b"")
        return self.lines()

    def lines(self) -> list[HookCall]:
        if not self.file.is_file():
            return []
        *lines, rest = self.file.read_bytes().split(b"\n")
        assert rest == b""
        calls = [parse_line(line) for line in lines]
        assert None not in calls, lines
        return [call for call in calls if call is not None]


@pytest.fixture(params=SHELLS, ids=" ".join)
def hooks(request: pytest.FixtureRequest) -> Iterator[Hooks]:
    if shutil.which(request.param[0]) is None:
        pytest.skip(f"there is no {request.param[0]}")
    # Not tmp_path: nobody else may look into that.
    with tempfile.TemporaryDirectory(prefix="xenlb-hooks-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield Hooks(folder, request.param)


def test_whoever_starts_a_process_fails_here(hooks: Hooks) -> None:
    """Shows that the limit works. bash retries for 15 s before it gives up."""
    hooks.path("libxl").write_text("#!/bin/sh\n( : ) || exit 9\necho forked\n")
    with pytest.raises((AssertionError, subprocess.TimeoutExpired)) as failed:
        hooks.call("one", "start", "begin", "-", timeout=0.5)
    assert "forked" not in str(failed.value)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_what_libvirt_sends(hooks: Hooks, sample: Path) -> None:
    driver, operation, suboperation = sample.stem.split("-")
    xml = sample.read_text()
    called = hooks.call("one", operation, suboperation, "-", driver=driver, xml=xml)
    if sample.stem == "libxl-migrate-begin":  # libvirt 9.0 sends nothing there
        assert (xml, called) == ("", [])
        return
    (call,) = called
    assert (call.driver, call.operation, call.suboperation) == (driver, operation, suboperation)
    assert f"<uuid>{call.uuid}</uuid>" in xml
    assert call.name == "one"
    if sample.stem in WITH_ID:
        assert f"id='{call.domid}'>" in xml.split("\n")[0]
    else:
        assert call.domid is None


def test_every_operation_of_every_driver_has_its_sample() -> None:
    life = ("prepare-begin", "start-begin", "started-begin", "stopped-end", "release-end")
    wanted = {f"{driver}-{op}" for driver in DRIVERS for op in (*life, "reconnect-begin")}
    others = {"libxl-migrate-begin", "qemu-migrate-begin", "qemu-restore-begin"}
    assert {path.stem for path in SAMPLES} == wanted | others
    assert wanted > WITH_ID


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "-n",
        "*",
        "$(reboot)",
        "`reboot`",
        "%s%n\\n\\0",
        "a'b\"c",
        "two words",
        "Gäste-日本",
        "../../etc/passwd",
        ";exit 1",
    ],
)
def test_names_are_passed_on_unchanged(hooks: Hooks, name: str) -> None:
    (call,) = hooks.call(name, "started", "begin", "-")
    assert call == HookCall(
        driver="libxl",
        operation="started",
        suboperation="begin",
        uuid=IDENTITY,
        domid=7,
        name=name,
    )


FORGED = f"x\nlibxl\tstopped\tend\t{IDENTITY}\t8\tvictim"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (FORGED, "?"),
        ("a\tb", "?"),
        ("a\rb\x1b[2J", "?"),
        ("n" * 100_000, "n" * 255),
        (b"\xff\xfe", "\ufffd\ufffd"),
        ("a\u2028b\u202e", "a\\u2028b\\u202e"),
    ],
    ids=["forged", "tab", "controls", "long", "no utf-8", "unprintable"],
)
def test_a_name_cannot_forge_a_line(hooks: Hooks, name: str | bytes, shown: str) -> None:
    (call,) = hooks.call(name, "started", "begin", "-")
    assert (call.operation, call.name, call.domid) == ("started", shown, 7)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("one",),
        ("one", "start"),
        ("one", "", "begin", "-"),
        ("one", "start", "", "-"),
        ("one", "start\nx", "begin", "-"),
        ("one", "start", "begin\t1", "-"),
        ("one", "START", "begin", "-"),
    ],
)
def test_unknown_operations_are_not_written(hooks: Hooks, arguments: tuple[str, ...]) -> None:
    assert hooks.call(*arguments) == []


def test_other_hooks_are_ignored(hooks: Hooks) -> None:
    assert hooks.call("default", "started", "begin", "-", driver="network") == []


@pytest.mark.parametrize(
    ("xml", "domid"),
    [
        (XML.replace("</uuid>", "</uuid>\n<title><uuid>x</uuid></title><domain id='9'>"), 7),
        (XML.replace("<name>one", "<name>&lt;uuid&gt;x&lt;/uuid&gt; id='9'"), 7),
        (XML.replace("'7'", "'7'  xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'"), 7),
        (XML.replace(" id='7'", ""), None),
        (XML.replace("'7'", "''"), None),
        (XML.replace("'7'", "'-1'"), None),
        (XML.replace("'7'", "'$(id)'"), None),
        (XML + "é" * 2_000_000, 7),
    ],
    ids=["title", "name", "namespace", "off", "empty", "negative", "odd", "huge"],
)
def test_xml_that_holds_more(hooks: Hooks, xml: str, domid: int | None) -> None:
    (call,) = hooks.call("one", "started", "begin", "-", xml=xml)
    assert (call.uuid, call.domid) == (IDENTITY, domid)


@pytest.mark.parametrize(
    "xml",
    [
        "",
        "\n" * 100,
        "x" * 1_000_000,
        b"\0\xff" * 1000,
        XML.replace(str(IDENTITY), "no"),
        XML.replace("71d9", "71D9"),
        XML.replace("71d9", "71\t9"),
        XML.replace("<uuid>", "<title>").replace("</uuid>", "</title>"),
        "<domain type='xen' id='7'>\n" + "<x/>\n" * 8 + f"<uuid>{IDENTITY}</uuid>\n",
        f"<domain type='xen' id='7'><uuid>{IDENTITY}</uuid>\n",
    ],
)
def test_xml_that_libvirt_would_not_write(hooks: Hooks, xml: str | bytes) -> None:
    assert hooks.call("one", "started", "begin", "-", xml=xml) == []


def test_it_reads_no_more_than_it_needs(hooks: Hooks) -> None:
    """libvirt may write the rest late: the script does not wait for it."""
    process = subprocess.Popen(hooks.command("one", "started", "begin"), stdin=subprocess.PIPE)
    assert process.stdin is not None
    with process.stdin as pipe:
        pipe.write("".join(XML.splitlines(keepends=True)[:3]).encode())
        pipe.flush()
        assert process.wait(timeout=30) == 0
    assert len(hooks.lines()) == 1


def test_closed_standard_input(hooks: Hooks) -> None:
    command = ["sh", "-c", '"$@" <&- 2>&1', "sh", *hooks.command("one", "started", "begin")]
    done = subprocess.run(command, capture_output=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (0, b"")
    assert hooks.lines() == []


def test_closed_standard_output(hooks: Hooks) -> None:
    command = ["sh", "-c", '"$@" >&- 2>&-', "sh", *hooks.command("one", "started", "begin")]
    done = subprocess.run(command, input=XML.encode(), timeout=30, check=False)
    assert done.returncode == 0
    assert len(hooks.lines()) == 1


def test_without_an_agent_no_file_is_created(hooks: Hooks) -> None:
    hooks.file.unlink()
    before = sorted(hooks.folder.iterdir())
    assert hooks.call("one", "started", "begin", "-") == []
    assert sorted(hooks.folder.iterdir()) == before
    hooks.file.symlink_to("nowhere")
    assert hooks.call("one", "started", "begin", "-") == []
    assert not (hooks.folder / "nowhere").exists()


@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_a_file_that_is_not_regular_is_not_written(hooks: Hooks, kind: str) -> None:
    """A fifo without a reader would block libvirt for good; /dev/full would fail."""
    hooks.file.unlink()
    match kind:
        case "fifo":
            os.mkfifo(hooks.file, 0o666)
        case "folder":
            hooks.file.mkdir()
        case _:
            hooks.file.symlink_to("/dev/full")
    assert hooks.call("one", "started", "begin", "-") == []


def test_read_only(hooks: Hooks) -> None:
    hooks.file.chmod(0o444)
    assert hooks.call("one", "started", "begin", "-") == []
    hooks.file.chmod(0)
    assert hooks.call("one", "started", "begin", "-") == []


def test_no_room(hooks: Hooks) -> None:
    """A write that fails, as on a full disk."""

    def full() -> None:
        no_forks()
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    # Python ignores SIGXFSZ, and so does the script then: its write gets an error.
    assert hooks.call("one", "started", "begin", "-", before=full, signals=False) == []


def test_many_at_once(hooks: Hooks) -> None:
    calls = [
        subprocess.Popen(hooks.command(f"guest{n}", "started", "begin"), stdin=subprocess.PIPE)
        for n in range(20)
    ]
    for process in calls:
        process.communicate(XML.encode(), timeout=30)
        assert process.returncode == 0
    assert {call.name for call in hooks.lines()} == {f"guest{n}" for n in range(20)}
    assert len(hooks.lines()) == 20


def test_it_runs_as_it_is_installed() -> None:
    """Run by its first line and mode, with the agent's own path, most likely without an agent."""
    assert os.access(SCRIPT, os.X_OK)
    done = subprocess.run(
        [SCRIPT, "one", "start", "begin", "-"],
        input=XML.encode(),
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
