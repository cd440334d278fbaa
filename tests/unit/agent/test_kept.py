"""Kept settings: the same as the reader's, and not used when there is any doubt of them."""

import os
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

from xenlb import kept
from xenlb.config import ConfigError, parse
from xenlb.ipvs.table import Tunnel
from xenlb.model.checks import Asks
from xenlb.model.settings import (
    Check,
    Director,
    DrainPolicy,
    Member,
    Port,
    ServiceSettings,
    Settings,
)
from xenlb.model.side import GuestSide

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = [ROOT / "etc/xenlb.yaml", *sorted((ROOT / "etc/examples").glob("*.yaml"))]
EVERYTHING = """\
libvirt: {uris: ["xen:///system", "lxc:///system"], keepalive: 20s}
guests: {networks: [10.0.0.0/8, "2001:db8::/64"], listen: "[2001:db8::1]:7371"}
director: {interface: eth1, addresses: leave, sysctls: apply}
services:
  mail:
    address: 192.0.2.10
    ports: [25, 465/tcp]
    scheduler: sh
    scheduler-flags: [sh-fallback, sh-port]
    persistence: 300s
    persistence-netmask: 24
    forwarding: tunnel
    tunnel: {type: gue, port: 6080, checksum: remcsum}
    weight: 3
    upper-threshold: 100
    lower-threshold: 50
    check:
      any:
        - {type: agent, interval: 7s, timeout: 2s, rise: 4, fall: 5, port: 26, flap-damping: 8s,
           send: '\\x00\\xff', weight: {least: 10%, most: 90%}}
        - {type: https, path: /up, host: a.example, status: [200, 301-308], header: "X-Up: yes",
           body: fine, method: POST, tls: {verify: false}}
        - {type: smtp, hello: a.example, expect: 250-259, starttls: {name: b, ca-file: /ca.pem}}
    on-failure: quiesce
    keep-in-service: 30%
    slow-start: 20s
    sorry-server: "10.0.0.99"
    drain: {timeout: 9s, until: all, udp: 7s, shutdown-grace: 8s}
    from-metadata: true
    guest-side: {delivery: ssh, on-boot: apply, system: netplan, interface: eth2, table: 300,
                 gateway: [10.0.0.1, "fd00::1"], tx-checksums: false}
    servers:
      - {guest: "mail*", address: 10.0.0.11, weight: 0}
      - {guest: other, network: 10.0.0.0/24, guest-side: {init: sysvinit, ssh: root@other}}
      - {host: "2001:db8::5", weight: 7}
      - host: 10.0.0.6
  dns: {address: "2001:db8::10", ports: [53/udp], one-packet: true, check: none, flush: true,
        servers: [{host: "2001:db8::6"}]}
  remapped: {address: 192.0.2.11, ports: [25], server-port: 26, servers: [{host: 10.0.0.7}],
             guest-side: {return-path: mark}}
  vip: {address: 192.0.2.12, ports: [53/udp, 53], forwarding: gatewaying,
        check: [{via: vip}, {type: dns, query: a, record: A, expect: 10.0.0.1, recursive: true},
                {type: tls}, {type: udp, send: x, expect: y}, {type: icmp}, {type: http},
                {type: exec, command: [/bin/a, b], user: c, weight: {}}, {type: imap, tls: true},
                {type: pop3}, {type: ldap}, {type: mysql, user: a}, {type: redis},
                {type: pgsql, user: a, database: b}]}
  marked: {fwmark: 7, family: inet6, check: none, weight: 0,
           guest-side: {addresses: ["2001:db8::12"]}}
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o755)
    return folder / "settings.kept"


def large(services: int = 1) -> bytes:
    """A right configuration that is large enough to be kept."""
    text = "director: {interface: eth0}\nservices:\n"
    for number in range(services):
        text += f"  s{number}: {{address: 192.0.2.1, ports: [{number + 1}]}}\n"
    return (text + "# " + "x" * kept.SMALLEST).encode()


@pytest.mark.parametrize("text", [EVERYTHING, *(path.read_text() for path in EXAMPLES)])
def test_the_same_settings_come_back(place: Path, text: str) -> None:
    settings = parse(text, "xenlb.yaml")
    kept.remember(place, text.encode(), settings)
    assert kept.recall(place, text.encode()) == settings


def test_no_field_is_forgotten() -> None:
    """Whoever adds a field has to write it there too, and into EVERYTHING."""
    settings = parse(EVERYTHING, "xenlb.yaml")
    told = {
        field.name: {getattr(service, field.name) for service in settings.services}
        for field in fields(ServiceSettings)
    }
    assert [name for name, values in told.items() if len(values) < 2] == []
    assert {field.name for field in fields(Settings)} == {
        "uris",
        "keepalive",
        "networks",
        "listen",
        "director",
        "services",
        "warnings",  # which plan and apply do not show
    }
    assert {f.name for f in fields(Director)} == {"interface", "addresses", "sysctls"}
    members = {"guest", "host", "address", "weight", "side", "network"}
    assert {f.name for f in fields(Member)} == members
    assert {f.name for f in fields(Port)} == {"number", "protocol"}
    assert {f.name for f in fields(Tunnel)} == {"type", "port", "checksum"}
    assert {f.name for f in fields(DrainPolicy)} == {"timeout", "until", "udp", "shutdown_grace"}
    sides = {service.side for service in settings.services}
    sides |= {m.side for s in settings.services for m in s.servers if m.side is not None}
    told = {f.name: {getattr(side, f.name) for side in sides} for f in fields(GuestSide)}
    assert [name for name, values in told.items() if len(values) < 2] == []
    checks = [check for service in settings.services for check in service.checks]
    told = {f.name: {getattr(check, f.name) for check in checks} for f in fields(Check)}
    assert [name for name, values in told.items() if len(values) < 2] == []
    assert {type(check.asks) for check in checks} == set(get_args(Asks))


def test_other_bytes_are_read_anew(place: Path) -> None:
    data = large()
    kept.remember(place, data, parse(data.decode(), "x"))
    assert kept.recall(place, data + b"\n") is None
    assert kept.recall(place, data[:-1]) is None


def spoil(place: Path, doubt: str) -> None:
    match doubt:
        case "others may write it":
            place.chmod(0o602)
        case "its group may write it":
            place.chmod(0o620)
        case "others may write the folder":
            place.parent.chmod(0o777)
        case "a symbolic link":
            place.rename(place.with_name("else"))
            place.symlink_to("else")
        case "a folder":
            place.unlink()
            place.mkdir()
        case "a pipe":
            place.unlink()
            os.mkfifo(place)
        case _:
            old, new = BYTES[doubt]
            data = place.read_bytes()
            assert old in data
            place.write_bytes(data.replace(old, new))


BYTES = {
    "of another xenlb": (b"xenlb 0", b"xenlb 9"),
    "no JSON": (b'"services"', b'"services'),
    "not UTF-8": (b'"services"', b'"s\xffrvices"'),
    "another shape": (b'"services"', b'"service"'),
    "an unknown field": (b'"name"', b'"nome"'),
}
DOUBTS = [
    *("others may write it", "its group may write it", "others may write the folder"),
    *("a symbolic link", "a folder", "a pipe"),
]


@pytest.mark.parametrize("doubt", [*DOUBTS, *BYTES])
def test_doubts(place: Path, doubt: str) -> None:
    data = large()
    kept.remember(place, data, parse(data.decode(), "x"))
    assert kept.recall(place, data) is not None
    spoil(place, doubt)
    assert kept.recall(place, data) is None


@pytest.mark.parametrize("length", [0, 10, 1000, -20, -1])
def test_cut_short(place: Path, length: int) -> None:
    data = large()
    kept.remember(place, data, parse(data.decode(), "x"))
    place.write_bytes(place.read_bytes()[:length])
    assert kept.recall(place, data) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_another_owner(place: Path) -> None:
    data = large()
    kept.remember(place, data, parse(data.decode(), "x"))
    os.chown(place, 65534, -1)
    assert kept.recall(place, data) is None
    os.chown(place, 0, -1)
    assert kept.recall(place, data) is not None
    os.chown(place.parent, 65534, -1)
    assert kept.recall(place, data) is None


def test_nothing_is_kept_where_others_write(place: Path) -> None:
    place.parent.chmod(0o777)
    data = large()
    kept.remember(place, data, parse(data.decode(), "x"))
    assert list(place.parent.iterdir()) == []


def test_a_file_is_read_once(place: Path, tmp_path: Path) -> None:
    state = place.with_name("state.json")
    file = tmp_path / "xenlb.yaml"
    file.write_bytes(large())
    first = kept.load(file, beside=state, keep=False)
    assert not place.exists()
    assert kept.load(file, beside=state, keep=True) == first
    assert place.stat().st_mode & 0o777 == 0o600
    assert kept.load(file, beside=state, keep=False) == first
    file.write_bytes(large(2))
    assert len(kept.load(file, beside=state, keep=False).services) == 2
    file.write_bytes(large() + b"\nnonsense: 1")
    with pytest.raises(ConfigError, match="nonsense"):
        kept.load(file, beside=state, keep=True)


@pytest.mark.parametrize("text", ["services: {}", "nonsense: 1"])
def test_a_small_file_is_not_kept(place: Path, tmp_path: Path, text: str) -> None:
    file = tmp_path / "xenlb.yaml"
    file.write_text(text)
    try:
        kept.load(file, beside=place.with_name("state.json"), keep=True)
    except ConfigError:
        assert text == "nonsense: 1"
    assert not place.exists()


def test_no_file_no_settings(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        kept.load(tmp_path / "none.yaml", beside=place.with_name("state.json"), keep=True)
