"""The agent as the installed service on a real Xen Dom0: the life of real guests, event by event.

`make install` has put it there; systemd runs it. Each thing that can happen to a guest is made to
happen, once, and everything that tells of it is recorded: the agent's journal and status,
`ipvsadm -Sn`, every change of the kernel's table (observer.py) and the calls of libvirt's hook
script. What the agent makes of it is asserted as it happens; the orders and fields that
model/guest.py builds on, at the end. Times are printed (-s shows them); none is asserted, because
the machine that runs the tests may be busy.

The tests are one story and run in this order. Its guests:

    web1    serves from the first test to the last but one; reports its address itself
    web2    has its address in its interface's XML; takes a while to serve
    web3    its address is known from the neighbour table only
    brief   a domain without a definition (virsh create); ignores a request to shut down
    deaf*   ignore it, too, and their service gives them three seconds to follow
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.lab.agent import ServiceAgent
from tests.lab.host import Result
from tests.lab.netns import NetNs
from tests.lab.timings import Figures, Observer, Seen
from tests.lab.watched import Servers, parsed, shown
from tests.lab.xen import Guest, XenLab
from xenlb.hypervisor.libvirt.hooks import HookCall, parse_line

SHUTDOWNS = DRAINS = 30
HOOKS = "/run/xenlb/hooks"

WEB, DEAF, CLUB = "192.0.2.10", "192.0.2.11", "192.0.2.12"
CONFIG = """\
libvirt: {uris: ["xen:///system"], keepalive: 3m}
director: {interface: front0}
defaults:
  scheduler: rr
  forwarding: masquerade
  check: {type: tcp, interval: 5s, timeout: 4s, rise: 1, fall: 10}
services:
  web:
    address: 192.0.2.10
    ports: [80]
    weight: WEIGHT
    drain: {shutdown-grace: 1h}
    servers: [{guest: "web*"}, {guest: brief}]
  deaf:
    address: 192.0.2.11
    ports: [80]
    drain: {shutdown-grace: 3s}
    servers: [{guest: "deaf*"}]
  club:
    address: 192.0.2.12
    ports: [80]
    from-metadata: true
"""
VIPS = (WEB, DEAF, CLUB)
# How the agent's journal tells of the events of a guest's life; `word` is kind or reason.
LIFE = re.compile(
    r"(?P<event>asked) (?:for|to) (?P<word>\S+) \(domain (?P<domain>\d+)\)"
    r"|(?P<stopped>stopped): (?P<why>.*?) \(domain (?P<old>\d+)\)"
    r"|(?P<other>gone|started|paused|resumed)(?: \(domain (?P<number>\d+)\))?"
)
# CAP_CHOWN, KILL, SETGID, SETUID, NET_ADMIN and NET_RAW, as bits of /proc/PID/status
CAPABILITIES = f"{1 << 0 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 12 | 1 << 13:016x}"


def config(weight: int = 1) -> str:
    return CONFIG.replace("WEIGHT", str(weight))


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """An event of a guest's life, as the agent's journal has it."""

    event: str
    why: str = ""
    domain: int | None = None

    @classmethod
    def read(cls, text: str) -> Told | None:
        found = LIFE.match(text)
        if found is None:
            return None
        domain = found["domain"] or found["old"] or found["number"]
        return cls(
            event=found["event"] or found["stopped"] or found["other"],
            why=found["word"] or found["why"] or "",
            domain=int(domain) if domain else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A part of a guest's life, which lasts until the next step of that guest."""

    name: str
    guest: Guest
    mark: int  # of the observer
    calls: int  # of the hook script before, of all guests
    domain: int | None  # the guest's number before


@dataclass
class Dom0:
    """Everything of the story."""

    lab: XenLab
    agent: ServiceAgent
    observer: Observer
    client: NetNs
    guests: dict[str, Guest]
    figures: Figures = field(default_factory=Figures)
    # Guests whose death was seen, since which mark.
    dead: list[tuple[int, Guest]] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    # Of the hook script, before the agent that reads them was ended for the first time.
    calls: list[HookCall] = field(default_factory=list)

    # --- the record ------------------------------------------------------------------------------

    def begin(self, name: str, guest: Guest) -> None:
        """Begins a step of the guest's life."""
        self.steps.append(
            Step(
                name=name,
                guest=guest,
                mark=self.observer.mark(),
                calls=len(self.hook_calls()),
                domain=guest.domid(),
            )
        )

    def step(self, name: str) -> Step:
        """The step of that name; a test that needs it fails where the story did not get there."""
        found = [step for step in self.steps if step.name == name]
        assert found, f"the story has no step {name!r}"
        return found[-1]

    def told(self, step: Step) -> list[Told]:
        """What the agent heard of the guest's life in a step, without what it heard before."""
        later = [s.mark for s in self.steps if s.guest is step.guest and s.mark > step.mark]
        told: list[Told] = []
        for seen in self.observer.seen[step.mark : min(later, default=None)]:
            if seen.what == "agent" and seen.data["guest"] == step.guest.name:
                event = Told.read(seen.data["text"])
                if event is not None and event not in told:
                    told.append(event)
        return told

    def called(self, step: Step) -> list[tuple[str, int | None]]:
        """Operation and domain number of the hook script's calls for the guest in a step."""
        later = [s.calls for s in self.steps if s.guest is step.guest and s.mark > step.mark]
        return [
            (call.operation, call.domid)
            for call in self.calls[step.calls : min(later, default=None)]
            if str(call.uuid) == step.guest.uuid
        ]

    def hook_calls(self) -> list[HookCall]:
        """All calls of the hook script since the agent has made the file for them."""
        found = [parse_line(line) for line in self.lab.read(HOOKS).splitlines()]
        assert None not in found, found
        return [call for call in found if call is not None]

    # --- what is ---------------------------------------------------------------------------------

    def kernel(self, vip: str = WEB) -> dict[str, int]:
        """Weights by address of the servers of a service, as ipvsadm says."""
        servers: Servers = parsed(self.agent.table()).get(f"-t {vip}:80", {})
        return {place.removesuffix(":80"): weight for place, (_, weight) in servers.items()}

    def entry(self, guest: Guest, service: str = "web") -> dict[str, Any] | None:
        """What the status says of a guest that libvirt has."""
        for each in self.observer.status()["services"]:
            if each["name"] == service:
                for server in each["servers"]:
                    if server["guest"] == guest.name and server["uuid"] is not None:
                        found: dict[str, Any] = server
                        return found
        return None

    def agrees(self) -> None:
        """`xenlb status --json` shows what `ipvsadm -Sn` shows."""

        def both() -> bool:
            said = json.loads(self.agent.xenlb("status", "--json").out)
            return shown(said) == parsed(self.agent.table())

        self.lab.wait_until(both, 60, "status and table to agree")

    def expect(
        self, guest: Guest, phase: str, weight: int | None, *, vip: str = WEB, service: str = "web"
    ) -> dict[str, Any]:
        """The guest is in this phase by the status, and with that weight in the kernel's table
        (None: not in it), by ipvsadm and by the status."""
        entry = self.entry(guest, service)
        assert entry is not None, f"{guest.name} is not in the status"
        got = (entry["phase"], entry["in_table"], entry["weight"])
        assert got == (phase, weight is not None, weight or 0), entry
        assert self.kernel(vip).get(guest.address) == weight
        return entry

    def wait_phase(self, guest: Guest, phase: str, service: str = "web") -> dict[str, Any]:
        def there() -> dict[str, Any] | None:
            entry = self.entry(guest, service)
            return entry if entry is not None and entry["phase"] == phase else None

        found = self.lab.wait_until(there, 120, f"{guest.name} to be {phase}", every=0.3)
        assert isinstance(found, dict)
        return found

    # --- what happens ----------------------------------------------------------------------------

    def boot(
        self,
        guest: Guest,
        *,
        start: Callable[[], Result] | None = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Seen:
        """Starts a guest; returns when it is in the table, with its times noted. `meanwhile` is
        called when libvirt has said that it is started."""
        mark = self.observer.mark()
        answers = self.observer.knock(guest.address, guest.port)
        result = (start or guest.start)()
        started = self.observer.wait_note(mark, "guest-started", guest=guest.name)
        meanwhile()
        added = self.observer.wait_change(mark, guest.address, "add")
        assert added.data["weight"] > 0
        served = answers()
        self.figures.note(
            "boot: virsh start → in the table", added.at - self.observer.started(result)
        )
        self.figures.note("boot: STARTED heard → in the table", added.at - started.at)
        self.figures.note("boot: first answer → in the table", added.at - served)
        return added

    def ensure(self, guest: Guest) -> None:
        """Lets a test begin with a guest that serves, whatever became of the one before."""
        if not guest.alive():
            self.boot(guest)

    def quiesced(self, mark: int, guest: Guest, result: Result, how: str) -> Seen:
        """Waits for weight 0 after a request, and notes how long it took."""
        quiet = self.observer.wait_change(mark, guest.address, "edit", 0)
        line = self.observer.wait_note(mark, "table-changed", f"-r {guest.address}:80", "-w 0")
        # libxl clears the word itself when a domain is made: the request is the last one before.
        words = self.observer.find(
            mark, "store", lambda s: s.data["path"].endswith("shutdown") and s.at < quiet.at
        )
        note = self.figures.note
        note(f"{how}: command began → weight 0", quiet.at - self.observer.started(result))
        if words:
            note(f"{how}: word in xenstore → weight 0", quiet.at - words[0].at)
        note(f"{how}: the agent's own share", own_share(line))
        note(f"{how}: weight 0 → command returned", self.observer.ended(result) - quiet.at)
        return quiet

    def removed(self, mark: int, guest: Guest, *, vip: str = WEB) -> Seen:
        """Waits for the removal of a guest that dies, and notes how long it took."""
        gone = self.observer.wait_change(mark, guest.address, "del")
        line = self.observer.wait_note(
            mark, "table-changed", f"ipvsadm -d -t {vip}:80 -r {guest.address}:80"
        )
        deaths = [
            seen
            for seen in self.observer.seen[mark : self.observer.seen.index(line)]
            if seen.what == "agent"
            and seen.data["guest"] == guest.name
            and seen.data["kind"] in {"guest-gone", "guest-stopped"}
        ]
        assert deaths, "removed before its death was known"
        # The observer hears of it beside the agent, on a busy machine later.
        releases = self.observer.find(
            mark, "store", lambda s: s.data["path"] == "@releaseDomain" and s.at < gone.at
        )
        if releases:
            self.figures.note("death: @releaseDomain → removed", gone.at - releases[0].at)
        self.figures.note("death: the agent's own share", own_share(line))
        self.dead.append((mark, guest))
        return gone

    def wait_all_told(self) -> None:
        """Every death is told twice, by xenstore (gone) and by libvirt (stopped), seconds apart;
        the second time it changes nothing."""
        for mark, guest in self.dead:
            gone = self.observer.wait_note(mark, "guest-gone", guest=guest.name)
            domain = f"(domain {domain_of(gone)})"
            stopped = self.observer.wait_note(mark, "guest-stopped", domain, guest=guest.name)
            first, second = sorted((gone, stopped), key=self.observer.seen.index)
            assert "late" not in first.data, first.text
            assert second.data["late"], second.text
            if first is gone:
                self.figures.note("death: heard from xenstore → from libvirt", stopped.at - gone.at)
        self.dead.clear()


def own_share(line: Seen) -> float:
    """`ipvsadm -e … (1.2 ms after the event)`: from the moment the agent has read the request or
    the death, to the kernel's answer."""
    found = re.search(r"\((\S+) ms after the event\)", line.text)
    assert found, line.text
    return float(found[1]) / 1000


def domain_of(line: Seen) -> str:
    found = re.search(r"\(domain (\d+)\)", line.text)
    assert found, line.text
    return found[1]


@pytest.fixture(scope="module")
def dom0(xen: XenLab) -> Iterator[Dom0]:
    xen.reset()
    define = xen.define_guest
    guests = {
        "web1": define("web1", "10.0.0.11"),
        "web2": define(
            "web2",
            "10.0.0.12",
            report_address=False,
            address_in_xml=True,
            start_delay=10,
        ),
        "web3": define("web3", "10.0.0.13", report_address=False),
        "deaf1": define("deaf1", "10.0.0.21", address_in_xml=True, ignore_shutdown=True),
        "deaf2": define("deaf2", "10.0.0.22", address_in_xml=True, ignore_shutdown=True),
        "brief": define("brief", "10.0.0.31", address_in_xml=True, ignore_shutdown=True),
    }
    observer = Observer(xen)
    observer.start()
    agent = ServiceAgent(xen, config())
    agent.start(ready=120)
    story = Dom0(
        lab=xen,
        agent=agent,
        observer=observer,
        client=xen.client("client", "192.0.2.100"),
        guests=guests,
    )
    story.boot(guests["web1"])
    yield story
    print(f"\n{story.figures.table()}")
    observer.stop()
    xen.reset()


def addresses_in_why(dom0: Dom0, guest: Guest) -> dict[str, str]:
    """Source by address of what `xenlb why` has found of a guest."""
    answer = json.loads(dom0.agent.xenlb("why", guest.name, "--json").out)
    return {found["address"]: found["source"] for found in answer["addresses"]}


# The life of a guest ------------------------------------------------------------------------------


@pytest.mark.smoke
def test_a_guest_joins_when_it_serves_which_is_later_than_started(dom0: Dom0) -> None:
    web2 = dom0.guests["web2"]

    def look() -> None:
        entry = dom0.entry(web2)
        assert entry is not None
        assert entry["phase"] == "starting"
        assert not entry["in_table"]
        assert dom0.kernel() == {"10.0.0.11": 1}

    load = dom0.client.load(f"{WEB}:80", rate=5, timeout=30)
    mark = dom0.observer.mark()
    dom0.begin("start", web2)
    added = dom0.boot(web2, meanwhile=look)
    passed = dom0.observer.wait_note(mark, "check", "10.0.0.12", "passes", guest="web2")
    assert dom0.observer.seen.index(passed) > mark
    assert [s.data["op"] for s in dom0.observer.changes(mark, web2.address)] == ["add"]
    dom0.expect(web2, "serving", 1)
    served_by_both(dom0, load)
    summary = load.stop()
    assert summary["failures"] == []
    assert added.data["pid"] == dom0.observer.status()["pid"]
    assert addresses_in_why(dom0, web2) == {"10.0.0.12": "interface xml"}
    # It reported it first; since it is probed, the neighbour table has it, too.
    assert set(addresses_in_why(dom0, dom0.guests["web1"])) == {"10.0.0.11"}
    dom0.agrees()


def served_by_both(dom0: Dom0, load: Any) -> None:
    def both() -> bool:
        return len({name for line in load.live()[-3:] for name in line["by_server"]}) > 1

    dom0.lab.wait_until(both, 60, "both guests to answer", every=0.5)


def test_a_paused_guest_keeps_its_place_without_new_connections(dom0: Dom0) -> None:
    web2 = dom0.guests["web2"]
    dom0.ensure(web2)
    mark = dom0.observer.mark()
    dom0.begin("pause", web2)
    web2.suspend()
    dom0.observer.wait_change(mark, web2.address, "edit", 0)
    dom0.expect(web2, "paused", 0)
    web2.resume()
    dom0.observer.wait_change(mark, web2.address, "edit", 1)
    dom0.expect(web2, "serving", 1)
    resumed = dom0.observer.wait_note(mark, "guest-resumed", guest="web2")
    passed = dom0.observer.wait_note(mark, "check", "passes", guest="web2")
    assert dom0.observer.seen.index(resumed) < dom0.observer.seen.index(passed)
    assert len(dom0.observer.changes(mark, web2.address)) == 2


def test_a_guest_that_is_saved_leaves_and_comes_back_when_it_is_restored(dom0: Dom0) -> None:
    web2 = dom0.guests["web2"]
    dom0.ensure(web2)
    mark = dom0.observer.mark()
    dom0.begin("save", web2)
    result = web2.save()
    dom0.quiesced(mark, web2, result, "virsh save")
    dom0.removed(mark, web2)
    dom0.observer.wait_note(mark, "guest-requested", guest="web2")
    dom0.wait_phase(web2, "absent")
    dom0.expect(web2, "absent", None)
    dom0.observer.wait_note(mark, "guest-stopped", "saved", guest="web2")
    mark = dom0.observer.mark()
    dom0.begin("restore", web2)
    web2.restore()
    dom0.observer.wait_change(mark, web2.address, "add", 1)
    dom0.expect(web2, "serving", 1)


def test_a_rebooted_guest_is_back_when_it_serves_again(dom0: Dom0) -> None:
    web2 = dom0.guests["web2"]
    dom0.ensure(web2)
    load = dom0.client.load(f"{WEB}:80", rate=5, timeout=30)
    mark = dom0.observer.mark()
    dom0.begin("reboot", web2)
    before = dom0.step("reboot").domain
    with web2.staying():
        result = web2.reboot()
        dom0.quiesced(mark, web2, result, "virsh reboot")
        assert dom0.expect(web2, "draining", 0)["reason"].startswith("asked for reboot")
    gone = dom0.removed(mark, web2)
    added = dom0.observer.wait_change(mark, web2.address, "add", 1)
    assert gone.at < added.at
    started = dom0.observer.wait_note(mark, "guest-started", guest="web2")
    stopped = dom0.observer.wait_note(
        mark, "guest-stopped", "shutdown", f"(domain {before})", guest="web2"
    )
    assert domain_of(started) != str(before)
    # What makes this a trap: whoever removes by name at STOPPED drops a guest that serves.
    # By their order: the observer may read both at one moment.
    lines = dom0.observer.seen
    assert lines.index(started) < lines.index(stopped)
    assert stopped.data["late"]
    served_by_both(dom0, load)
    summary = load.stop()
    dom0.expect(web2, "serving", 1)
    assert [s.data["op"] for s in dom0.observer.changes(mark, web2.address)] == [
        "edit",
        "del",
        "add",
    ]
    assert summary["failures"] == []
    dom0.agrees()


@pytest.mark.smoke
def test_a_shutdown_drains_at_the_request_and_removes_at_the_death(dom0: Dom0) -> None:
    web2 = dom0.guests["web2"]
    dom0.ensure(web2)
    load = dom0.client.load(f"{WEB}:80", rate=5, timeout=30)
    served_by_both(dom0, load)
    mark = dom0.observer.mark()
    dom0.begin("shutdown", web2)
    with web2.staying():
        result = web2.shutdown()
        dom0.quiesced(mark, web2, result, "virsh shutdown")
        entry = dom0.expect(web2, "draining", 0)
        assert entry["reason"].startswith("asked for poweroff")  # and, later, that it is empty
        assert entry["deadline"] is not None
    dom0.removed(mark, web2)
    dom0.expect(web2, "absent", None)
    summary = load.stop()
    assert summary["failures"] == []
    assert [s.data["op"] for s in dom0.observer.changes(mark, web2.address)] == ["edit", "del"]


def test_a_guest_started_paused_joins_when_it_runs_and_its_address_is_seen(dom0: Dom0) -> None:
    web3 = dom0.guests["web3"]
    mark = dom0.observer.mark()
    dom0.begin("start paused", web3)
    web3.start(paused=True)
    dom0.wait_phase(web3, "paused")
    dom0.expect(web3, "paused", None)
    web3.resume()
    dom0.observer.wait_note(mark, "guest-resumed", guest="web3")
    dom0.wait_phase(web3, "starting")
    assert dom0.expect(web3, "starting", None)["reason"] == "its address is not known yet"
    assert dom0.observer.changes(mark, web3.address) == []
    dom0.lab.wait_until(f"ping -c 1 -W 1 {web3.address}", 60, "web3 to answer a ping")
    dom0.observer.wait_change(mark, web3.address, "add", 1)
    dom0.expect(web3, "serving", 1)
    assert addresses_in_why(dom0, web3) == {"10.0.0.13": "neighbour table"}


def test_what_a_guest_reports_is_not_believed_blindly(dom0: Dom0) -> None:
    web3 = dom0.guests["web3"]
    dom0.ensure(web3)
    mark = dom0.observer.mark()
    lies = {
        "attr/vif/0/ipv4/0": WEB,  # a service address
        "attr/vif/0/ipv4/1": "10.0.0.11",  # web1's
        "attr/vif/0/ipv4/2": "203.0.113.9",  # of no network here
        "attr/eth0/ip": "10.0.0.1",  # Dom0's own
    }
    reports = "; ".join(f"report {path} {address}" for path, address in lies.items())
    web3.run(
        "sed 's/^report attr.*//' /sbin/report-address >/run/lie;"
        f" echo '{reports}' >>/run/lie; sh /run/lie"
    )
    for words in (
        (WEB, "it is a service address"),
        ("203.0.113.9", "it lies in no network of this host's interfaces"),
        ("10.0.0.1 ", "it is an address of this host"),
    ):
        refused = dom0.observer.wait_note(mark, "address", *words, guest="web3")
        assert refused.data["level"] == "warning"
    claim = "guest web3 also claims the address 10.0.0.11"
    warned = dom0.observer.wait_note(mark, "address", claim, guest="web1")
    assert warned.data["level"] == "warning"
    why = json.loads(dom0.agent.xenlb("why", "web3", "--json").out)
    refusals = {no["address"]: no["reason"] for no in why["refused_addresses"]}
    assert set(refusals) == set(lies.values())
    assert refusals["10.0.0.11"] == "it belongs to guest web1"
    said = dom0.agent.xenlb("why", "web3").out
    assert all(f"address {lie} refused" in said for lie in lies.values()), said
    # Nothing of it has come into the table, and the guest serves where it was seen.
    dom0.expect(web3, "serving", 1)
    assert set(dom0.kernel()) == {"10.0.0.11", "10.0.0.13"}
    assert dom0.observer.changes(mark, "10.0.0.11") == []


def test_an_address_of_metadata_is_judged_too(dom0: Dom0) -> None:
    web3 = dom0.guests["web3"]
    dom0.ensure(web3)
    mark = dom0.observer.mark()
    for address, reason in ((CLUB, "it is a service address"), ("10.0.0.1", "of this host")):
        entry = f"<service name='club' weight='65535' address='{address}'/>"
        web3.set_metadata(f"<services>{entry}</services>")
        text = f"its metadata gives the address {address}"
        assert dom0.observer.wait_note(mark, "inconsistency", text, reason, guest="web3")
    assert dom0.kernel(CLUB) == {}
    web3.set_metadata("<services/>")
    dom0.expect(web3, "serving", 1)


def test_a_guest_joins_and_leaves_a_service_by_its_metadata(dom0: Dom0) -> None:
    web3 = dom0.guests["web3"]
    dom0.ensure(web3)
    assert dom0.kernel(CLUB) == {}
    mark = dom0.observer.mark()
    web3.set_metadata("<services><service name='club' weight='3'/></services>")
    dom0.observer.wait_change(mark, web3.address, "add", 3)
    dom0.expect(web3, "serving", 3, vip=CLUB, service="club")
    web3.set_metadata("<services><service name='club' weight='5'/></services>")
    dom0.observer.wait_change(mark, web3.address, "edit", 5)
    web3.set_metadata("<services/>")
    dom0.observer.wait_change(mark, web3.address, "del")
    assert dom0.kernel(CLUB) == {}
    dom0.expect(web3, "serving", 1)  # in the service of its name all the time
    dom0.agrees()


def test_a_guest_undefined_while_it_runs_serves_on_and_is_shut_down_by_xl(dom0: Dom0) -> None:
    web3 = dom0.guests["web3"]
    dom0.ensure(web3)
    mark = dom0.observer.mark()
    web3.virsh("undefine", "web3")
    assert web3.state() == "running"
    dom0.expect(web3, "serving", 1)
    dom0.begin("xl shutdown", web3)
    result = dom0.lab.run(["xl", "shutdown", "web3"])
    dom0.quiesced(mark, web3, result, "xl shutdown")
    dom0.removed(mark, web3)
    assert [s.data["op"] for s in dom0.observer.changes(mark, web3.address)] == ["edit", "del"]
    assert web3.address not in dom0.kernel()


def test_a_domain_without_a_definition_joins_like_any_other(dom0: Dom0) -> None:
    brief = dom0.guests["brief"]
    brief.virsh("undefine", "brief")
    dom0.lab.wait_until(lambda: dom0.entry(brief) is None, 60, "brief to be forgotten", every=0.3)
    dom0.boot(brief, start=lambda: brief.virsh("create", "/run/lab/guest-brief.xml"))
    dom0.expect(brief, "serving", 1)


def test_every_death_is_told_twice_and_the_second_time_nothing_changes(dom0: Dom0) -> None:
    dom0.wait_all_told()
    dom0.calls = dom0.hook_calls()


# The service --------------------------------------------------------------------------------------


def show(lab: XenLab, *properties: str) -> dict[str, str]:
    out = lab.out(["systemctl", "show", "xenlb", *(f"--property={name}" for name in properties)])
    return dict(line.split("=", 1) for line in out.splitlines())


def test_the_unit_runs_hardened_with_a_watchdog(dom0: Dom0) -> None:
    unit = show(
        dom0.lab, "MainPID", "ActiveState", "Type", "WatchdogUSec", "StatusText", "NRestarts"
    )
    pid = unit.pop("MainPID")
    assert unit == {
        "ActiveState": "active",
        "Type": "notify",
        "WatchdogUSec": "30s",
        "StatusText": "balancing",
        "NRestarts": "0",
    }
    process = dict(
        line.split(":\t", 1) for line in dom0.lab.text(f"/proc/{pid}/status").splitlines()
    )
    for kind in ("CapPrm", "CapEff", "CapBnd"):
        assert process[kind] == CAPABILITIES
    assert process["CapAmb"] == "0" * 16
    assert (process["NoNewPrivs"], process["Seccomp"]) == ("1", "2")
    assert "Status: " in dom0.lab.out(["systemctl", "status", "--no-pager", "xenlb"])


def test_kill_9_leaves_a_leaving_guest_at_weight_0_and_everything_else_alone(dom0: Dom0) -> None:
    brief = dom0.guests["brief"]
    mark = dom0.observer.mark()
    result = brief.shutdown()  # which it ignores; the service waits an hour for it
    dom0.quiesced(mark, brief, result, "virsh shutdown")
    before, table = dom0.expect(brief, "draining", 0), dom0.agent.table()
    first = show(dom0.lab, "MainPID")["MainPID"]
    load = dom0.client.load(f"{WEB}:80", rate=5, timeout=30)
    mark = dom0.observer.mark()
    dom0.agent.kill()
    dom0.observer.wait_note(mark, "configuration")
    dom0.lab.wait_until(lambda: dom0.observer.status()["synced"], 120, "libvirt to be listed")
    after = dom0.expect(brief, "draining", 0)
    assert after["deadline"][:19] == before["deadline"][:19]
    unit = show(dom0.lab, "MainPID", "NRestarts", "ActiveState")
    assert unit["MainPID"] not in {first, "0"}
    assert (unit["NRestarts"], unit["ActiveState"]) == ("1", "active")
    assert dom0.observer.find(mark, "kernel") == []
    assert dom0.agent.table() == table
    assert load.stop()["failures"] == []


def test_the_configuration_is_read_again_and_the_last_good_one_kept(dom0: Dom0) -> None:
    lab, agent, observer = dom0.lab, dom0.agent, dom0.observer
    mark = observer.mark()
    agent.configure(config(weight=2))
    lab.run(["systemctl", "reload", "xenlb"])
    observer.wait_change(mark, "10.0.0.11", "edit", 2)
    assert {s.data["address"] for s in observer.find(mark, "kernel")} == {"10.0.0.11"}

    mark = observer.mark()
    agent.configure(config(weight=2) + "surplus: 1\n")
    lab.run(["systemctl", "reload", "xenlb"])
    refused = observer.wait_note(mark, "configuration", "surplus")
    assert refused.data["level"] == "warning"
    place = rf"/etc/xenlb/xenlb\.yaml:{len(config().splitlines()) + 1}:1: surplus: "
    assert re.search(place, refused.text), refused.text
    answer = agent.xenlb("reload", check=False)
    assert answer.rc == 3
    assert re.search(place, answer.err), answer.err
    problems = observer.status()["config"]["problems"]
    assert len(problems) == 1
    assert re.match(place, problems[0])
    lab.wait_until(
        lambda: show(lab, "StatusText")["StatusText"] == "the configuration is refused",
        30,
        "systemctl status to say so",
    )
    assert observer.find(mark, "kernel") == []

    agent.configure(config())
    lab.run(["systemctl", "reload", "xenlb"])
    observer.wait_change(mark, "10.0.0.11", "edit", 1)
    assert observer.status()["config"]["problems"] == []
    lab.wait_until(
        lambda: show(lab, "StatusText")["StatusText"] == "balancing", 30, "systemctl status again"
    )


LIBVIRTD = "libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket libvirtd.service"


def test_the_agent_outlives_libvirtd_and_does_not_need_it_to_start(dom0: Dom0) -> None:
    lab, agent, observer = dom0.lab, dom0.agent, dom0.observer
    brief = dom0.guests["brief"]
    table = agent.table()
    load = dom0.client.load(f"{WEB}:80", rate=5, timeout=30)
    mark = observer.mark()
    agent.stop()
    lab.run(f"systemctl stop {LIBVIRTD}")
    addresses = lab.out("ip -4 -o addr show dev front0")
    assert all(f" {vip}/32 " in addresses for vip in VIPS), addresses
    assert agent.table() == table
    agent.start(ready=120)
    status = observer.status()
    assert not status["libvirt"][0]["connected"]
    assert not status["synced"]
    assert agent.table() == table
    lab.run("systemctl start libvirtd.socket libvirtd.service")
    lab.wait_until(lambda: observer.status()["synced"], 120, "libvirt to be listed", every=0.5)
    assert observer.find(mark, "kernel") == []

    # libvirt calls the hook before it refuses a guest that runs here already. libvirt 9.0 fails to
    # make the XML for that call («unsupported flags»), so the hook has nothing to read. The guest
    # stays locked, too, until libvirt is restarted, which comes next.
    calls = len(dom0.hook_calls())
    web1 = dom0.guests["web1"]
    moved = web1.virsh("migrate", "--live", "web1", "xen:///system", check=False)
    assert "already active" in moved.err
    assert len(dom0.hook_calls()) == calls

    # It goes away again, and while it is away a guest goes, too: xenstore tells of that.
    lab.run(f"systemctl stop {LIBVIRTD}")
    observer.wait_note(mark, "libvirt-lost", "xen:///system")
    mark = observer.mark()
    lab.run(["xl", "destroy", "brief"])
    observer.wait_change(mark, brief.address, "del")
    assert set(dom0.kernel()) == {"10.0.0.11"}
    lab.run("systemctl start libvirtd.socket libvirtd.service")
    lab.wait_until(lambda: observer.status()["synced"], 120, "libvirt to be listed", every=0.5)
    dom0.expect(dom0.guests["web1"], "serving", 1)
    assert [s.data["address"] for s in observer.find(mark, "kernel")] == [brief.address]

    # libvirtd calls the hook script for each guest that it finds running again, and for the end of
    # the other.
    def last_calls() -> dict[str, tuple[str, int | None]]:
        return {call.name: (call.operation, call.domid) for call in dom0.hook_calls()[calls:]}

    expected = {"web1": ("reconnect", web1.domid()), "brief": ("release", None)}
    lab.wait_until(lambda: last_calls() == expected, 60, f"the calls {expected}", every=0.5)
    assert load.stop()["failures"] == []
    dom0.agrees()


# Requests, many times -----------------------------------------------------------------------------


def test_a_shutdown_that_is_ignored_ends_with_the_grace(dom0: Dom0) -> None:
    deaf = dom0.guests["deaf1"]
    dom0.ensure(deaf)
    mark = dom0.observer.mark()
    deaf.shutdown()
    dom0.observer.wait_change(mark, deaf.address, "edit", 0)
    warned = dom0.observer.wait_note(mark, "guest-stays", guest="deaf1")
    assert warned.data["level"] == "warning"
    told = re.search(r"still runs (\d+) s after it was asked for poweroff", warned.text)
    assert told, warned.text
    assert int(told[1]) >= 3
    dom0.observer.wait_change(mark, deaf.address, "edit", 1)
    dom0.expect(deaf, "serving", 1, vip=DEAF, service="deaf")


@pytest.mark.soak
def test_requests_to_shut_down_and_drains_many_times(dom0: Dom0) -> None:
    deaf = [dom0.guests["deaf1"], dom0.guests["deaf2"]]
    for guest in deaf:
        dom0.ensure(guest)
    back: dict[str, int] = {}
    for number in range(SHUTDOWNS):
        guest = deaf[number % 2]
        if guest.name in back:
            dom0.observer.wait_change(back[guest.name], guest.address, "edit", 1)
        mark = dom0.observer.mark()
        dom0.quiesced(mark, guest, guest.shutdown(), "virsh shutdown")
        back[guest.name] = mark
    for guest in deaf:
        dom0.observer.wait_change(back[guest.name], guest.address, "edit", 1)
    for number in range(DRAINS):
        guest = deaf[number % 2]
        mark = dom0.observer.mark()
        result = dom0.agent.xenlb("drain", guest.name, "--no-wait")
        dom0.quiesced(mark, guest, result, "xenlb drain")
        dom0.agent.xenlb("undrain", guest.name)
        dom0.observer.wait_change(mark, guest.address, "edit", 1)


# Ends without a request ---------------------------------------------------------------------------


def test_a_guest_that_powers_itself_off_is_removed_when_it_dies(dom0: Dom0) -> None:
    web1 = dom0.guests["web1"]
    dom0.ensure(web1)
    mark = dom0.observer.mark()
    dom0.begin("poweroff inside", web1)
    web1.power_off_inside()
    dom0.removed(mark, web1)
    assert [s.data["op"] for s in dom0.observer.changes(mark, web1.address)] == ["del"]
    dom0.expect(web1, "absent", None)


def test_a_guest_that_is_destroyed_is_removed_at_once(dom0: Dom0) -> None:
    deaf = dom0.guests["deaf1"]
    dom0.ensure(deaf)
    mark = dom0.observer.mark()
    dom0.begin("destroy", deaf)
    result = deaf.destroy()
    gone = dom0.removed(mark, deaf, vip=DEAF)
    dom0.figures.note(
        "virsh destroy: command began → removed", gone.at - dom0.observer.started(result)
    )
    dom0.expect(deaf, "absent", None, vip=DEAF, service="deaf")


def test_a_guest_that_crashes_is_removed_at_once(dom0: Dom0) -> None:
    deaf = dom0.guests["deaf2"]
    dom0.ensure(deaf)
    mark = dom0.observer.mark()
    dom0.begin("crash", deaf)
    deaf.crash()
    dom0.removed(mark, deaf, vip=DEAF)
    dom0.expect(deaf, "absent", None, vip=DEAF, service="deaf")
    dom0.observer.wait_note(mark, "guest-stopped", "crashed", guest="deaf2")


def test_nothing_was_done_that_nobody_asked_for(dom0: Dom0) -> None:
    """The rest of the story: late news, the journal, and who has changed the table."""
    dom0.wait_all_told()
    for name in ("web3", "brief"):  # not defined any more
        assert dom0.entry(dom0.guests[name]) is None
    assert dom0.kernel() == dom0.kernel(DEAF) == dom0.kernel(CLUB) == {}
    assert dom0.observer.find(0, "agent", lambda s: s.data["kind"] == "table-repaired") == []
    agents = {s.data["status"]["pid"] for s in dom0.observer.find(0, "status")}
    assert len(agents) == 3  # started, restarted by systemd, started again
    assert {s.data["pid"] for s in dom0.observer.find(0, "kernel")} <= agents
    lines = [
        json.loads(line)
        for line in dom0.lab.out(
            # What the agent wrote, without what systemd says of the unit.
            "journalctl _SYSTEMD_UNIT=xenlb.service _TRANSPORT=stdout -o json"
            " --output-fields=PRIORITY,MESSAGE"
        ).splitlines()
    ]
    assert len(lines) > 100
    priorities: dict[str, set[str]] = {}
    for line in lines:
        priorities.setdefault(line["PRIORITY"], set()).add(line["MESSAGE"])
    assert set(priorities) <= {"4", "6"}, priorities
    assert any("still runs" in message for message in priorities["4"])
    assert all("still runs" not in message for message in priorities["6"])
    assert any("ipvsadm -e" in message for message in priorities["6"])
    assert not any(
        message.startswith("<") for messages in priorities.values() for message in messages
    )


# What told of it ----------------------------------------------------------------------------------


def test_libvirt_and_xenstore_tell_each_step_once_and_in_this_order(dom0: Dom0) -> None:
    """Where xenstore and libvirt tell the same, xenstore comes first."""
    for name, expected in (
        ("start", ["started"]),
        ("pause", ["paused", "resumed"]),
        # libvirt's own start of the new domain comes before the end of the old one.
        ("reboot", ["asked", "gone", "started", "stopped"]),
        ("shutdown", ["asked", "gone", "stopped"]),
        ("start paused", ["started", "paused", "resumed"]),
        ("xl shutdown", ["asked", "gone", "stopped"]),
        ("poweroff inside", ["gone", "stopped"]),
        ("crash", ["gone", "stopped"]),
    ):
        assert [told.event for told in dom0.told(dom0.step(name))] == expected, name
    # What is destroyed is gone at once for libvirt, too: the two come together.
    assert {told.event for told in dom0.told(dom0.step("destroy"))} == {"gone", "stopped"}
    # Whether a domain that is saved is paused first, libxl tells as it likes.
    saved = [told.event for told in dom0.told(dom0.step("save"))]
    assert [name for name in saved if name in {"asked", "stopped"}] == ["asked", "stopped"]
    assert [told.event for told in dom0.told(dom0.step("restore"))].count("started") == 1


def test_each_event_names_its_domain_and_its_reason(dom0: Dom0) -> None:
    def only(step: str, event: str) -> Told:
        (found,) = (told for told in dom0.told(dom0.step(step)) if told.event == event)
        return found

    for step, kind in (
        ("save", "suspend"),
        ("reboot", "reboot"),
        ("shutdown", "poweroff"),
        ("xl shutdown", "poweroff"),
    ):
        asked = only(step, "asked")
        assert (asked.why, asked.domain) == (kind, dom0.step(step).domain)
    for step, why in (
        ("save", "saved"),
        ("reboot", "shutdown"),
        ("shutdown", "shutdown"),
        ("poweroff inside", "shutdown"),
        ("destroy", "destroyed"),
        ("crash", "crashed"),
    ):
        stopped = only(step, "stopped")
        assert (stopped.why, stopped.domain) == (why, dom0.step(step).domain)
        assert only(step, "gone").domain == dom0.step(step).domain
    for step, after in (("start", "pause"), ("restore", "reboot"), ("reboot", "shutdown")):
        started = only(step, "started").domain
        assert started == dom0.step(after).domain
        assert started != dom0.step(step).domain


def test_the_hook_script_is_called_for_each_start_and_end(dom0: Dom0) -> None:
    begins: list[tuple[str, int | None]] = [("prepare", None), ("start", None)]
    for name, ends, starts in (
        ("start", False, "pause"),
        ("save", True, None),
        ("restore", False, "reboot"),
        ("reboot", True, "shutdown"),
        ("shutdown", True, None),
    ):
        step = dom0.step(name)
        expected = [("stopped", step.domain), ("release", None)] if ends else []
        if starts:
            expected += [*begins, ("started", dom0.step(starts).domain)]
        assert dom0.called(step) == expected, name
    assert dom0.called(dom0.step("pause")) == []
    assert {call.driver for call in dom0.calls} == {"libxl"}
