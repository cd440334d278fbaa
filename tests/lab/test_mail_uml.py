"""Mail through a service address: a real SMTP client, real mail servers, guests that come and go.

One guest is drained first, then shut down: nobody may notice. The other is just shut down; libvirt
tells nothing of that before a container has gone (there is no request-time signal on LXC), so some
sessions may fail until then; how many is printed. Every message that a server has accepted must
be in one mailbox, once; one whose session broke off may be in one, at most.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import mailserver
from tests.lab.mailserver import MailGuest
from tests.lab.needed import lacking
from tests.lab.netns import NetNs
from tests.lab.uml import UmlLab
from tests.lab.watched import WatchedAgent
from tests.soak import often

MESSAGES = often(50, soak=1000)
RATE = 5  # a second, at most: Exim starts a process for each session and one for each delivery
CLIENTS = [f"192.0.2.{last}" for last in range(101, 141)]
# forwarding → service address, port of the servers, first number of the guests' addresses
FORMS = {"masquerade": ("192.0.2.10", 26, 41), "gatewaying": ("192.0.2.11", 25, 51)}


def config(forwarding: str) -> str:
    vip, port, _ = FORMS[forwarding]
    server_port = f"server-port: {port}" if forwarding == "masquerade" else ""
    return f"""
libvirt: {{uris: ["lxc:///"]}}
director: {{interface: front0}}
services:
  mail:
    address: {vip}
    ports: [25]
    {server_port}
    forwarding: {forwarding}
    scheduler: lblc
    persistence: 300s
    check: {{interval: 2s, timeout: 1900ms, rise: 1, fall: 10}}
    servers: [{{guest: "{forwarding}*"}}]
"""


@pytest.fixture(scope="module")
def lab(uml: UmlLab) -> UmlLab:
    if missing := mailserver.missing():
        lacking(missing)
    uml.start_libvirtd()
    uml.accept_gatewaying_replies()
    mailserver.install(uml)
    return uml


@pytest.fixture(scope="module")
def client(lab: UmlLab) -> NetNs:
    made = lab.client("client", "192.0.2.100")
    batch = "".join(f"addr add {address}/24 dev eth0\n" for address in CLIENTS)
    lab.run(["ip", "-n", "client", "-batch", "-"], input=batch)
    return made


class Post:
    """Mail under way, and what became of it so far."""

    def __init__(self, client: NetNs, target: str, name: str) -> None:
        self.client = client
        self.results = f"/run/lab/mail-{name}.jsonl"
        tool = Path(client.lab.traffic[-1]).with_name("mailclient.py")
        command = [*client.lab.traffic[:-1], str(tool), target, f"--rate={RATE}"]
        self.process = client.spawn(
            [*command, f"--clients={','.join(CLIENTS)}", f"--results={self.results}"],
            log=f"/run/lab/mail-{name}.log",
        )

    def attempts(self) -> list[dict[str, Any]]:
        found = self.client.lab.run(["cat", self.results], check=False).out
        return [json.loads(line) for line in found.splitlines() if line.endswith("}")]

    def wait_accepted(self, more: int) -> None:
        """Until that many more messages were accepted."""
        before = self.accepted()
        self.client.lab.wait_until(
            lambda: self.accepted() >= before + more,
            60 + 2 * more,
            f"{more} more messages",
            every=0.5,
        )

    def accepted(self) -> int:
        return sum(attempt["accepted"] for attempt in self.attempts())

    def stop(self) -> list[dict[str, Any]]:
        self.process.terminate(60)
        return self.attempts()


@pytest.fixture
def guests(lab: UmlLab, request: pytest.FixtureRequest) -> Iterator[dict[str, MailGuest]]:
    forwarding: str = request.getfixturevalue("forwarding")
    vip, port, number = FORMS[forwarding]
    made = {}
    for name, address in ((f"{forwarding}{n}", f"10.0.0.{number + n}") for n in (1, 2)):
        made[name] = MailGuest(
            lab,
            name=name,
            address=address,
            port=port,
            vip=vip if forwarding == "gatewaying" else None,
        )
        made[name].start()
    yield made
    for guest in made.values():
        guest.remove()


@pytest.mark.parametrize(
    "forwarding", ["masquerade", pytest.param("gatewaying", marks=pytest.mark.soak)]
)
def test_no_mail_is_lost_while_guests_come_and_go(
    lab: UmlLab, client: NetNs, guests: dict[str, MailGuest], forwarding: str
) -> None:
    agent = WatchedAgent(lab, config(forwarding))
    agent.start()
    try:
        agent.wait_serving(*guests)
        post = Post(client, f"{FORMS[forwarding][0]}:25", forwarding)
        post.wait_accepted(MESSAGES // 5)

        # The guest that has most of the clients is drained, shut down, and comes back.
        counts = Counter(attempt["server"] for attempt in post.attempts())
        first = guests[counts.most_common(1)[0][0]]
        second = next(guest for guest in guests.values() if guest is not first)
        agent.xenlb("drain", first.name, timeout=120)
        drained = lab.time()
        agent.wait_server(first.name, lambda server: server["weight"] == 0 and server["in_table"])
        first.shutdown()
        first.wait_gone()
        agent.wait_server(first.name, lambda server: not server["in_table"])
        post.wait_accepted(MESSAGES // 5)
        back = lab.time()
        first.start()
        agent.wait_serving(first.name)
        post.wait_accepted(MESSAGES // 5)

        # The other one goes without a word, and comes back.
        asked = lab.time()
        second.shutdown()
        agent.wait_server(second.name, lambda server: not server["in_table"])
        removed = lab.time()
        post.wait_accepted(MESSAGES // 5)
        second.start()
        agent.wait_serving(second.name)
        agent.agree()
        post.wait_accepted(max(MESSAGES // 5, MESSAGES - post.accepted()))
        attempts = post.stop()
        lab.wait_until(
            lambda: not sum(guest.queued() for guest in guests.values()), 60, "empty queues"
        )
    finally:
        agent.stop()

    accepted = {attempt["id"] for attempt in attempts if attempt["accepted"]}
    failed = [attempt for attempt in attempts if not attempt["accepted"]]
    boxes = {name: guest.delivered() for name, guest in guests.items()}
    found = Counter(each for box in boxes.values() for each in box)
    blind = [attempt for attempt in failed if asked - 1 < attempt["t"] < removed]
    print(
        f"\n{forwarding}, lblc, persistence: {len(attempts)} messages tried, {len(accepted)}"
        f" accepted; in the mailboxes: { {name: len(box) for name, box in boxes.items()} };"
        f" failed: {len(blind)} while {second.name} went without a drain"
        f" ({removed - asked:.1f} s until its removal), {len(failed) - len(blind)} else"
    )
    for attempt in failed:
        print(f"  {attempt['t'] - asked:+.2f} s: {attempt['server']}: {attempt['error']}")
    assert len(accepted) >= MESSAGES
    assert all(boxes.values())
    assert sorted(accepted - found.keys()) == [], "accepted, and in no mailbox"
    assert all(a["id"] in boxes[a["server"]] for a in attempts if a["accepted"])
    assert [each for each, times in found.items() if times > 1] == []
    assert found.keys() <= {attempt["id"] for attempt in attempts}
    assert len(blind) == len(failed), "sessions failed that had nothing to do with that shutdown"
    away = [a for a in attempts if drained < a["t"] < back and a["server"] == first.name]
    assert away == [], "sessions were begun with a drained server"
