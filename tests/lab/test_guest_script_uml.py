"""guest.sh makes real servers, of what is compiled for them: traffic through IPVS tells.

The kernel here has tunnels and iptables, and no nft.
"""

from __future__ import annotations

from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import xenlb.guestside.render
from xenlb.guestside.requirements.compile import ServiceBinding, compile_needs
from xenlb.guestside.requirements.needs import settings_lines
from xenlb.ipvs.table import Family, Forwarding, Tunnel, TunnelChecksum, TunnelType, family_of
from xenlb.model.guest_side import GuestSide, ReturnPath
from xenlb.model.settings import Port, ServiceSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.host import Result
    from tests.lab.netns import NetNs
    from tests.lab.uml import ServerNs, UmlLab

SCRIPT = Path(xenlb.guestside.render.__file__).parent / "templates" / "guest.sh"
GATEWAYS = {Family.INET: ip_address("10.0.0.1"), Family.INET6: ip_address("fd00:10::1")}
V4, V6 = "192.0.2.15", "2001:db8::15"
OWN4, OWN6 = "10.0.0.51", "fd00:10::51"
GRE = Tunnel(type=TunnelType.GRE)
GUE = Tunnel(type=TunnelType.GUE, port=6080)
GRE_CHECKED = Tunnel(type=TunnelType.GRE, checksum=TunnelChecksum.CHECKSUM)


def compiled(
    vip: str,
    own: str,
    *,
    tunnel: Tunnel | None = None,
    forwarding: Forwarding = Forwarding.TUNNEL,
    side: GuestSide | None = None,
) -> str:
    address = ip_address(vip)
    service = ServiceSettings(
        name="web",
        address=address,
        family=family_of(address),
        ports=(Port(number=80),),
        forwarding=forwarding,
        tunnel=tunnel,
    )
    place = ServiceBinding(
        service=service,
        side=side or GuestSide(),
        address=ip_address(own),
        gateways=GATEWAYS,
    )
    return "\n".join(["xenlb 1", *settings_lines(compile_needs([place])), ""])


def guest(server: ServerNs, *arguments: str, given: str | None = None) -> Result:
    root = f"/run/lab/root-{server.name}"
    server.run(["mkdir", "-p", f"{root}/run", f"{root}/etc"])
    return server.lab.run(
        server.argv(["env", f"XENLB_GUEST_ROOT={root}", "dash", str(SCRIPT), *arguments]),
        input=given,
        check=False,
    )


@pytest.fixture(scope="module")
def client(uml: UmlLab) -> NetNs:
    uml.accept_gatewaying_replies()
    uml.run("modprobe -a ipip sit")
    for vip in (V4, V6):
        uml.add_vip(vip)
    return uml.client("asker", "192.0.2.151", address6="fd00:2::151")


@pytest.fixture(scope="module")
def server(uml: UmlLab) -> ServerNs:
    """One for all tests: each leaves it as it was."""
    server = uml.server_ns("server51", OWN4, address6=OWN6)
    server.serve("0.0.0.0:80", "[::]:80")
    return server


@contextmanager
def balanced(uml: UmlLab, vip: str, own: str, how: str) -> Iterator[None]:
    """While this service is there."""
    bracketed = f"[{own}]:80" if ":" in own else f"{own}:80"
    uml.run(f"ipvsadm -A -t {target(vip)} -s rr")
    try:
        uml.run(f"ipvsadm -a -t {target(vip)} -r {bracketed} {how}")
        yield
    finally:
        uml.run(["ipvsadm", "-D", "-t", target(vip)])


def target(vip: str) -> str:
    return f"[{vip}]:80" if ":" in vip else f"{vip}:80"


def picture(server: ServerNs) -> str:
    """Without what comes and goes by itself: link-local addresses, and devices that are down, of
    modules."""
    return server.out(
        "ip -o link show up | cut -d' ' -f2; ip -o addr show scope global; ip rule; ip -6 rule; "
        "{ ip route show table all; ip -6 route show table all; } | grep -v -e fe80: -e ff00:; "
        "ip fou show; iptables-legacy -t mangle -S; ip6tables-legacy -t mangle -S; "
        "grep . /proc/sys/net/ipv4/conf/all/*"
    )


TUNNELS: dict[str, tuple[str, str, Tunnel | None, str]] = {
    "ipip": (V4, OWN4, None, "-i"),
    "6-in-4": (V6, OWN4, None, "-i"),
    "4-in-6": (V4, OWN6, None, "-i"),
    "6-in-6": (V6, OWN6, None, "-i"),
    "gre": (V4, OWN4, GRE, "-i --tun-type gre"),
    "gre-checked": (V4, OWN4, GRE_CHECKED, "-i --tun-type gre --tun-csum"),
    "gre-6-in-6-checked": (V6, OWN6, GRE_CHECKED, "-i --tun-type gre --tun-csum"),
    "gue": (V4, OWN4, GUE, "-i --tun-type gue --tun-port 6080 --tun-nocsum"),
    "gue-4-in-6": (V4, OWN6, GUE, "-i --tun-type gue --tun-port 6080 --tun-nocsum"),
}


QUICK = ("ipip", "gre", "gue", "6-in-4")


@pytest.mark.parametrize(
    "kind",
    [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.soak) for kind in TUNNELS],
)
def test_tunnels(uml: UmlLab, client: NetNs, server: ServerNs, kind: str) -> None:
    vip, own, tunnel, how = TUNNELS[kind]
    settings = compiled(vip, own, tunnel=tunnel)
    before = picture(server)
    with balanced(uml, vip, own, how):
        up = guest(server, "up", "-", given=settings)
        assert up.rc == 0, f"{up.out}{up.err}\n{settings}"
        again = guest(server, "up", "-", given=settings)
        assert (again.rc, again.out, again.err) == (0, "", "")
        assert client.fetch(target(vip)) == "server51"
        program = "ip6tables-legacy" if ":" in vip else "iptables-legacy"
        clamped = server.out(f"{program} -t mangle -nvxL XENLB-CLAMP").splitlines()[2]
        assert int(clamped.split()[0]) > 0, clamped
        assert guest(server, "down").rc == 0
    assert picture(server) == before


WAYS = {
    "mark": (V4, OWN4, ReturnPath.MARK),
    "mark-6": (V6, OWN6, ReturnPath.MARK),
    "rule": (V4, OWN4, ReturnPath.RULE),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_way_back_of_masquerading(
    uml: UmlLab, client: NetNs, server: ServerNs, way: str
) -> None:
    """A server whose default gateway is not the director, and is not even there."""
    vip, own, return_path = WAYS[way]
    server.run("ip route replace default via 10.0.0.99")
    server.run("ip -6 route replace default via fd00:10::99")
    # Strict: what comes from the director is looked up as its answer will be.
    server.run("echo 1 >/proc/sys/net/ipv4/conf/all/rp_filter")
    settings = compiled(
        vip, own, forwarding=Forwarding.MASQUERADE, side=GuestSide(return_path=return_path)
    )
    before = picture(server)
    with balanced(uml, vip, own, "-m"):
        with pytest.raises(AssertionError, match="connect"):
            client.fetch(target(vip), timeout=1)
        up = guest(server, "up", "-", given=settings)
        assert up.rc == 0, up.out
        again = guest(server, "up", "-", given=settings)
        assert (again.rc, again.out, again.err) == (0, "", "")
        assert client.fetch(target(vip)) == "server51"
        assert guest(server, "down").rc == 0
    assert picture(server) == before
