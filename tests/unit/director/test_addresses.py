"""Service addresses on an interface: real rtnetlink, in a network name space of the test's own."""

import asyncio
import contextlib
import ctypes
import json
import logging
import re
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from ipaddress import ip_address

import pytest

from tests.unit.director.netns import in_own_network, sh
from xenlb.director.addresses import PlacedAddress, ServiceAddresses
from xenlb.director.announce import arp_frame
from xenlb.director.interface import (
    AddressChange,
    ChangeListener,
    outgoing_interfaces,
    source_addresses,
)
from xenlb.ipvs.table import IPAddress

A, B, V6 = ip_address("192.0.2.10"), ip_address("192.0.2.11"), ip_address("2001:db8::10")
ALL = frozenset({A, B, V6})


def interface(name: str = "v0", peer: str = "w0") -> None:
    sh(f"""
    ip link add {name} type veth peer name {peer}
    ip link set {peer} up
    ip link set {name} up
    """)


def on(name: str) -> dict[str, str]:
    """The global addresses of an interface, with their flags."""
    (described,) = json.loads(sh(f"ip -j addr show dev {name}"))
    return {
        f"{each['local']}/{each['prefixlen']}": " ".join(
            flag for flag in ("nodad", "deprecated", "tentative", "dadfailed") if each.get(flag)
        )
        for each in described["addr_info"]
        if each["scope"] == "global"
    }


async def eventually(what: Callable[[], bool]) -> None:
    for _ in range(1000):
        if what():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it did not come to it within 10 s")


@contextlib.asynccontextmanager
async def kept(
    *addresses: IPAddress, name: str = "v0", owned: frozenset[PlacedAddress] = frozenset()
) -> AsyncIterator[ServiceAddresses]:
    keeper = ServiceAddresses(owned)
    keeper.set_wanted(name, frozenset(addresses))
    task = asyncio.create_task(keeper.run())
    try:
        yield keeper
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled(), task.exception()
        assert asyncio.all_tasks() == {asyncio.current_task()}


class Journal(logging.Handler):
    """What was logged, as an operator reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.INFO:
            self.lines.append(record.getMessage())


@pytest.fixture
def journal() -> Iterator[list[str]]:
    handler, logger = Journal(), logging.getLogger("xenlb.director")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler.lines
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


def check(main: Callable[[], Awaitable[None]]) -> None:
    async def in_time() -> None:
        async with asyncio.timeout(30):
            await main()

    asyncio.run(in_time())


@in_own_network
def test_added_and_left_in_place(journal: list[str]) -> None:
    interface()
    sh("ip addr add 192.0.2.1/24 dev v0")

    async def main() -> None:
        async with kept(A, B, V6) as keeper:
            await eventually(lambda: keeper.present == ALL)
            assert keeper.problems == {}
            assert keeper.owned == {PlacedAddress(interface="v0", address=each) for each in ALL}
        assert on("v0") == {
            "192.0.2.1/24": "",
            "192.0.2.10/32": "",
            "192.0.2.11/32": "",
            "2001:db8::10/128": "nodad deprecated",
        }

    check(main)
    assert journal == [
        "added 192.0.2.10/32 on v0",
        "added 192.0.2.11/32 on v0",
        "added 2001:db8::10/128 on v0",
    ]


@in_own_network
def test_the_host_does_not_use_them_as_source() -> None:
    interface()
    sh("""
    ip addr add 192.0.2.1/24 dev v0
    ip addr add 2001:db8::1/64 dev v0 nodad
    """)

    async def main() -> None:
        async with kept(A, V6) as keeper:
            await eventually(lambda: len(keeper.present) == 2)

    check(main)
    assert " src 192.0.2.1 " in sh("ip route get 192.0.2.99")
    assert " src 2001:db8::1 " in sh("ip -6 route get 2001:db8::11")


@in_own_network
def test_a_restart_changes_nothing(journal: list[str]) -> None:
    interface()

    async def main() -> None:
        async with kept(A, V6) as first:
            await eventually(lambda: len(first.present) == 2)
        before = sh("ip -d addr show dev v0")
        async with kept(A, V6, owned=first.owned) as second:
            await eventually(lambda: len(second.present) == 2)
            assert second.owned == first.owned
        assert sh("ip -d addr show dev v0") == before

    check(main)
    assert len(journal) == 2


@in_own_network
def test_put_back_when_another_program_removes_it(journal: list[str]) -> None:
    interface()

    async def main() -> None:
        async with kept(A, B, V6) as keeper:
            await eventually(lambda: keeper.present == ALL)
            journal.clear()
            sh("ip addr del 192.0.2.11/32 dev v0")
            await eventually(lambda: len(on("v0")) == 3)
            assert journal == ["put back 192.0.2.11/32 on v0: another program removed it"]
            sh("ip addr flush dev v0 scope global")
            await eventually(lambda: "192.0.2.10/32" in on("v0") and "2001:db8::10/128" in on("v0"))
            await eventually(lambda: keeper.present == ALL and not keeper.problems)

    check(main)
    assert "put back 2001:db8::10/128 on v0: another program removed it" in journal


@in_own_network
def test_put_back_after_a_flap(journal: list[str]) -> None:
    """IPv6 addresses go with the link; IPv4's stay."""
    interface()

    async def main() -> None:
        async with kept(A, V6) as keeper:
            await eventually(lambda: len(keeper.present) == 2)
            came_up = "put back 2001:db8::10/128 on v0: the interface came up"
            sh("""
            ip link set v0 down
            ip link set v0 up
            """)
            await eventually(lambda: came_up in journal)
            assert on("v0") == {"192.0.2.10/32": "", "2001:db8::10/128": "nodad deprecated"}

            await eventually(lambda: keeper.present == {A, V6})
            await asyncio.sleep(1.5)  # no pass is under way that would put it back while down
            sh("ip link set v0 down")
            await eventually(lambda: set(keeper.problems.values()) == {"v0 is down"})
            assert set(keeper.problems) == {A, V6}
            sh("ip link set v0 up")
            await eventually(lambda: not keeper.problems)
            assert on("v0") == {"192.0.2.10/32": "", "2001:db8::10/128": "nodad deprecated"}
            assert sh("ip -6 route get 2001:db8::10").startswith("local ")
            assert journal[-2:] == [came_up, "the service addresses are in place"]

    check(main)


@in_own_network
def test_put_back_when_the_interface_is_created_again(journal: list[str]) -> None:
    interface()

    async def main() -> None:
        async with kept(A, V6) as keeper:
            await eventually(lambda: len(keeper.present) == 2)
            journal.clear()
            sh("ip link del v0")
            interface()
            await eventually(lambda: len(on("v0")) == 2)
            await eventually(lambda: not keeper.problems)
            assert "put back 192.0.2.10/32 on v0: the interface was created again" in journal

            sh("ip link del v0")
            await eventually(lambda: keeper.problems.get(A) == "there is no interface v0")
            interface()
            await eventually(lambda: not keeper.problems)
            assert len(on("v0")) == 2
            assert keeper.owned == {PlacedAddress(interface="v0", address=each) for each in (A, V6)}

    check(main)


def rename(old: str, new: str) -> None:
    """Before Linux 6.2, an interface must be down for it."""
    sh(f"""
    ip link set {old} down
    ip link set {old} name {new}
    ip link set {new} up
    """)


@in_own_network
def test_renamed_away_and_back(journal: list[str]) -> None:
    interface()

    async def main() -> None:
        async with kept(A) as keeper:
            await eventually(lambda: keeper.present == {A})
            rename("v0", "v9")
            await eventually(lambda: keeper.problems == {A: "there is no interface v0"})
            assert on("v9") == {"192.0.2.10/32": ""}, "not touched"
            rename("v9", "v0")
            await eventually(lambda: not keeper.problems)
            assert keeper.present == {A}

    check(main)


@in_own_network
def test_an_interface_that_comes_later(journal: list[str]) -> None:
    async def main() -> None:
        async with kept(A, B) as keeper:
            reason = "there is no interface v0"
            await eventually(lambda: keeper.problems == {A: reason, B: reason})
            interface()
            await eventually(lambda: not keeper.problems)
            assert on("v0") == {"192.0.2.10/32": "", "192.0.2.11/32": ""}

    check(main)
    assert journal[0] == "service address 192.0.2.10, 192.0.2.11: there is no interface v0"
    assert journal[-3:] == [
        "added 192.0.2.10/32 on v0",
        "added 192.0.2.11/32 on v0",
        "the service addresses are in place",
    ]


@in_own_network
def test_what_was_there_before_is_accepted_and_never_removed() -> None:
    interface()
    sh("""
    ip addr add 192.0.2.10/24 dev v0
    ip addr add 2001:db8::10/64 dev v0 nodad
    """)
    before = sh("ip -d addr show dev v0")

    async def main() -> None:
        async with kept(A, V6) as keeper:
            await eventually(lambda: len(keeper.present) == 2)
            assert keeper.owned == frozenset()
            assert keeper.problems == {}
            keeper.set_wanted("v0", frozenset({B}))
            await eventually(lambda: keeper.present == {B})
            keeper.set_wanted("v0", frozenset())
            await eventually(lambda: keeper.owned == frozenset())
        assert sh("ip -d addr show dev v0") == before

    check(main)


@in_own_network
def test_a_new_configuration(journal: list[str]) -> None:
    interface()
    interface("v1", "w1")

    async def main() -> None:
        async with kept(A, B) as keeper:
            await eventually(lambda: keeper.present == {A, B})
            journal.clear()
            keeper.set_wanted("v0", frozenset({A, V6}))
            await eventually(lambda: keeper.present == {A, V6} and len(keeper.owned) == 2)
            assert set(on("v0")) == {"192.0.2.10/32", "2001:db8::10/128"}
            assert journal == [
                "added 2001:db8::10/128 on v0",
                "removed 192.0.2.11/32 on v0: no service needs it there any more",
            ]
            keeper.set_wanted("v1", frozenset({A}))
            await eventually(lambda: keeper.owned == {PlacedAddress(interface="v1", address=A)})
            assert on("v1") == {"192.0.2.10/32": ""}
            assert on("v0") == {}
            assert keeper.problems == {}
            assert journal[2:] == [
                "added 192.0.2.10/32 on v1",
                "removed 192.0.2.10/32 on v0: no service needs it there any more",
                "removed 2001:db8::10/128 on v0: no service needs it there any more",
            ]

    check(main)


@in_own_network
def test_unwanted_addresses_of_an_earlier_agent_are_removed() -> None:
    interface()
    sh("""
    ip addr add 192.0.2.10/32 dev v0
    ip addr add 192.0.2.11/24 dev v0
    """)
    owned = frozenset(
        {
            PlacedAddress(interface="v0", address=A),
            PlacedAddress(
                interface="v0", address=B
            ),  # has another prefix length: not what we put there
            PlacedAddress(interface="gone0", address=A),
        }
    )

    async def main() -> None:
        async with kept(owned=owned) as keeper:
            await eventually(lambda: keeper.owned == frozenset())
        assert on("v0") == {"192.0.2.11/24": ""}

    check(main)


@in_own_network
def test_an_address_on_another_interface_is_left_there() -> None:
    interface()
    interface("v1", "w1")
    sh("ip addr add 192.0.2.10/32 dev v1")

    async def main() -> None:
        async with kept(A, B) as keeper:
            await eventually(lambda: keeper.present == {B})
            assert keeper.problems == {A: "it is on interface v1 of this host already"}
            assert on("v1") == {"192.0.2.10/32": ""}
            assert on("v0") == {"192.0.2.11/32": ""}
            sh("ip addr del 192.0.2.10/32 dev v1")
            await eventually(lambda: not keeper.problems)
            assert "192.0.2.10/32" in on("v0")

    check(main)


@in_own_network
def test_disown_changes_nothing(journal: list[str]) -> None:
    interface()

    async def main() -> None:
        keeper = ServiceAddresses(frozenset({PlacedAddress(interface="v0", address=B)}))
        sh("ip addr add 192.0.2.11/32 dev v0")
        keeper.disown()
        assert keeper.owned == frozenset()
        task = asyncio.create_task(keeper.run())
        await asyncio.sleep(0.1)
        assert on("v0") == {"192.0.2.11/32": ""}

        keeper.set_wanted("v0", frozenset({A}))
        await eventually(lambda: keeper.present == {A})
        keeper.disown()
        journal.clear()
        sh("ip addr flush dev v0")
        await asyncio.sleep(0.3)
        assert on("v0") == {}
        assert journal == []
        task.cancel()
        await asyncio.wait([task])

    check(main)


@in_own_network
def test_a_missing_permission_is_reported_and_tried_again() -> None:
    interface()
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    all_of_them = (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capget(header, all_of_them) == 0
    permitted = (ctypes.c_uint32 * 6)(*all_of_them)
    permitted[0] = permitted[3] = 0  # effective: none; permitted: as before

    async def main() -> None:
        async with kept(A) as keeper:
            await eventually(lambda: bool(keeper.problems))
            assert keeper.problems == {A: "not permitted to add it to v0 (needs CAP_NET_ADMIN)"}
            assert keeper.owned == frozenset()
            assert libc.capset(header, all_of_them) == 0
            await eventually(lambda: keeper.present == {A} and not keeper.problems)

    assert libc.capset(header, permitted) == 0
    check(main)


@in_own_network
def test_disabled_ipv6_is_reported_with_a_remedy() -> None:
    interface()
    sh("sysctl -qw net.ipv6.conf.v0.disable_ipv6=1")

    async def main() -> None:
        async with kept(A, V6) as keeper:
            await eventually(lambda: bool(keeper.problems))
            assert keeper.problems == {
                V6: "IPv6 is disabled on v0 (sysctl -w net.ipv6.conf.v0.disable_ipv6=0)"
            }
            assert keeper.present == {A}
            sh("sysctl -qw net.ipv6.conf.v0.disable_ipv6=0")
            await eventually(lambda: not keeper.problems)
            assert "2001:db8::10/128" in on("v0")

    check(main)


@in_own_network
def test_an_address_that_keeps_vanishing_is_put_back_ever_slower(journal: list[str]) -> None:
    interface()

    async def main() -> None:
        async with kept(A, B) as keeper:
            await eventually(lambda: keeper.present == {A, B})
            for _ in range(8):  # on a slow machine the first waits are over before it looks
                sh("ip addr del 192.0.2.10/32 dev v0")
                await eventually(lambda: said in journal or "192.0.2.10/32" in on("v0"))
                if said in journal:
                    break
            assert keeper.problems == {A: "another program keeps removing it from v0"}
            await eventually(lambda: not keeper.problems)
            assert len(on("v0")) == 2

    said = "service address 192.0.2.10: another program keeps removing it from v0"
    check(main)
    assert journal.count("put back 192.0.2.10/32 on v0: another program removed it") >= 3


@in_own_network
def test_lost_messages_count_as_a_change() -> None:
    """The kernel drops messages when nobody reads them; what they told is found anyway."""
    interface()
    batch = "addr add 192.0.2.11/32 dev w0\naddr del 192.0.2.11/32 dev w0\n" * 2000
    batch += "addr del 192.0.2.10/32 dev v0\n"

    def flood() -> None:
        subprocess.run(["ip", "-batch", "-"], input=batch, text=True, check=True)

    async def main() -> None:
        async with kept(A, B) as keeper:
            await eventually(lambda: keeper.present == {A, B})
            # In the loop's own thread: meanwhile nobody reads the socket.
            flood()
            await eventually(lambda: "192.0.2.10/32" in on("v0"))

    check(main)


@in_own_network
def test_the_neighbours_get_announcements() -> None:
    interface()
    (described,) = json.loads(sh("ip -j link show dev v0"))
    hardware = bytes.fromhex(described["address"].replace(":", ""))

    async def main(peer: socket.socket) -> None:
        loop = asyncio.get_running_loop()

        async def heard(wanted: Callable[[bytes], bool]) -> None:
            while not wanted(await loop.sock_recv(peer, 2048)):
                pass

        def is_arp(frame: bytes) -> bool:
            return frame == arp_frame(hardware, A.packed)

        def is_advertisement(frame: bytes) -> bool:
            # Ethernet 14, IPv6 40: hop limit at 7, source at 8; then ICMPv6.
            return (
                frame[12:14] == b"\x86\xdd"
                and frame[21] == 255
                and frame[22:38] == V6.packed
                and frame[54:56] == b"\x88\0"
                and frame[58:62] == b"\x20\0\0\0"
                and frame[62:86] == V6.packed + b"\x02\x01" + hardware
            )

        async with kept(A, V6) as keeper:
            await heard(is_arp)
            await heard(is_advertisement)
            await heard(is_arp)  # once more, a second later
            await heard(is_advertisement)
            assert keeper.present == {A, V6}
            sh("ip addr del 192.0.2.10/32 dev v0")
            await heard(is_arp)
            sh("""
            ip link set v0 down
            ip link set v0 up
            """)
            await heard(is_arp)
            await heard(is_advertisement)

    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003)) as peer:
        peer.bind(("w0", 0x0003))
        peer.setblocking(False)
        check(lambda: main(peer))


@in_own_network
def test_changes_of_other_interfaces_are_ignored() -> None:
    interface()
    heard: list[AddressChange] = []

    def settled() -> bool:  # the kernel tells of a new carrier late
        return '"operstate":"UP"' in sh("ip -j link show dev v0")

    async def main() -> None:
        await eventually(settled)
        with ChangeListener(heard.append) as changes:
            changes.watch("v0", socket.if_nametoindex("v0"), {A})
            for number in range(5):
                interface(f"vif{number}.0", f"p{number}")
                sh(f"ip addr add 10.7.{number}.1/24 dev vif{number}.0")
                sh(f"ip link del vif{number}.0")
                await asyncio.sleep(0.01)  # it reads, or messages would be lost
            assert heard == []
            sh("ip addr add 192.0.2.10/32 dev w0")
            await eventually(lambda: heard == [AddressChange.CHANGED])
            sh("ip link set v0 down")
            await eventually(lambda: AddressChange.WENT_DOWN in heard)
            sh("ip link del v0")
            await eventually(lambda: AddressChange.GONE in heard)

    check(main)


@in_own_network
def test_changes_of_problems_and_ownership_are_reported() -> None:
    interface()

    async def main() -> None:
        seen: list[tuple[int, int]] = []

        def changed() -> None:
            seen.append((len(keeper.owned), len(keeper.problems)))

        keeper = ServiceAddresses(on_change=changed)
        keeper.set_wanted("v0", frozenset({A}))
        await keeper.reconcile()
        keeper.set_wanted("nope0", frozenset({A}))
        await keeper.reconcile()
        await keeper.reconcile()
        assert seen == [(1, 0), (1, 1)]

    check(main)


@in_own_network
def test_an_address_stays_until_it_is_at_its_new_place() -> None:
    """An interface that is not there, then one that is down: neither ends the service."""
    interface()
    sh("ip link add v1 type veth peer name w1")

    async def main() -> None:
        keeper = ServiceAddresses()
        keeper.set_wanted("v0", frozenset({A, V6}))
        await keeper.reconcile()
        for name, why in (("v9", "there is no interface v9"), ("v1", "v1 is down")):
            keeper.set_wanted(name, frozenset({A, V6}))
            await keeper.reconcile()
            assert set(on("v0")) == {"192.0.2.10/32", "2001:db8::10/128"}
            assert keeper.problems == dict.fromkeys((A, V6), f"{why}; it stays on v0 until then")
            # A restarted agent knows that the address on v0 is its own.
            keeper = ServiceAddresses(keeper.owned)
            keeper.set_wanted(name, frozenset({A, V6}))
            await keeper.reconcile()
            assert set(on("v0")) == {"192.0.2.10/32", "2001:db8::10/128"}
        sh("""
        ip link set w1 up
        ip link set v1 up
        """)
        await keeper.reconcile()
        assert set(on("v1")) == {"192.0.2.10/32", "2001:db8::10/128"}
        assert on("v0") == {}
        assert keeper.problems == {}

    check(main)


@in_own_network
def test_interface_and_source_address_for_a_server() -> None:
    interface()
    interface("v1", "w1")
    sh("""
    ip addr add 192.0.2.1/24 dev v0
    ip addr add 2001:db8::1/64 dev v1 nodad
    """)

    async def main() -> None:
        assert await outgoing_interfaces([A, B]) == {"v0"}
        assert await outgoing_interfaces([A, V6]) == {"v0", "v1"}
        assert await outgoing_interfaces([ip_address("203.0.113.1")]) == frozenset()
        found = await source_addresses([B, V6, ip_address("203.0.113.1")])
        assert {str(to): str(by) for to, by in found.items()} == {
            str(B): "192.0.2.1",
            str(V6): "2001:db8::1",
        }

    check(main)


def test_the_arp_packet() -> None:
    frame = arp_frame(bytes.fromhex("00163e123456"), A.packed)
    assert re.fullmatch(
        "ffffffffffff"
        "00163e123456"
        "0806"  # to all, from us, ARP
        "0001080006040001"  # Ethernet, IPv4, request
        "00163e123456"
        "c000020a"
        "000000000000"
        "c000020a",
        frame.hex(),
    )
