"""`xenlb guest render` and `image`, `xenlb director render`: files and the look-up of a guest."""

import io
import os
import stat
import tarfile
from pathlib import Path

import pytest

from tests.unit.cli import answers
from tests.unit.cli.conftest import SmallAgent, Xenlb
from tests.unit.cli.forks import Forks
from xenlb.control.protocol import ControlError

UUID = "3a0f4a8e-5f05-4c8e-9df8-3dd9d9a3d0f1"
CONFIG = """\
libvirt: {uris: ["test:///default"]}
guests: {listen: "10.0.0.1:7371"}
director: {addresses: leave}
services:
  mail:
    address: 192.0.2.10
    ports: [25]
    forwarding: gatewaying
    drain: {timeout: 90s}
    servers: [{guest: "mail*"}, {guest: test}]
  web: {address: 192.0.2.11, ports: [80], servers: [{guest: "web*"}]}
"""


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XENLB_KEY", str(tmp_path / "lib/key"))
    path = tmp_path / "xenlb.yaml"
    path.write_text(CONFIG)
    return path


def key_of(tmp_path: Path) -> dict[str, str]:
    return {"XENLB_KEY": str(tmp_path / "lib/key")}


def test_files_are_printed(agent: SmallAgent, xenlb: Xenlb, tmp_path: Path) -> None:
    agent.answers["why"] = answers.why()
    done = xenlb("guest", "render", "mail2", **key_of(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    heads = [line for line in done.stdout.splitlines() if line.startswith("==>")]
    wants = "/etc/systemd/system/multi-user.target.wants"
    assert heads == [
        "==> /etc/sysctl.d/60-xenlb.conf  (root, 0644) <==",
        "==> /etc/xenlb-guest.conf  (root, 0644) <==",
        "==> /usr/local/lib/xenlb/guest.sh  (root, 0755) <==",
        "==> /etc/systemd/system/xenlb-guest.service  (root, 0644) <==",
        f"==> {wants}/xenlb-guest.service -> /etc/systemd/system/xenlb-guest.service <==",
        "==> /usr/local/lib/xenlb/hold.sh  (root, 0755) <==",
        "==> /etc/xenlb-hold.conf  (root, 0600) <==",
        "==> /etc/systemd/system/xenlb-hold.service  (root, 0644) <==",
        f"==> {wants}/xenlb-hold.service -> /etc/systemd/system/xenlb-hold.service <==",
    ]
    assert "\naddress 192.0.2.10 lo\n" in done.stdout
    assert "\ntell=xenstore\ntimeout=90\nuntil=established\nwatch=192.0.2.10 25\n" in done.stdout
    assert "\nTimeoutStopSec=120\n" in done.stdout
    assert "\nsecret=" not in done.stdout
    assert not (tmp_path / "lib").exists(), "no key is made that is not needed"
    assert agent.requests[-1]["guest"] == "mail2"


@pytest.mark.parametrize("init", ["systemd", "sysvinit"])
def test_files_are_written_to_a_folder_and_an_archive(
    agent: SmallAgent, xenlb: Xenlb, forks: Forks, tmp_path: Path, init: str
) -> None:
    agent.answers["why"] = {**answers.why(), "uri": "lxc:///system"}
    folder = tmp_path / "out"
    done = xenlb(
        "guest", "render", "mail2", "--init", init, "--output", str(folder), **key_of(tmp_path)
    )
    assert (done.returncode, done.stderr) == (0, "")
    written = [Path(line) for line in done.stdout.splitlines()]
    assert all(path.is_file() or path.is_symlink() for path in written)
    settings = (folder / "etc/xenlb-hold.conf").read_text()
    assert f"agent=10.0.0.1 7371\nuuid={UUID}\nsecret=" in settings
    assert stat.S_IMODE((folder / "etc/xenlb-hold.conf").stat().st_mode) == 0o600
    packed = forks.run(
        ("guest", "render", "mail2", "--init", init, "--tar"),
        {
            **os.environ,
            "XENLB_SOCKET": str(agent.socket),
            "XENLB_CONFIG": str(tmp_path / "xenlb.yaml"),
            **key_of(tmp_path),
        },
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        assert [folder / member.name for member in tar] == written
        hold = tar.extractfile("etc/xenlb-hold.conf")
        assert hold is not None
        assert hold.read().decode() == settings, "the secret of a guest stays the same"


@pytest.mark.parametrize(
    ("uri", "notify"),
    [("xen:///system", "xenstore"), ("qemu:///system", "virtio"), ("lxc:///", "tcp")],
)
def test_the_hypervisor_decides_how_a_guest_reports(
    agent: SmallAgent, xenlb: Xenlb, tmp_path: Path, uri: str, notify: str
) -> None:
    agent.answers["why"] = {**answers.why(), "uri": uri}
    done = xenlb("guest", "render", "mail2", **key_of(tmp_path))
    assert f"\ntell={notify}\n" in done.stdout
    done = xenlb("guest", "render", "mail2", "--tell", "none", **key_of(tmp_path))
    assert "\ntell=none\n" in done.stdout


def test_a_guest_that_cannot_report_is_refused(
    agent: SmallAgent, xenlb: Xenlb, config: Path
) -> None:
    config.write_text(CONFIG.replace('guests: {listen: "10.0.0.1:7371"}\n', ""))
    agent.answers["why"] = {**answers.why(), "uri": "lxc:///"}
    done = xenlb("guest", "render", "mail2")
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr.splitlines()[0] == "xenlb: guest mail2 cannot report its shutdown to this host"
    )
    assert "guests: {listen:" in done.stderr


def test_a_guest_in_no_service_is_refused(agent: SmallAgent, xenlb: Xenlb) -> None:
    agent.answers["why"] = {**answers.why(), "services": ["of-an-older-configuration"]}
    done = xenlb("guest", "render", "mail2")
    assert done.returncode == 1
    assert "is in no service" in done.stderr


def test_an_unknown_guest_is_refused(agent: SmallAgent, xenlb: Xenlb) -> None:
    agent.answers["why"] = ControlError("no guest 'x' is known here", hint="virsh list")
    done = xenlb("guest", "render", "x")
    assert (done.returncode, done.stderr) == (
        1,
        "xenlb: no guest 'x' is known here\n  virsh list\n",
    )


def test_libvirt_finds_the_guest_without_an_agent(xenlb: Xenlb, tmp_path: Path) -> None:
    """libvirt's test driver has one guest, test."""
    done = xenlb("guest", "render", "test", "--output", str(tmp_path / "o"), **key_of(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    text = (tmp_path / "o/etc/xenlb-hold.conf").read_text()
    assert "\ntell=tcp\n" in text
    assert "\nwatch=192.0.2.10 25\n" in text
    done = xenlb("guest", "render", "missing", **key_of(tmp_path))
    assert done.returncode == 1
    assert "no guest 'missing' is known here" in done.stderr


def test_wrong_usage_and_an_invalid_configuration(
    xenlb: Xenlb, config: Path, tmp_path: Path
) -> None:
    assert xenlb("guest", "render").returncode == 2
    assert xenlb("guest", "render", "a", "--tell", "loudly").returncode == 2
    both = xenlb("guest", "render", "a", "--tar", "--output", str(tmp_path / "o"))
    assert both.returncode == 2
    assert "exclude each other" in both.stderr
    config.write_text("services: 7")
    assert xenlb("guest", "render", "a").returncode == 3


HOSTILE = [
    "$(touch HERE)",
    "`touch HERE`",
    "x\nsecret=0",
    "../../etc/passwd",
    "-rf",
    "a'b\"c;d",
    "\u202e",
]


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_the_name_of_a_guest_is_in_no_file(
    agent: SmallAgent, xenlb: Xenlb, tmp_path: Path, name: str
) -> None:
    """libvirt allows nearly any name."""
    agent.answers["why"] = {**answers.why(), "guest": name, "uri": "lxc:///"}
    plain = xenlb("guest", "render", "mail2", **key_of(tmp_path))
    agent.answers["why"] = {**answers.why(), "guest": "mail2", "uri": "lxc:///"}
    same = xenlb("guest", "render", "--", name, **key_of(tmp_path))
    assert plain.returncode == same.returncode == 0
    assert plain.stdout == same.stdout


def test_templates_beside_the_configuration_are_used(
    agent: SmallAgent, xenlb: Xenlb, tmp_path: Path
) -> None:
    agent.answers["why"] = answers.why()
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates/xenlb-hold.service").write_text("my own {{ timeout_stop }}\n")
    assert "\nmy own 120\n" in xenlb("guest", "render", "mail2").stdout
    (tmp_path / "templates/xenlb-hold.service").write_text("my own {{ wrong }}\n")
    done = xenlb("guest", "render", "mail2")
    assert done.returncode == 1
    assert "line 1: 'wrong' is undefined" in done.stderr
    assert "Traceback" not in done.stderr


def test_image_prints_the_files_of_self_configuring_guests(xenlb: Xenlb) -> None:
    done = xenlb("guest", "image", "--init", "sysvinit")
    assert (done.returncode, done.stderr) == (0, "")
    assert "==> /usr/local/lib/xenlb/guest.sh  (root, 0755) <==" in done.stdout
    assert "==> /etc/init.d/xenlb-guest  (root, 0755) <==" in done.stdout
    assert "\ntell=xenstore\n" in done.stdout


def test_director_render_prints_the_files_of_this_host(xenlb: Xenlb, config: Path) -> None:
    config.write_text(CONFIG.replace("addresses: leave", "addresses: leave, interface: eth0"))
    done = xenlb("director", "render", "--system", "ifupdown")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\nip addr replace 192.0.2.10/32 dev eth0\n" in done.stdout
    assert "net.ipv4.vs.conn_reuse_mode = 3" in done.stdout
    done = xenlb("director", "render", "--system", "networkd")
    assert (done.returncode, done.stdout) == (1, "")
    assert "--network-file" in done.stderr


def test_options_for_the_access_exclude_each_other(xenlb: Xenlb) -> None:
    for words, message in (
        (("--root", "/", "--delivery", "ssh"), "--root is for --delivery rootfs"),
        (("--ssh", "root@x", "--delivery", "agent"), "--ssh is for --delivery ssh"),
    ):
        done = xenlb("guest", "verify", "mail2", *words)
        assert done.returncode == 2
        assert message in done.stderr
