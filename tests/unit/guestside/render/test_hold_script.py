"""hold.sh: what it counts, when it ends, whom it tells. In every shell, with real sockets too."""

import os
import resource
import signal
import socket
import struct
import threading
import time
import tty
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.unit.director.netns import in_own_network, sh
from tests.unit.guestside.shells import SHELLS, Root, Said, line

MAIL = "watch=192.0.2.10 25"
VIP = "0A0200C0"
VIP6 = "B80D0120000000000000000010000000"  # 2001:db8::10
MAPPED = "0000000000000000FFFF0000"
# The states that carry or owe data: ESTABLISHED, SYN_RECV, FIN_WAIT1, CLOSE_WAIT, LAST_ACK, CLOSING
BUSY = ("01", "03", "04", "08", "09", "0B")
ALL = [f"{n:02X}" for n in range(1, 13)]

every_shell = pytest.mark.parametrize("shell", SHELLS)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path / "root")


def count(root: Root, shell: str) -> int:
    """By `status`, which looks once and tells."""
    said = root.run(shell, "status")
    assert (said.status, said.errors) == (3, ""), "nobody has started it"
    (text,) = said.lines
    return int(text.removeprefix("not started; ").split()[0])


@every_shell
def test_which_states_count(root: Root, shell: str) -> None:
    root.settings(MAIL)
    root.connections(line(f"{VIP}:0019", state) for state in ALL)
    assert count(root, shell) == len(BUSY)
    root.settings(MAIL, "until=all")
    assert count(root, shell) == len(BUSY) + 1, "FIN_WAIT2 too"
    for state in ALL:
        root.connections([line(f"{VIP}:0019", state)])
        assert count(root, shell) == (state in (*BUSY, "05")), state


@every_shell
@pytest.mark.parametrize(
    ("watch", "lines", "expected"),
    [
        # A service address and its port.
        ("192.0.2.10 25", ([f"{VIP}:0019"], []), 1),
        ("192.0.2.10 25", ([f"{VIP}:001A", "0B0200C0:0019", "0B0000C0:0019"], []), 0),
        ("192.0.2.10 25", ([], [f"{MAPPED}{VIP}:0019", f"{VIP6}:0019"]), 1),
        ("2001:0DB8:0000:0000:0000:0000:0000:0010 25", ([], [f"{VIP6}:0019", f"{VIP6}:0018"]), 1),
        ("2001:0DB8:0000:0000:0000:0000:0000:0010 25", ([f"{VIP}:0019"], []), 0),
        ("192.0.2.10 65535", ([f"{VIP}:FFFF"], []), 1),
        # All of its ports.
        ("192.0.2.10 any", ([f"{VIP}:0019", f"{VIP}:D431", "0B0200C0:0019"], []), 2),
        ("192.0.2.10 any", ([], [f"{MAPPED}{VIP}:0019"]), 1),
        # A port of any own address, but not over loopback: the balancer is not there.
        ("any 26", (["0B00000A:001A", "0C00000A:001A", "0B00000A:0019"], []), 2),
        ("any 26", (["0100007F:001A"], [f"{MAPPED}0100007F:001A", f"{'0' * 24}01000000:001A"]), 0),
        ("any 26", ([], [f"{MAPPED}0B00000A:001A", f"{VIP6}:001A"]), 2),
    ],
)
def test_what_is_a_services(
    root: Root, shell: str, watch: str, lines: tuple[list[str], list[str]], expected: int
) -> None:
    """`lines`: the local ends in tcp and in tcp6."""
    root.settings(f"watch={watch}")
    root.connections(map(line, lines[0]), six=map(line, lines[1]))
    assert count(root, shell) == expected


@in_own_network
def test_a_long_table(tmp_path: Path) -> None:
    """Read from /proc itself, where it is not the length but going back in it that takes long. In a
    network of its own: where others connect meanwhile, a line may be read twice."""
    sh("ip link set lo up")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with ExitStack() as stack:
            server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            place = server.getsockname()
            for _ in range(1600):
                client = stack.enter_context(socket.create_connection(place))
                # Ended by a reset: no TIME_WAIT is left behind for a minute.
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                stack.enter_context(server.accept()[0])
                stack.callback(client.close)
            for shell in SHELLS:
                it = Root(tmp_path / shell)
                it.settings(f"watch=127.0.0.1 {place[1]}")
                it.real_connections()
                began = time.monotonic()
                assert count(it, shell) == 1600
                assert time.monotonic() - began < 3, shell
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@every_shell
def test_several_services(root: Root, shell: str) -> None:
    root.settings(MAIL, "watch=192.0.2.11 any", "watch=any 26", "watch=192.0.2.10 465")
    here = [f"{VIP}:0019", f"{VIP}:01D1", "0B0200C0:1234", "0B00000A:001A", f"{VIP}:0050"]
    root.connections([line(each) for each in here])
    said = root.run(shell, "status")
    assert said.lines == [
        "not started; 4 connections to 192.0.2.10 port 25, 192.0.2.11, port 26,"
        " 192.0.2.10 port 465; the host is notified by none"
    ]


@every_shell
def test_ports_that_only_the_guest_knows(root: Root, shell: str) -> None:
    """By firewall mark: every port that is listened on, but ssh's and those of loopback."""
    root.settings("watch=any any")
    root.connections(
        [
            line("00000000:0050", "0A"),
            line("00000000:0016", "0A"),
            line("0100007F:0CEA", "0A"),
            *map(line, ["0B00000A:0050", "0B00000A:0016", "0B00000A:0CEA", "0B00000A:D431"]),
        ],
        six=[
            line("0" * 32 + ":01BB", "0A"),
            line(f"{'0' * 24}01000000:0019", "0A"),
            *map(line, [f"{MAPPED}0B00000A:01BB", f"{VIP6}:01BB", f"{VIP6}:0019"]),
        ],
    )
    assert count(root, shell) == 3


@every_shell
def test_settings_are_read_and_never_run(root: Root, shell: str) -> None:
    touched = root.path / "touched"
    root.settings(
        "# a comment; $(touch x)",
        "",
        f"tell=$(touch {touched})",
        f"watch=any `touch {touched}`",
        f"timeout=1;touch {touched}",
        "until=established\r",
        "PATH=/nowhere",
        "unheard-of=1",
        "watch=192.0.2.10 25",
        f"secret='; touch {touched}'",
        "agent=* *",
    )
    with root.conf.open("a") as conf:
        conf.write("watch=192.0.2.11 25")  # without an end of line, `read` says no
    root.connections([line(f"{VIP}:0019")])
    said = root.run(shell, "status")
    assert not touched.exists()
    assert said.lines[-1] == (
        "not started; 1 connections to 192.0.2.10 port 25; the host is notified by none"
    )
    refused = [each.rsplit("value of ")[-1] for each in said.lines if "invalid value" in each]
    assert [each.split()[0] for each in refused] == [
        *("tell", "watch", "timeout", "until", "PATH", "secret", "agent")
    ]


def test_it_waits_for_real_connections(tmp_path: Path) -> None:
    """IPv4, IPv6 and IPv4 on an IPv6 socket; they end at different times."""
    with ExitStack() as stack:
        four = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        six = stack.enter_context(
            socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        )
        ports = four.getsockname()[1], six.getsockname()[1]
        places = [("127.0.0.1", ports[0]), ("::1", ports[1]), ("127.0.0.1", ports[1])]
        ends = []
        for place in places:
            client = stack.enter_context(socket.create_connection(place))
            serving, _ = (four if place[1] == ports[0] else six).accept()
            ends.append((client, stack.enter_context(serving)))
        watches = (
            f"watch=127.0.0.1 {ports[0]}",
            f"watch=127.0.0.1 {ports[1]}",
            f"watch=0000:0000:0000:0000:0000:0000:0000:0001 {ports[1]}",
        )
        running = []
        for shell in SHELLS:
            it = Root(tmp_path / shell)
            it.settings(*watches, "timeout=60")
            it.real_connections()
            running.append(it.start(shell, "stop"))
        began = time.monotonic()
        for n, (client, serving) in enumerate(ends):
            time.sleep(1.2)  # two looks
            assert [each.poll() for each in running] == [None] * len(running), n
            client.close()
            serving.close()
        for process in running:
            said = Said.of(process)
            assert (said.status, said.errors) == (0, "")
            first, last = said.lines
            assert first.startswith("3 connections to 127.0.0.1 port ")
            assert first.endswith("waiting until none is left, at most 60 s")
            assert last.startswith("no connections left after ")
        assert 3.6 <= time.monotonic() - began < 15


def test_the_time_is_over(tmp_path: Path) -> None:
    """With what is left; a half-closed client is not over, nor is one whose data is unread."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = server.getsockname()[1]
        client = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        serving, _ = server.accept()
        stack.enter_context(serving)
        client.shutdown(socket.SHUT_WR)
        running = []
        for shell in SHELLS:
            it = Root(tmp_path / shell)
            it.settings(f"watch=127.0.0.1 {port}", "timeout=2")
            it.real_connections()
            running.append(it.start(shell, "stop"))
        for process in running:
            said = Said.of(process)
            assert (said.status, said.errors) == (0, "")
            assert said.lines[-1] == "timed out after 2 s with 1 connections left"


def test_whatever_is_missing_no_shutdown_fails(tmp_path: Path) -> None:
    running = {}
    for shell in SHELLS:
        bare = Root(tmp_path / f"bare-{shell}")
        bare.conf.write_text("")
        for path in ("proc/net/tcp", "proc/net/tcp6", "proc/uptime"):
            (bare.path / path).unlink()
        (bare.path / "run").rmdir()
        bare.settings("watch=any 25", "timeout=2", "tell=xenstore")
        # No clock: then it counts its looks. No dd, no /run, nobody to tell.
        running[f"{shell} bare"] = bare.start(shell, "stop", tools=("sleep",))
        running[f"{shell} bare start"] = bare.start(shell, "start", tools=("sleep",))
        none = Root(tmp_path / f"none-{shell}")
        running[f"{shell} no settings"] = none.start(shell, "stop")
        running[f"{shell} no settings, start"] = none.start(shell, "start")
    began = time.monotonic()
    for name, process in running.items():
        said = Said.of(process)
        assert said.status == 0, name
        assert said.lines, name
    assert time.monotonic() - began < 15


@every_shell
def test_wrong_usage(root: Root, shell: str) -> None:
    assert root.run(shell).status == 2
    assert root.run(shell, "explode").status == 2


@every_shell
def test_started_and_stopped(root: Root, shell: str) -> None:
    """Also for the rc of old Red Hats, which stops only who has a file there."""
    root.settings(MAIL, "timeout=0")
    lock = root.path / "var/lock/subsys"
    lock.mkdir(parents=True)
    assert root.run(shell, "start").status == 0
    said = root.run(shell, "status")
    assert (said.status, said.lines[0].split(";")[0]) == (0, "staying")
    assert (lock / "xenlb-hold").exists()
    assert root.run(shell, "stop").status == 0
    said = root.run(shell, "status")
    assert (said.status, said.lines[0].split(";")[0]) == (3, "leaving")
    assert not (lock / "xenlb-hold").exists()


class Xenstored:
    """The other end of a xenbus device: a terminal in raw mode, which passes bytes as they are."""

    def __init__(self, root: Root, *, folder: str = "dev/xen", answer: bytes | None) -> None:
        self.ours, self.theirs = os.openpty()
        tty.setraw(self.theirs)
        device = root.path / folder / "xenbus"
        device.parent.mkdir(parents=True)
        device.symlink_to(os.ttyname(self.theirs))
        self.read = b""
        self._answer = answer
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while len(self.read) < 16 + 18:
            self.read += os.read(self.ours, 1024)
        if self._answer is not None:
            os.write(self.ours, self._answer)

    def close(self) -> None:
        self._thread.join(10)
        os.close(self.ours)
        os.close(self.theirs)


def message(kind: int, body: bytes) -> bytes:
    """As xenstored frames it: four little-endian numbers, then the body."""
    return b"".join(n.to_bytes(4, "little") for n in (kind, 0, 0, len(body))) + body


@every_shell
@pytest.mark.parametrize("folder", ["dev/xen", "proc/xen"])
@pytest.mark.parametrize(("verb", "word"), [("start", b"staying"), ("stop", b"leaving")])
def test_told_by_xenstore(root: Root, shell: str, folder: str, verb: str, word: bytes) -> None:
    root.settings(MAIL, "tell=xenstore", "timeout=0")
    store = Xenstored(root, folder=folder, answer=message(11, b"OK\0"))
    said = root.run(shell, verb)
    store.close()
    assert store.read == message(11, b"data/xenlb\0" + word)
    assert (said.status, said.errors) == (0, "")
    assert "could not" not in "".join(said.lines)


def test_xenstore_that_refuses_or_does_not_answer(tmp_path: Path) -> None:
    """It is said, and costs no more than three seconds."""
    running, stores = [], []
    for shell in SHELLS:
        for n, answer in enumerate([message(16, b"EACCES\0"), None]):
            root = Root(tmp_path / f"{shell}{n}")
            root.settings(MAIL, "tell=xenstore", "timeout=0")
            stores.append(Xenstored(root, answer=answer))
            running.append(root.start(shell, "start"))
    began = time.monotonic()
    for process in running:
        said = Said.of(process)
        assert said.status == 0
        assert said.lines == ["the host could not be notified that this guest serves (xenstore)"]
    assert time.monotonic() - began < 8
    for store in stores:
        store.close()


@every_shell
def test_told_by_xenstore_write(root: Root, shell: str) -> None:
    """Where there is no device but a client."""
    client = root.path / "client"
    client.write_text(f'#!/bin/sh\necho "$@" >{root.path}/written\n')
    client.chmod(0o755)
    root.settings(MAIL, "tell=xenstore")
    environment = root.environment()
    (Path(environment["PATH"]) / "xenstore-write").symlink_to(client)
    (Path(environment["PATH"]) / "sh").symlink_to("/bin/sh")
    assert "could not" not in root.run(shell, "start").lines[0]
    assert (root.path / "written").read_text() == "data/xenlb staying\n"


def holders(root: Root) -> list[int]:
    """The processes that have this root's port open."""
    port = os.path.realpath(root.path / "dev/port")
    found = []
    for place in Path("/proc").glob("[0-9]*/fd/7"):
        try:
            if os.path.samefile(place, port):
                found.append(int(place.parts[2]))
        except OSError:
            continue
    return found


@every_shell
@pytest.mark.parametrize("udev", [True, False])
def test_told_by_virtio(root: Root, shell: str, udev: bool) -> None:
    """The port is open from `leaving` on, also when hold.sh has ended, until `staying`."""
    device = root.path / "dev/port"
    device.parent.mkdir()
    ours, theirs = os.openpty()  # nobody else on this machine has this one
    device.symlink_to(os.ttyname(theirs))
    if udev:
        (root.path / "dev/virtio-ports").mkdir()
        (root.path / "dev/virtio-ports/org.xenlb.0").symlink_to(device)
    else:
        for name, said in (("vport0p1", "org.qemu.guest_agent.0"), ("vport1p1", "org.xenlb.0")):
            (root.path / "sys/class/virtio-ports" / name).mkdir(parents=True)
            (root.path / "sys/class/virtio-ports" / name / "name").write_text(f"{said}\n")
        (root.path / "dev/vport1p1").symlink_to(device)
    root.settings(MAIL, "tell=virtio", "timeout=0")
    try:
        assert root.run(shell, "start").errors == ""
        assert holders(root) == []
        assert root.run(shell, "stop").errors == ""
        (holder,) = holders(root)
        assert root.run(shell, "stop").errors == ""
        assert holders(root) == [holder], "it is open only once"
        assert root.run(shell, "start").errors == ""
        for _ in range(100):
            if not holders(root):
                break
            time.sleep(0.02)
        assert holders(root) == []
    finally:
        for pid in holders(root):
            if pid != os.getpid():
                os.kill(pid, signal.SIGKILL)
        os.close(ours)
        os.close(theirs)


@every_shell
def test_a_number_of_an_old_boot_is_nobodys(root: Root, shell: str) -> None:
    (root.path / "dev/virtio-ports").mkdir(parents=True)
    # Not /dev/null: this process may have it open, with the very number that the script looks at.
    (root.path / "dev/virtio-ports/org.xenlb.0").symlink_to("/dev/full")
    (root.path / "run/xenlb-hold.pid").write_text(f"{os.getpid()}\n")
    root.settings(MAIL, "tell=virtio")
    assert root.run(shell, "start").status == 0  # and this process lives


@every_shell
def test_no_port(root: Root, shell: str) -> None:
    root.settings(MAIL, "tell=virtio", "timeout=0")
    said = root.run(shell, "stop")
    assert said.status == 0
    assert said.lines[1] == "the host could not be notified that this guest leaves (virtio)"
