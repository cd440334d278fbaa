"""Nothing runs on a machine that is not the guest: this machine stands for the one that answers."""

import asyncio
import os
import subprocess
from ipaddress import ip_address
from pathlib import Path
from uuid import UUID

import pytest

from tests.unit.guestside.shells import SHELLS
from tests.unit.guestside.transport.deliveries import LocalChannel
from tests.unit.guestside.transport.test_open import TEST_URI, TEST_UUID
from xenlb.guestside.install.operations import File, Write
from xenlb.guestside.target import GuestTarget
from xenlb.guestside.transport.channel import DeliveryError
from xenlb.guestside.transport.identity import GuardedChannel, Identity, guarded
from xenlb.guestside.transport.open import open_access
from xenlb.guestside.transport.remote_files import RemoteFiles
from xenlb.guestside.transport.ssh import Ssh
from xenlb.model.guest_side import Delivery, GuestSide

OTHER = Identity(uuid=UUID(int=2), macs=frozenset({"52:54:00:aa:bb:0c"}))


def mine() -> frozenset[str]:
    """The MAC addresses of this machine."""
    files = Path("/sys/class/net").glob("*/address")
    return frozenset(path.read_text().strip() for path in files)


def of_guest(shell: str, identity: Identity) -> GuardedChannel:
    async def ask() -> Identity:
        return identity

    return GuardedChannel(LocalChannel(shell), ask, name="mail2", place="10.0.0.11")


@pytest.mark.parametrize("shell", SHELLS)
def test_a_machine_with_a_mac_address_of_the_domain_is_the_guest(shell: str) -> None:
    """Of several cards one is enough: others may be plugged in later."""
    (some, *_) = mine()
    identity = Identity(uuid=UUID(int=2), macs=frozenset({some, "52:54:00:aa:bb:0c"}))
    output = asyncio.run(of_guest(shell, identity).run("echo in; exit 3"))
    assert (output.status, output.out) == (3, b"in\n")


@pytest.mark.parametrize("shell", SHELLS)
def test_nothing_is_done_on_another_machine(shell: str, tmp_path: Path) -> None:
    channel = of_guest(shell, OTHER)
    with pytest.raises(DeliveryError) as failed:
        asyncio.run(channel.run(f"touch {tmp_path}/written"))
    assert failed.value.message.startswith("the machine at 10.0.0.11 is not mail2 (it ")
    assert "the domain of mail2 has 52:54:00:aa:bb:0c)" in failed.value.message
    assert failed.value.hint
    write = Write(path="written", file=File(content=b"x", mode=0o644))
    with pytest.raises(DeliveryError, match="is not mail2"):
        asyncio.run(RemoteFiles(channel, name="mail2", root=str(tmp_path)).perform((write,)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("text", ["6695eb01-f6a4-8304-79aa-97f2502e193f", None])
def test_a_uuid_counts_in_either_case(shell: str, text: str | None, tmp_path: Path) -> None:
    """In the place of the files of /sys are those of a folder."""
    uuid = UUID("6695eb01-f6a4-8304-79aa-97f2502e193f")
    shown = str(UUID(int=7)) if text is None else text.upper()
    (tmp_path / "product_uuid").write_text(f"{shown}\n")
    script = guarded("echo in", Identity(uuid=uuid))
    script = script.replace("/sys/class/dmi/id/", f"{tmp_path}/").replace("ip -o link", "true")
    ran = subprocess.run(
        [*SHELLS[shell], "-s"], input=script, capture_output=True, text=True, check=False
    )
    assert (ran.stdout == "in\n") == (text is not None)
    assert ran.stderr == ""


def program(folder: Path, text: str) -> None:
    """A program `ssh`, first in PATH."""
    (folder / "ssh").write_text(f"#!/bin/sh\n{text}\n")
    (folder / "ssh").chmod(0o755)


def test_the_way_by_an_address_is_one_to_the_guest_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The domain is the test driver's; this machine answers at the address."""
    program(tmp_path, "exec sh -s")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    where = GuestTarget(
        uri=TEST_URI,
        uuid=TEST_UUID,
        name="test",
        side=GuestSide(delivery=Delivery.SSH),
        address=ip_address("10.0.0.11"),
    )

    async def work() -> None:
        reached = await open_access(where)
        assert reached.channel is not None
        await reached.channel.run(f"touch {tmp_path}/written")

    with pytest.raises(DeliveryError, match=r"the machine at 10\.0\.0\.11 is not test"):
        asyncio.run(work())
    assert not (tmp_path / "written").exists()


LENDS = """\
Host *
    ForwardAgent yes
    ForwardX11 yes
    ForwardX11Trusted yes
    PermitLocalCommand yes
    LocalCommand touch /nowhere
    LocalForward 2222 127.0.0.1:22
    RemoteForward 2222 127.0.0.1:22
    DynamicForward 1080
    Tunnel yes
    ControlMaster auto
    RequestTTY force
"""


def test_ssh_lends_the_guest_nothing_of_this_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever root's ssh_config says: asked is OpenSSH itself, for what it would do."""
    (tmp_path / "config").write_text(LENDS)
    program(tmp_path, f'PATH="{os.environ["PATH"]}"; ssh -G "$@" >{tmp_path}/does; exit 255')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(DeliveryError):
        asyncio.run(Ssh("10.0.0.11", options=("-F", f"{tmp_path}/config")).run("true"))
    does = (tmp_path / "does").read_text().splitlines()
    assert "hostname 10.0.0.11" in does
    for name in ("forwardagent", "forwardx11", "forwardx11trusted", "permitlocalcommand"):
        assert f"{name} no" in does
    assert {"tunnel false", "controlmaster false", "requesttty false"} <= set(does)
    assert "clearallforwardings yes" in does
    assert not [line for line in does if line.startswith(("localforward", "remoteforward"))]
