"""What operators use without xenlb, as its peers: keepalived, ldirectord, and a hook of libvirt.

They are set up as their manuals have it, keepalived with the quickest interval it takes. They are
given the sysctls that xenlb sets, so that what is compared is how servers are taken out, and the
director's addresses are put on by the lab.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tests.lab.host import LabHost, Process
from tests.lab.unpacked import program

KINDS = {"masquerade": ("NAT", "-m"), "gatewaying": ("DR", "-g")}

HEAD = """\
global_defs {
    router_id lab
}
"""
VIRTUAL_SERVER = """\
virtual_server {vip} {port} {{
    delay_loop {interval}
    lb_algo rr
    lb_kind {kind}
    protocol TCP
{servers}}}
"""
REAL_SERVER = """\
    real_server {address} {port} {{
        weight 1
        {check}
    }}
"""
TCP_CHECK = "TCP_CHECK { connect_timeout 1 }"
LDIRECTORD = """\
checkinterval=1
checktimeout=1
negotiatetimeout=1
supervised=yes
logfile="/run/lab/ldirectord-own.log"
virtual={vip}:80
{servers}    scheduler=rr
    protocol=tcp
    {check}
"""
# The hook of an operator: a guest that has stopped is a server no more; one that started is one.
HOOK = """\
#!/bin/sh
case $1 in
{cases}esac
case $2 in
started) ipvsadm -a -t {vip}:80 -r $address:80 {kind} -w 1 ;;
stopped) ipvsadm -d -t {vip}:80 -r $address:80 ;;
esac
exit 0
"""


def sysctls(lab: LabHost, method: str) -> None:
    lab.run("modprobe -a ip_vs ip_vs_rr")
    values = {"vs/expire_nodest_conn": "1", "vs/conn_reuse_mode": "3"}
    if method == "gatewaying":
        values |= {f"conf/{name}/rp_filter": "0" for name in ("all", "br0")}
        values["conf/br0/accept_local"] = "1"
    for name, value in values.items():
        lab.run(f"echo {value} >/proc/sys/net/ipv4/{name}")


def keepalived(
    lab: LabHost, checks: Mapping[str, str], *, method: str, addresses: Sequence[str]
) -> Process:
    """keepalived's checker at work, every second. `checks`: service address → how its servers are
    checked."""
    kind, _ = KINDS[method]
    configuration = HEAD
    for vip, check in checks.items():
        servers = "".join(
            REAL_SERVER.format(address=each, port=80, check=check) for each in addresses
        )
        configuration += VIRTUAL_SERVER.format(
            vip=vip, port=80, interval=1, kind=kind, servers=servers
        )
        lab.run(["ip", "address", "add", f"{vip}/32", "dev", "front0"])
    return _keepalived(lab, configuration)


def keepalived_many(
    lab: LabHost, services: Sequence[Sequence[str]], *, port: int, interval: int, check: str
) -> Process:
    """keepalived's checker with many services, of the servers at these addresses."""
    configuration = HEAD
    for number, addresses in enumerate(services):
        vip = f"198.18.{number // 250}.{number % 250 + 1}"
        servers = "".join(
            REAL_SERVER.format(address=address, port=port, check=check) for address in addresses
        )
        configuration += VIRTUAL_SERVER.format(
            vip=vip, port=port, interval=interval, kind="NAT", servers=servers
        )
    return _keepalived(lab, configuration)


def _keepalived(lab: LabHost, configuration: str) -> Process:
    lab.write("/run/lab/keepalived.conf", configuration)
    binary = str(program("keepalived", "/usr/sbin/keepalived"))
    command = [binary, "--dont-fork", "--check", "--log-console", "--log-detail"]
    return lab.spawn([*command, "-f", "/run/lab/keepalived.conf"], log="/run/lab/keepalived.log")


def ldirectord(
    lab: LabHost, vip: str, check: str, *, method: str, addresses: Sequence[str]
) -> Process:
    """ldirectord at work; it pauses a second after each round of checks."""
    kind = {"masquerade": "masq", "gatewaying": "gate"}[method]
    servers = "".join(f"    real={address}:80 {kind}\n" for address in addresses)
    configuration = LDIRECTORD.format(vip=vip, servers=servers, check=check)
    lab.write("/run/lab/ldirectord.cf", configuration)
    lab.run(["ip", "address", "add", f"{vip}/32", "dev", "front0"])
    binary = str(program("ldirectord", "/usr/sbin/ldirectord"))
    command = ["perl", binary, "/run/lab/ldirectord.cf", "start"]
    return lab.spawn(command, log="/run/lab/ldirectord.log")


def hook(lab: LabHost, *, vip: str, method: str, guests: dict[str, str], driver: str) -> None:
    """The hook, and the service it fills; before libvirtd starts. `guests`: name → address."""
    _, kind = KINDS[method]
    cases = "".join(f"{name}) address={address} ;;\n" for name, address in guests.items())
    text = HOOK.format(cases=f"{cases}*) exit 0 ;;\n", vip=vip, kind=kind)
    lab.write(f"/etc/libvirt/hooks/{driver}", text, 0o755)
    lab.run(["ip", "address", "add", f"{vip}/32", "dev", "front0"])
    lab.run(["ipvsadm", "-A", "-t", f"{vip}:80", "-s", "rr"])
