"""The inside of real guests of a real Xen, brought in order by the agent that `make install` has
put there, under systemd and its restrictions.

The tests are one story and run in this order, because each boot of a Debian costs the emulator up
to a minute; `make soak` tells all of it. Its guests:

    bare   Debian with ifupdown, defined without anything of xenlb; reached by ssh; in three
           services
    made   configures itself from the xenstore (`xenlb guest image` is in its image); has no sshd,
           and one address, whose default gateway drops what goes to the clients
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.lab.agent import ServiceAgent
from tests.lab.host import LabError, Result
from tests.lab.stages import unpacked
from tests.lab.xen import Client, DebianGuest, XenLab

BARE, MADE, ROUTER = "10.0.0.51", "10.0.0.52", "10.0.0.254"
# Of bare by gatewaying, tunnel and masquerading; of made by gatewaying, masquerading, and added.
DIRECT, WRAPPED, TRANSLATED = "192.0.2.10", "192.0.2.11", "192.0.2.12"
OWN, MARKED, LATE = "192.0.2.20", "192.0.2.21", "192.0.2.22"
CONFIG = f"""\
libvirt: {{uris: ["xen:///system"], keepalive: 3m}}
director: {{interface: front0}}
defaults:
  scheduler: rr
  check: {{type: tcp, interval: 5s, timeout: 4s, rise: 1, fall: 3}}
services:
  direct:
    address: {DIRECT}
    ports: [80]
    forwarding: gatewaying
    guest-side: {{delivery: ssh, on-boot: apply}}
    servers: [{{guest: bare, address: {BARE}}}]
  wrapped:
    address: {WRAPPED}
    ports: [80]
    forwarding: tunnel
    guest-side: {{delivery: ssh, on-boot: apply}}
    servers: [{{guest: bare, address: {BARE}}}]
  translated:
    address: {TRANSLATED}
    ports: [80]
    forwarding: masquerade
    guest-side: {{delivery: ssh, on-boot: apply, return-path: rule}}
    servers: [{{guest: bare, address: {BARE}}}]
  own:
    address: {OWN}
    ports: [80]
    forwarding: gatewaying
    guest-side: {{delivery: xenstore, on-boot: apply}}
    servers: [{{guest: made, address: {MADE}}}]
  marked:
    address: {MARKED}
    ports: [80]
    forwarding: masquerade
    guest-side: {{delivery: xenstore, on-boot: apply, return-path: gateway}}
    servers: [{{guest: made, address: {MADE}}}]
"""
WITH_MARKS = CONFIG.replace("return-path: gateway", "return-path: mark")
WITH_LATE = (
    WITH_MARKS
    + f"""\
  late:
    address: {LATE}
    ports: [80]
    forwarding: gatewaying
    guest-side: {{delivery: xenstore, on-boot: apply}}
    servers: [{{guest: made, address: {MADE}}}]
"""
)
WITHOUT_BOOT = CONFIG.replace("delivery: ssh, on-boot: apply", "delivery: ssh")

# The files of a guest, in its root.
FILES = """\
find etc usr/local var/lib/xenlb -printf '%p %M %U:%G %l\\n' 2>/dev/null | sort
find etc usr/local -type f -exec sha256sum {} + | sort -k 2
"""
# They, and what its kernel has: as it was before anybody came in by ssh.
TREE = f"""\
cd /
{{
{FILES}}} >"$1.files"
"""
TREE += """\
{
    ip -4 -o addr show | sed 's/ *valid_lft.*//'
    ip -4 route show table all
    ip -4 rule show
    nft list ruleset
} >"$1.kernel"
"""
BEFORE_SSH = """\
[Unit]
ConditionPathExists=!/root/before.files
After=networking.service
Before=ssh.service
[Service]
Type=oneshot
ExecStart=/bin/sh /root/tree /root/before
[Install]
WantedBy=multi-user.target
"""
# Without it each ssh costs the emulator ten seconds; the agent's own, as the guest boots, are whole
# connections: there is no such socket then.
MASTER = "Host 10.0.0.*\n    ControlPath /run/lab/ssh-%h\n"
# A message to xenstored as the kernel's documentation of the protocol has it: WRITE is 11.
WRITE_NONSENSE = """\
import struct, sys
data = sys.argv[1].encode() + b"\\0nonsense"
with open("/dev/xen/xenbus", "r+b", buffering=0) as store:
    store.write(struct.pack("=IIII", 11, 0, 0, len(data)) + data)
    kind, _, _, length = struct.unpack("=IIII", store.read(16))
    print(kind, store.read(length))
"""
# Of a line of tcpdump: the receiver's hardware address, the sender and the receiver.
SENT = re.compile(r" > (\S+), ethertype IPv4 \S+ length \d+: (\S+) > (\S+): ")


@dataclass
class Dom0:
    lab: XenLab
    agent: ServiceAgent
    bare: DebianGuest
    made: DebianGuest
    routed: Client
    beside: Client  # on the guests' bridge
    router: Client

    def guest(self, *arguments: str, check: bool = True) -> Result:
        return self.agent.xenlb("guest", *arguments, check=check, timeout=240)

    def log(self, guest: str) -> list[str]:
        """What the agent saw of a guest and did, in order."""
        return [
            each["text"]
            for each in self.agent.events()
            if each["guest"] == guest or guest_address(guest) in each["text"]
        ]

    def wait_weight(self, vip: str, address: str) -> None:
        self.lab.wait_until(
            lambda: f"-a -t {vip}:80 -r {address}:80 " in self.agent.table(),
            240,
            f"{address} to serve {vip}",
            every=1,
        )

    def wait_answer(self, client: Client, vip: str, name: str) -> None:
        def answers() -> bool:
            try:
                return client.fetch(f"{vip}:80") == name
            except AssertionError:
                return False

        self.lab.wait_until(answers, 120, f"{name} to answer at {vip}", every=1)

    def tree(self, name: str) -> tuple[list[str], list[str]]:
        """Files and kernel state of bare, as TREE has written them."""
        files, _, kernel = self.bare.run(
            f"cat /root/{name}.files; echo =; cat /root/{name}.kernel"
        ).out.partition("\n=\n")
        return files.splitlines(), kernel.splitlines()

    def tree_now(self, name: str) -> tuple[list[str], list[str]]:
        self.bare.run(f"sh /root/tree /root/{name}", timeout=120)
        return self.tree(name)

    def share_ssh(self) -> None:
        self.lab.run(["ssh", "-M", "-N", "-f", f"root@{BARE}"], timeout=120)


def guest_address(guest: str) -> str:
    return {"bare": BARE, "made": MADE}[guest]


@pytest.fixture(scope="module")
def dom0(xen: XenLab) -> Iterator[Dom0]:
    xen.reset()
    # Replies of the guests that have the service address go to the clients through Dom0.
    xen.accept_gatewaying_replies()
    agent = ServiceAgent(xen, CONFIG)
    agent.start(ready=120)
    story = Dom0(
        lab=xen,
        agent=agent,
        bare=xen.define_debian_guest(
            "bare",
            BARE,
            network="ifupdown",
            ssh=True,
            persistent=True,
            web="nginx",
            files={"/root/tree": TREE, "/etc/systemd/system/before-ssh.service": BEFORE_SSH},
            units=["before-ssh.service"],
        ),
        made=define_made(xen),
        routed=xen.client("routed", "192.0.2.100"),
        beside=xen.client("beside", "10.0.0.100", "bridge"),
        router=xen.server_ns("router", ROUTER),
    )
    # The kernel gives a new name space the host's setting, and the host forwards.
    story.router.run(["sysctl", "-qw", "net.ipv4.ip_forward=0"])
    xen.write("/etc/ssh/ssh_config.d/lab-master.conf", MASTER)
    xen.start(story.bare, story.made, serving=False)
    yield story
    xen.run("rm /etc/ssh/ssh_config.d/lab-master.conf")
    xen.reset()


def define_made(xen: XenLab) -> DebianGuest:
    """With what `xenlb guest image` gives in its own image, and enabled there."""
    xen.run("mkdir -p /run/lab; xenlb guest image --tar >/run/lab/image.tar")
    return xen.define_debian_guest(
        "made",
        MADE,
        gateway=ROUTER,
        web="nginx",
        files=unpacked(xen.read("/run/lab/image.tar")),
        units=["xenlb-guest.service", "xenlb-hold.service"],
    )


# By ssh -------------------------------------------------------------------------------------------


def test_a_bare_guest_gets_its_inside_and_only_then_weight(dom0: Dom0) -> None:
    for vip in (DIRECT, WRAPPED, TRANSLATED):
        dom0.wait_weight(vip, BARE)
    said = dom0.log("bare")
    for service, vip in (("direct", DIRECT), ("wrapped", WRAPPED), ("translated", TRANSLATED)):
        ready = said.index(f"ready for {service}")
        added = [n for n, text in enumerate(said) if f"ipvsadm -a -t {vip}:80" in text]
        assert len(added) == 1, said
        assert ready < added[0]
        assert dom0.routed.fetch(f"{vip}:80") == "bare"
    # The agent's ssh came in after this was written, and everything is its work.
    before, _ = dom0.tree("before")
    assert not [line for line in before if "xenlb" in line]


@pytest.mark.soak
def test_an_operator_sees_that_nothing_is_to_be_done(dom0: Dom0) -> None:
    dom0.share_ssh()
    # It verifies too; the commands one by one are in test_inside_uml.py, in each `make test`.
    assert dom0.guest("plan", "bare").out == ""


@pytest.mark.soak
def test_what_is_broken_is_named_and_mended(dom0: Dom0) -> None:
    # Its watch would mend most of it within three seconds.
    dom0.bare.run(
        f"systemctl stop xenlb-guest;"
        f"ip addr del {DIRECT}/32 dev lo; ip addr add {DIRECT}/24 dev lo;"
        "sysctl -qw net.ipv4.conf.all.arp_ignore=0 net.ipv4.conf.tunl0.rp_filter=1;"
        f"ip rule del from {BARE} table 731"
    )
    verified = dom0.guest("verify", "bare", check=False)
    assert verified.rc == 1
    expected = (
        "arp_ignore of eth0 is 0 (all: 0, eth0: 0), wanted 1: the guest answers ARP requests",
        "rp_filter of tunl0 is 1 (all: 0, tunl0: 1), wanted 0: packets from the tunnel",
        f"{DIRECT} is on lo with prefix length 24, not 32: the guest answers ARP for all of that",
        f"packets from {BARE}",
        "xenlb-guest is not active",
    )
    for sentence in expected:
        assert sentence in verified.err, verified.err
    assert "bare: 5 differences found" in verified.err
    # An address that xenlb has not given is not xenlb's to take; it says how.
    (cure,) = re.findall(rf"remove it: (ip addr del {DIRECT}/24 dev lo)", verified.err)
    dom0.bare.run(cure)
    assert dom0.guest("apply", "bare").out == "bare has all that it needs\n"
    for vip in (DIRECT, WRAPPED, TRANSLATED):
        assert dom0.routed.fetch(f"{vip}:80") == "bare"


# By the xenstore ----------------------------------------------------------------------------------


def test_a_guest_that_configures_itself_is_let_in_after_its_answer(dom0: Dom0) -> None:
    dom0.wait_weight(OWN, MADE)
    said = dom0.log("made")
    added = next(n for n, text in enumerate(said) if f"ipvsadm -a -t {OWN}:80" in text)
    assert said.index("ready for own") < added
    answer = f"xenstore-read /local/domain/{dom0.made.domid()}/data/xenlb-guest"
    assert re.fullmatch("[0-9a-f]{16} ok\n", dom0.lab.out(answer))
    assert dom0.beside.fetch(f"{OWN}:80") == "made"


def test_a_guest_cannot_write_its_own_settings(dom0: Dom0) -> None:
    dom0.made.write("/root/write.py", WRITE_NONSENSE)
    wrote = dom0.made.run("python3 /root/write.py vm-data/xenlb/serial").out
    assert wrote.strip() == "16 b'EACCES\\x00'"


@pytest.mark.soak
def test_marks_bring_replies_back_and_leave_the_guests_own_connections_alone(dom0: Dom0) -> None:
    """Its replies go by its default gateway, which drops them, until they have marks."""
    dom0.wait_weight(MARKED, MADE)
    with pytest.raises(AssertionError):
        dom0.routed.fetch(f"{MARKED}:80", timeout=5)
    dom0.agent.configure(WITH_MARKS)
    dom0.wait_answer(dom0.routed, MARKED, "made")

    capture = "/run/lab/made.capture"
    vif = f"vif{dom0.made.domid()}.0"
    sniffer = dom0.lab.spawn(
        ["tcpdump", "-e", "-n", "-l", "-i", vif, "tcp and ether src", dom0.made.mac], log=capture
    )
    dom0.lab.wait_until(f"grep -q 'listening on' {capture}", 60, "tcpdump")
    assert dom0.routed.fetch(f"{MARKED}:80") == "made"
    # Nobody answers; its first packet is all that is needed.
    dom0.made.run("busybox nc -w 2 192.0.2.100 4242 </dev/null", check=False)
    dom0.lab.wait_until(f"grep -q '192.0.2.100.4242: ' {capture}", 60, "the guest's connection")
    sniffer.terminate()

    sent = [
        (line, found.groups())
        for line in dom0.lab.text(capture).splitlines()
        if (found := SENT.search(line))
    ]
    # The one that had no marks may be answered still, in vain.
    served = {to for line, (_, _, to) in sent if "HTTP/1.1 200" in line}
    replies = {mac for _, (mac, source, to) in sent if source == f"{MADE}.80" and to in served}
    asked = {mac for _, (mac, _, to) in sent if to == "192.0.2.100.4242"}
    assert replies == {mac_of(dom0.lab, "br0")}
    assert asked == {mac_of(dom0.router, "eth0")}


def mac_of(where: XenLab | Client, interface: str) -> str:
    (link,) = json.loads(where.out(["ip", "-json", "link", "show", interface]))
    return str(link["address"])


@pytest.mark.soak
def test_an_edit_reaches_a_running_guest_without_anybody_logging_in(dom0: Dom0) -> None:
    dom0.agent.configure(WITH_LATE)
    dom0.wait_weight(LATE, MADE)
    for vip in (OWN, LATE):
        assert dom0.beside.fetch(f"{vip}:80") == "made"
    with pytest.raises(LabError):
        dom0.lab.run(["ssh", "-o", "BatchMode=yes", f"root@{MADE}", "true"], timeout=60)


@pytest.mark.soak
def test_an_operator_commands_a_guest_that_configures_itself(dom0: Dom0) -> None:
    place = f"/local/domain/{dom0.made.domid()}/vm-data/xenlb"
    hold = dom0.made.run("cat /etc/xenlb-hold.conf").out
    assert f"watch={OWN} 80" in hold
    # The agent has given it what the command would, and it has taken that up.
    assert dom0.guest("plan", "made").out == ""

    assert dom0.guest("remove", "made").out == (
        f"write {place}\n"
        "made has nothing of xenlb but the programs of its image, by its own report\n"
    )
    left = dom0.made.run("ip -4 addr show lo; ip rule; nft list tables; cat /etc/xenlb-hold.conf")
    for each in (OWN, LATE, "731", "xenlb", "watch="):
        assert each not in left.out
    assert "tell=xenstore" in left.out

    dom0.made.run("python3 /root/write.py data/xenlb-guest")
    verified = dom0.guest("verify", "made", "--json", check=False)
    found = json.loads(verified.out)
    assert (verified.rc, found["report"]) == (1, {"state": "broken", "settings": None})
    messages = [each["message"] for each in found["differences"]]
    assert messages == [
        "its settings in xenstore differ from what it needs now",
        "its report has an unknown form: 'nonsense'",
    ]
    planned = dom0.guest("plan", "made", "--json", check=False)
    settings = json.loads(planned.out)["settings"]
    assert (planned.rc, settings["path"]) == (1, place)
    assert f"+address {OWN} lo" in settings["changes"]

    assert dom0.guest("apply", "made").out == (
        f"write {place}\nmade has all that it needs, by its own report\n"
    )
    for vip in (OWN, LATE):
        assert dom0.beside.fetch(f"{vip}:80") == "made"
    assert dom0.made.run("cat /etc/xenlb-hold.conf").out == hold
    dom0.made.destroy()  # it leaves the processor to the other


# Reboots and an end -------------------------------------------------------------------------------


@pytest.mark.soak
def test_it_outlives_its_interface(dom0: Dom0) -> None:
    again = "{ ifdown eth0 && ifup eth0; } >/root/again 2>&1 </dev/null; echo $? >/root/status"
    # The way to the guest's shell goes by eth0.
    dom0.bare.run(f"setsid sh -c '{again}' </dev/null >/dev/null 2>&1 &")
    dom0.lab.wait_until(
        lambda: dom0.bare.run("cat /root/status", check=False).out.strip() == "0",
        90,
        again,
        every=2,
    )
    for vip in (DIRECT, WRAPPED, TRANSLATED):
        dom0.wait_weight(vip, BARE)
        assert dom0.routed.fetch(f"{vip}:80") == "bare"


@pytest.mark.soak
def test_it_outlives_a_reboot(dom0: Dom0) -> None:
    files, _ = dom0.tree_now("applied")
    marks = len(dom0.log("bare"))
    domid = dom0.bare.domid()
    dom0.bare.reboot()
    dom0.bare.wait_rebooted(domid)
    for vip in (DIRECT, WRAPPED, TRANSLATED):
        dom0.wait_weight(vip, BARE)
        assert dom0.routed.fetch(f"{vip}:80") == "bare"
    said = dom0.log("bare")[marks:]
    added = next(n for n, text in enumerate(said) if f"ipvsadm -a -t {DIRECT}:80" in text)
    assert said.index("ready for direct") < added, said
    assert dom0.tree_now("rebooted")[0] == files


@pytest.mark.soak
def test_removed_it_is_as_it_was(dom0: Dom0) -> None:
    dom0.agent.configure(WITHOUT_BOOT)
    dom0.share_ssh()
    said = dom0.guest("remove", "bare").out
    assert said.endswith("bare has nothing of xenlb\n"), said
    assert dom0.tree_now("removed") == dom0.tree("before")
    # Set at this boot by the guest's own configuration, from before which nobody knows them.
    conf = "/proc/sys/net/ipv4/conf/all"
    assert dom0.bare.run(f"cat {conf}/arp_ignore {conf}/arp_announce").out.split() == ["0", "0"]


@pytest.mark.soak
def test_its_files_come_while_it_is_off(dom0: Dom0) -> None:
    """By its disk, mounted in Dom0. Nobody asks the agent to look inside: WITHOUT_BOOT."""
    off = ("bare", "--delivery", "rootfs")
    refused = dom0.guest("apply", *off, check=False)
    assert (refused.rc, "bare is running; its files can be changed" in refused.err) == (1, True)
    dom0.bare.shutdown()
    dom0.bare.wait_gone()
    with dom0.bare.mounted() as root:
        here = (*off, "--root", root)
        files = f"cd {root}; {FILES}"
        before = dom0.lab.out(files)
        assert dom0.guest("apply", *here).out.endswith("bare has all that it needs\n")
        assert dom0.guest("plan", *here).out == ""
        assert dom0.guest("remove", *here).out.endswith("bare has nothing of xenlb\n")
        assert dom0.lab.out(files) == before
        dom0.guest("apply", *here)
    dom0.bare.start()
    dom0.bare.wait_serving()
    for vip in (DIRECT, WRAPPED, TRANSLATED):
        dom0.wait_weight(vip, BARE)
        dom0.wait_answer(dom0.routed, vip, "bare")
    dom0.share_ssh()
    assert dom0.guest("verify", "bare").out == "bare has all that it needs\n"
