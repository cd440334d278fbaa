"""Guests of the Xen lab that get their addresses from the programs real guests have, with udev and
modules of their own: what is delivered into them can be used, and outlives a reboot.

Few, because each boot costs half a minute.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.debian import ssh
from tests.lab.xen import DebianGuest, XenLab

# nft's `rt mtu` and xt_TCPMSS are what clamps segments to a tunnel; the marks are for replies.
RULES = """
set -e
modprobe ipip
ip -br addr show dev tunl0
nft -f - <<END
table inet lab {
    chain marks {
        type filter hook prerouting priority mangle
        iifname "tunl0" ct mark set 7
        meta mark set ct mark
    }
    chain segments {
        type route hook output priority mangle
        ct mark 7 tcp flags syn tcp option maxseg size set 1400
        ct mark 7 tcp flags syn tcp option maxseg size set rt mtu
    }
}
END
nft list table inet lab | grep -c 'ct mark'
iptables -t mangle -A PREROUTING -j CONNMARK --restore-mark
iptables-legacy -t mangle -A OUTPUT -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
for module in fou ip6_tunnel ip_gre sit dummy; do modprobe $module; done
"""


@pytest.fixture
def lab(xen: XenLab) -> Iterator[XenLab]:
    xen.reset()
    yield xen
    xen.reset()


def check(guest: DebianGuest, first: str, second: str) -> None:
    """It has its addresses and its gateways, and none of them twice."""
    said = guest.run(
        "ip -br addr show dev eth0 scope global; ip route show default; ip -6 route show default"
    ).out.split()
    assert [word for word in said if "/" in word] == [f"{first}/24", f"{second}/64"]
    assert [word for word in said if word.endswith(".1") or word.endswith("::1")] == [
        "10.0.0.1",
        "fd00:10::1",
    ]


def test_what_is_delivered_can_be_used_and_outlives_a_reboot(lab: XenLab) -> None:
    old = lab.define_debian_guest(
        "ifupdown",
        "10.0.0.51",
        address6="fd00:10::51",
        network="ifupdown",
        ssh=True,
        persistent=True,
    )
    new = lab.define_debian_guest(
        "netplan", "10.0.0.52", address6="fd00:10::52", network="netplan", web="nginx", ssh=True
    )
    lab.start(old, new)
    client = lab.client("alice", "192.0.2.100", address6="fd00:2::100")
    for guest in (old, new):
        assert client.fetch(f"{guest.address}:80") == guest.name
        check(guest, guest.address, guest.address.replace("10.0.0.", "fd00:10::"))

    assert ssh.run(lab, old.address, RULES).split() == ["tunl0@NONE", "DOWN", "4"]
    ssh.run(lab, old.address, "ifdown eth0 && ifup eth0 && echo kept >/root/kept")
    ssh.run(lab, new.address, "netplan apply && networkctl reconfigure eth0")
    for guest in (old, new):
        assert client.fetch(f"{guest.address}:80") == guest.name
    first = old.domid()
    old.reboot()
    old.wait_rebooted(first)
    assert ssh.run(lab, old.address, "cat /root/kept; hostname").split() == ["kept", "ifupdown"]
    check(old, "10.0.0.51", "fd00:10::51")

    old.shutdown()
    old.wait_gone()
    with old.mounted() as root:
        assert lab.text(f"{root}/root/kept") == "kept\n"
        lab.write(f"{root}/root/kept", "from Dom0\n")
    old.start()
    old.wait_serving()
    assert ssh.run(lab, old.address, "cat /root/kept") == "from Dom0\n"
