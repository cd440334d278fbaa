"""What a guest's hold is told: from services to its settings, and the files it is made of."""

import io
import re
import shutil
import stat
import subprocess
import tarfile
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.guestside.shells import SHELLS, Root
from xenlb.config import parse
from xenlb.guestside.install.operations import GuestFile
from xenlb.guestside.render.export import archive, write_tree
from xenlb.guestside.render.systems import hold_files
from xenlb.guestside.render.template import TemplateError
from xenlb.guestside.requirements.hold import (
    Hold,
    NotifyVia,
    Watch,
    compile_hold,
    notify_via_of,
    settings_text,
)
from xenlb.model.guest_side import Init
from xenlb.model.settings import DrainUntil

ONE = UUID("3a0f4a8e-5f05-4c8e-9df8-3dd9d9a3d0f1")
AGENT = (ip_address("10.0.0.1"), 7371)
VIP, VIP6 = IPv4Address("192.0.2.10"), IPv6Address("2001:db8::10")


def compiled(services: str) -> Hold:
    settings = parse(f"director: {{addresses: leave}}\nservices:\n{services}", "xenlb.yaml")
    return compile_hold(settings.services, ONE, tell=NotifyVia.NONE)


def watches(service: str) -> list[tuple[object, object]]:
    return [(w.address, w.port) for w in compiled(f"  a: {{{service}}}").watches]


@pytest.mark.parametrize(
    ("service", "expected"),
    [
        # Masqueraded packets come to the guest's own address, at its own port.
        ("address: 192.0.2.10, ports: [25, 465/tcp]", [(None, 25), (None, 465)]),
        ("address: 192.0.2.10, ports: [25], server-port: 26", [(None, 26)]),
        ("address: 192.0.2.10, ports: [25], forwarding: gatewaying", [(VIP, 25)]),
        ("address: '2001:db8::10', ports: [25], forwarding: tunnel", [(VIP6, 25)]),
        # Every port of the service: those of its address, or those that the guest listens on.
        (
            "address: 192.0.2.10, ports: [0], persistence: 5m, check: none, forwarding: gatewaying",
            [(VIP, None)],
        ),
        ("address: 192.0.2.10, ports: [0], persistence: 5m, check: none", [(None, None)]),
        ("fwmark: 7, check: none", [(None, None)]),
        ("fwmark: 7, check: none, forwarding: gatewaying", [(None, None)]),
        # Nothing of UDP or SCTP can be counted.
        ("address: 192.0.2.10, ports: [53/udp, 53, 54/sctp]", [(None, 53)]),
        ("address: 192.0.2.10, ports: [53/udp]", []),
    ],
)
def test_what_is_watched(service: str, expected: list[tuple[object, object]]) -> None:
    assert watches(service) == expected


def test_one_hold_waits_as_the_most_patient_service() -> None:
    hold = compiled(
        "  a: {address: 192.0.2.10, ports: [25], drain: {timeout: 500ms}}\n"
        "  b: {address: 192.0.2.11, ports: [25], drain: {timeout: 90500ms}}\n"
        "  c: {address: 192.0.2.12, ports: [26], drain: {timeout: 5s, until: all}}\n"
    )
    assert (hold.timeout, hold.until) == (91, DrainUntil.ALL)
    assert [w.port for w in hold.watches] == [25, 26], "once what is watched for two"
    assert compiled("  a: {address: 192.0.2.10, ports: [25]}").until is DrainUntil.ESTABLISHED


@pytest.mark.parametrize(
    ("uri", "tell"),
    [
        ("xen:///system", NotifyVia.XENSTORE),
        ("xen:///", NotifyVia.XENSTORE),
        ("Xen:///system", NotifyVia.XENSTORE),
        ("xen+unix:///system", NotifyVia.XENSTORE),
        ("xen+ssh://dom0b/system", NotifyVia.TCP),  # not the xenstore that the agent watches
        ("qemu:///system", NotifyVia.VIRTIO),
        ("QEMU:///system", NotifyVia.VIRTIO),
        ("qemu+ssh://root@other/system", NotifyVia.VIRTIO),
        ("lxc:///system", NotifyVia.TCP),
        ("test:///default", NotifyVia.TCP),
        ("", NotifyVia.TCP),
    ],
)
def test_how_it_is_told(uri: str, tell: NotifyVia) -> None:
    assert notify_via_of(uri) is tell


def test_the_secret_goes_only_where_it_is_needed() -> None:
    settings = parse("services: {a: {fwmark: 7, check: none}}", "f")
    text = settings_text(
        compile_hold(settings.services, ONE, tell=NotifyVia.TCP, agent=AGENT, secret="ab12")
    )
    assert "agent=10.0.0.1 7371\n" in text
    assert f"uuid={ONE}\n" in text
    assert "secret=ab12\n" in text
    for tell in (NotifyVia.XENSTORE, NotifyVia.VIRTIO, NotifyVia.NONE):
        hold = compile_hold(settings.services, ONE, tell=tell, agent=AGENT, secret="ab12")
        assert "ab12" not in settings_text(hold)
    with pytest.raises(ValueError, match="agent that listens"):
        compile_hold(settings.services, ONE, tell=NotifyVia.TCP)
    bad = compile_hold(settings.services, ONE, tell=NotifyVia.TCP, agent=AGENT, secret="a\nb=c")
    with pytest.raises(ValueError, match="hexadecimal"):
        settings_text(bad)


WATCHES = st.builds(
    Watch,
    address=st.none() | st.ip_addresses(),
    port=st.none() | st.integers(min_value=1, max_value=65535),
)
HOLDS = st.builds(
    Hold,
    uuid=st.uuids(),
    tell=st.sampled_from(NotifyVia),
    timeout=st.integers(min_value=0, max_value=86400),
    until=st.sampled_from(DrainUntil),
    watches=st.lists(WATCHES, max_size=5).map(tuple),
    agent=st.none() | st.tuples(st.ip_addresses(), st.integers(min_value=1, max_value=65535)),
    secret=st.text("0123456789abcdef", max_size=64),
)


@given(HOLDS)
def test_settings_are_plain_lines(hold: Hold) -> None:
    comment, *lines = settings_text(hold).splitlines()
    assert comment.startswith("# ")
    for line in lines:
        assert re.fullmatch(r"[a-z]+=[0-9A-Za-z.: -]*", line), line


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_reads_what_is_written(tmp_path: Path, shell: str) -> None:
    hold = Hold(
        uuid=ONE,
        tell=NotifyVia.TCP,
        timeout=7,
        until=DrainUntil.ALL,
        watches=(
            Watch(address=None, port=25),
            Watch(address=VIP, port=80),
            Watch(address=VIP6, port=443),
            Watch(address=VIP, port=None),
            Watch(address=None, port=None),
        ),
        agent=(ip_address("2001:db8::1"), 7371),
        secret="ab" * 32,
    )
    root = Root(tmp_path / "root")
    root.conf.write_text(settings_text(hold))
    assert root.run(shell, "status").lines == [
        "not started; 0 connections to port 25, 192.0.2.10 port 80,"
        " 2001:0DB8:0000:0000:0000:0000:0000:0010 port 443, 192.0.2.10,"
        " every port it listens on but 22; the host is notified by tcp"
    ]


# Files


def hold() -> Hold:
    return compiled("  a: {address: 192.0.2.10, ports: [25], drain: {timeout: 90s}}")


def test_the_files(tmp_path: Path) -> None:
    for init, service, mode in (
        (Init.SYSTEMD, "etc/systemd/system/xenlb-hold.service", 0o644),
        (Init.SYSVINIT, "etc/init.d/xenlb-hold", 0o755),
    ):
        files = hold_files(hold(), init, overrides=tmp_path / "none")
        rights = {file.path: file.mode for file in files}
        assert rights == {
            "usr/local/lib/xenlb/hold.sh": 0o755,
            "etc/xenlb-hold.conf": 0o600,
            service: mode,
        }
        folder = tmp_path / init
        write_tree(files, folder)
        with tarfile.open(fileobj=io.BytesIO(archive(files))) as tar:
            # No folders: unpacking changes the rights of none.
            assert {each.name: each.mode for each in tar} == rights
            assert {(e.uid, e.gid, e.uname, e.type) for e in tar} == {
                (0, 0, "root", tarfile.REGTYPE)
            }
            for file in files:
                packed = tar.extractfile(file.path)
                assert packed is not None
                assert packed.read().decode() == file.text == (folder / file.path).read_text()
                assert stat.S_IMODE((folder / file.path).stat().st_mode) == file.mode
        written = [p for p in folder.rglob("*") if p.is_file()]
        assert len(written) == len(files)
        write_tree(files, folder)  # again, over what is there


def test_a_tree_is_not_written_through_links(tmp_path: Path) -> None:
    """A file that is a link is replaced; what it points to stays."""
    (tmp_path / "other").write_text("mine")
    (tmp_path / "root/etc").mkdir(parents=True)
    for name in ("x", ".x.new"):
        (tmp_path / "root/etc" / name).symlink_to(tmp_path / "other")
    write_tree([GuestFile(path="etc/x", text="new", mode=0o600)], tmp_path / "root")
    assert (tmp_path / "other").read_text() == "mine"
    assert (tmp_path / "root/etc/x").read_text() == "new"
    assert not (tmp_path / "root/etc/x").is_symlink()


def test_an_operators_template(tmp_path: Path) -> None:
    own = tmp_path / "xenlb-hold.service"
    own.write_text("mine, {{ timeout_stop }} s, mail@example.org @x@\n")
    *_, service = hold_files(hold(), Init.SYSTEMD, overrides=tmp_path)
    assert service.text == "mine, 120 s, mail@example.org @x@\n"
    own.write_text("mine\n{{ guest }}\n")
    with pytest.raises(TemplateError, match=r"hold\.service, line 2: 'guest' is undefined"):
        hold_files(hold(), Init.SYSTEMD, overrides=tmp_path)
    (tmp_path / "xenlb-hold.service").write_bytes(b"\xff\xfe")
    with pytest.raises(TemplateError, match="cannot be read"):
        hold_files(hold(), Init.SYSTEMD, overrides=tmp_path)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_the_unit_is_understood(tmp_path: Path) -> None:
    """By systemd itself, multi-user.target and what it wants included: there is no cycle."""
    write_tree(hold_files(hold(), Init.SYSTEMD, overrides=tmp_path), tmp_path)
    units = tmp_path / "etc/systemd/system"
    (units / "multi-user.target.wants").mkdir()
    (units / "multi-user.target.wants/xenlb-hold.service").symlink_to("../xenlb-hold.service")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "multi-user.target", "xenlb-hold.service"],
        env={"SYSTEMD_UNIT_PATH": f"{units}:", "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    mine = [line for line in done.stderr.splitlines() if "hold" in line or "cycle" in line]
    assert mine == []


@pytest.mark.parametrize("verb", ["start", "stop", "status", "restart", "explode"])
def test_the_init_script(tmp_path: Path, verb: str) -> None:
    """With the script that it calls in a place of the test."""
    write_tree(hold_files(hold(), Init.SYSVINIT, overrides=tmp_path / "none"), tmp_path)
    called = tmp_path / "usr/local/lib/xenlb/hold.sh"
    called.write_text('echo "called $*"; exit 3\n')
    script = tmp_path / "etc/init.d/xenlb-hold"
    script.write_text(script.read_text().replace("/usr/local/lib/xenlb/hold.sh", str(called)))
    done = subprocess.run([script, verb], capture_output=True, text=True, timeout=10, check=False)
    expected = {"restart": "called start\n", "explode": ""}.get(verb, f"called {verb}\n")
    assert (done.stdout, done.returncode) == (expected, 2 if verb == "explode" else 3)
