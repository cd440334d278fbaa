"""Every way into a guest, here into a folder of this machine: with the real programs, no guest.

The shells run the scripts as the guest's would; sshd and qemu-ga are Debian's, unpacked into the
cache and started for these tests alone.
"""

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab.host import LabError
from tests.lab.needed import lacking
from tests.lab.unpacked import program
from tests.unit.guestside.shells import SHELLS
from xenlb.guestside.install.operations import Executor
from xenlb.guestside.transport.channel import LIMIT, Output, run_child, unwrapped, wrapped
from xenlb.guestside.transport.guest_agent import AgentCommands, AgentRefused, GuestAgent
from xenlb.guestside.transport.image import ImageFiles, RootFolder
from xenlb.guestside.transport.remote_files import RemoteFiles
from xenlb.guestside.transport.ssh import Ssh

NEAR = (*SHELLS, "folder")
VARIANTS = (*NEAR, "ssh", "agent")
Make = Callable[[Path], Executor]


class LocalChannel:
    """A script in a shell of this machine."""

    def __init__(self, shell: str) -> None:
        self._command = [*SHELLS[shell], "-s"]

    async def run(self, script: str, *, limit: float = LIMIT) -> Output:
        output = await run_child(
            self._command, stdin=wrapped(script), limit=limit, task="the shell", package="dash"
        )
        said = unwrapped(output)
        assert said is not None, output
        return said


async def off() -> None:
    """There is no guest that could run."""


@contextmanager
def variant(name: str, folder: Path) -> Iterator[Make]:
    """Makes executors for roots; `folder` for what it needs itself."""
    match name:
        case "folder":
            if os.geteuid() != 0:
                pytest.skip("chroot(2) takes root")
            yield lambda root: ImageFiles(RootFolder(path=str(root)), name="g1", still_off=off)
        case "ssh":
            with sshd(folder) as server:
                yield lambda root: RemoteFiles(server.channel(), name="g1", root=str(root))
        case "agent":
            with guest_agent(folder) as connect:
                yield lambda root: RemoteFiles(
                    GuestAgent(connect, name="g1"), name="g1", root=str(root)
                )
        case _:
            yield lambda root: RemoteFiles(LocalChannel(name), name="g1", root=str(root))


def unpacked(package: str, path: str) -> Path:
    try:
        return program(package, path)
    except LabError as error:
        lacking(str(error))


class Sshd:
    """A real one on 127.0.0.1, and the options with which ssh knows it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        for name in ("host", "user", "other"):
            self.make_key(name)
        (folder / "authorized").write_text((folder / "user.pub").read_text())
        self.know("host")
        self.config = folder / "sshd_config"

    def make_key(self, name: str) -> None:
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name)]
        subprocess.run(command, check=True)

    def know(self, key: str) -> None:
        public = (self.folder / f"{key}.pub").read_text()
        (self.folder / "known").write_text(f"[127.0.0.1]:{self.port} {public}")

    def start(self, *lines: str) -> "subprocess.Popen[bytes]":
        server = unpacked("openssh-server", "/usr/sbin/sshd")
        settings = (
            f"HostKey {self.folder}/host",
            f"AuthorizedKeysFile {self.folder}/authorized",
            "ListenAddress 127.0.0.1",
            f"Port {self.port}",
            "StrictModes no",
            "UsePAM no",
            "PidFile none",
            *lines,
        )
        # Since OpenSSH 9.8 sshd runs other programs of its package for a connection.
        for key, name in (("SshdSessionPath", "sshd-session"), ("SshdAuthPath", "sshd-auth")):
            if f"/{name}".encode() in server.read_bytes():
                settings += (f"{key} {unpacked('openssh-server', f'/usr/lib/openssh/{name}')}",)
        self.config.write_text("".join(f"{line}\n" for line in settings))
        command = [str(server), "-D", "-e", "-f", str(self.config)]
        if os.geteuid() == 0:
            # As root it wants a user of its own, and /run/sshd: only it sees them.
            passwd = self.folder / "passwd"
            nobody = "sshd:x:65534:65534::/run/sshd:/usr/sbin/nologin\n"
            users = [
                line
                for line in Path("/etc/passwd").read_text().splitlines()
                if not line.startswith("sshd:")
            ]
            passwd.write_text("".join(f"{line}\n" for line in users) + nobody)
            script = 'mount --bind "$1" /etc/passwd && mount -t tmpfs none /run && '
            script += 'mkdir -m 755 /run/sshd && shift && exec "$@"'
            inside = ["sh", "-c", script, "sh", str(passwd), *command]
            command = ["unshare", "-m", "--propagation", "private", *inside]
        with (self.folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log)
        until = time.monotonic() + 20
        while time.monotonic() < until and process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return process
            time.sleep(0.05)
        stop(process)
        pytest.fail(f"sshd does not start: {(self.folder / 'log').read_text()}")

    def channel(self, *, key: str = "user", options: tuple[str, ...] = ()) -> Ssh:
        mine = {
            "IdentityFile": str(self.folder / key),
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "UserKnownHostsFile": str(self.folder / "known"),
            "GlobalKnownHostsFile": "/dev/null",
            "Port": str(self.port),
        }
        words = [word for name, value in mine.items() for word in ("-o", f"{name}={value}")]
        return Ssh("127.0.0.1", options=("-F", "none", *words, *options))


@contextmanager
def sshd(folder: Path, *lines: str) -> Iterator[Sshd]:
    server = Sshd(folder)
    process = server.start(*lines)
    try:
        yield server
    finally:
        stop(process)


@contextmanager
def guest_agent(
    folder: Path,
    *options: str,
) -> Iterator[Callable[[], tuple[AgentCommands, Callable[[], object]]]]:
    """A real qemu-ga; its commands come by a Unix socket instead of libvirt's virtio port."""
    path = folder / "agent.sock"
    path.unlink(missing_ok=True)
    server = unpacked("qemu-guest-agent", "/usr/sbin/qemu-ga")
    command = [str(server), "-m", "unix-listen", "-p", str(path)]
    with (folder / "agent.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "-t", str(folder), *options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    until = time.monotonic() + 20
    while not path.exists():
        if time.monotonic() > until or process.poll() is not None:
            stop(process)
            pytest.fail(f"qemu-ga does not start: {(folder / 'agent.log').read_text()}")
        time.sleep(0.05)

    def connect() -> tuple[AgentCommands, Callable[[], object]]:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(30)
        connection.connect(str(path))
        stream = connection.makefile("rb")

        def ask(command: str) -> str:
            connection.sendall(command.encode() + b"\n")
            answer = stream.readline().decode()
            if (error := json.loads(answer).get("error")) is not None:
                raise AgentRefused(error["desc"])
            return answer

        def close() -> None:
            stream.close()
            connection.close()

        return ask, close

    try:
        yield connect
    finally:
        stop(process)


def stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    process.wait(timeout=30)
