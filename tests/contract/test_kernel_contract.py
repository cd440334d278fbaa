"""What an IPVS table does with operations: the fake's promise, and the kernel's."""

import errno
from collections.abc import Iterable, Sequence
from dataclasses import replace
from ipaddress import ip_address

import pytest

from tests.contract import variants
from tests.ipvsadm.parse import parse_op
from xenlb.ipvs import text
from xenlb.ipvs.diff import Owned, diff
from xenlb.ipvs.kernel import KernelTable
from xenlb.ipvs.op import (
    AddServer,
    AddService,
    DeleteServer,
    DeleteService,
    Op,
    OpFailed,
    SetServer,
    SetService,
)
from xenlb.ipvs.table import Counters, Entry, Server, Service, ServiceKey, Table

MAIL = "-t 192.0.2.10:25"


def ops(*lines: str) -> list[Op]:
    return [parse_op(line) for line in lines]


def did(kernel: KernelTable, *lines: str) -> None:
    assert kernel.apply(ops(*lines)) == ()


def refused(kernel: KernelTable, *lines: str) -> list[tuple[str, str]]:
    return shown(kernel.apply(ops(*lines)))


def shown(failed: Iterable[OpFailed]) -> list[tuple[str, str]]:
    return [(str(each.op)[:2], errno.errorcode[each.errno]) for each in failed]


def lines(kernel: KernelTable) -> list[str]:
    return [str(op) for op in diff(kernel.read().table, Table(), Owned())]


def of_key(key: ServiceKey) -> Sequence[Service]:
    return [service for service in variants.services() if service.key == key]


# ---- every variant ----


@pytest.mark.parametrize("key", variants.keys(), ids=text.service_key)
def test_a_service_is_added_and_set_to_every_variant(kernel: KernelTable, key: ServiceKey) -> None:
    first, *others = of_key(key)
    assert kernel.apply([AddService(service=first)]) == ()
    assert kernel.read([key]).table == Table(entries={key: Entry(service=first)})
    for service in (*others, first):
        assert kernel.apply([SetService(service=service)]) == ()
        assert kernel.read([key]).table == Table(entries={key: Entry(service=service)})


@pytest.mark.parametrize("key", variants.keys(), ids=text.service_key)
def test_a_server_is_added_and_set_to_every_variant(kernel: KernelTable, key: ServiceKey) -> None:
    service = Service(key=key, prefix=key.family.bits)
    assert kernel.apply([AddService(service=service)]) == ()
    want: dict[object, Server] = {}
    for server in (*variants.servers(key), *variants.servers(key)):
        op = SetServer if server.key in want else AddServer
        assert kernel.apply([op(service=key, server=server)]) == ()
        want[server.key] = server
        assert dict(kernel.read([key]).table.entries[key].servers) == want


@pytest.mark.parametrize(
    "table",
    [variants.side_by_side(), variants.servers_side_by_side()],
    ids=["services", "servers"],
)
def test_a_whole_table_is_written_read_and_removed(kernel: KernelTable, table: Table) -> None:
    assert kernel.apply(diff(table, Table(), Owned())) == ()
    snapshot = kernel.read()
    assert snapshot.table == table
    assert diff(table, snapshot.table, Owned()) == ()
    zero = Counters()
    for key, entry in table.entries.items():
        assert snapshot.counters[key] == dict.fromkeys(entry.servers, zero)
    assert kernel.read(counters=False).table == table
    owned = Owned(
        services=frozenset(table.entries),
        servers=frozenset((k, server) for k, e in table.entries.items() for server in e.servers),
    )
    assert kernel.apply(diff(Table(), table, owned)) == ()
    assert kernel.read().table == Table()


def test_every_change_of_a_service_keeps_its_servers(kernel: KernelTable) -> None:
    did(kernel, f"-A {MAIL} -s rr", f"-a {MAIL} -r 10.0.0.11:26 -m -w 3")
    did(kernel, f"-E {MAIL} -s mh -p 60 -M 255.255.255.0 -b mh-port")
    assert lines(kernel) == [
        f"-A {MAIL} -s mh -p 60 -M 255.255.255.0 -b mh-port",
        f"-a {MAIL} -r 10.0.0.11:26 -m -w 3",
    ]


def test_what_a_set_does_not_say_is_the_default_again(kernel: KernelTable) -> None:
    did(
        kernel,
        f"-A {MAIL} -s sh -p 60 -M 255.0.0.0 --pe sip -b sh-port",
        f"-a {MAIL} -r 10.0.0.11:25 -i -w 3 -x 9 -y 4 --tun-type gue --tun-port 7 --tun-csum",
        f"-E {MAIL}",
        f"-e {MAIL} -r 10.0.0.11:25",
    )
    assert lines(kernel) == [f"-A {MAIL} -s wlc", f"-a {MAIL} -r 10.0.0.11:25 -g -w 1"]


# ---- what is the same, what is another ----


def test_protocol_family_and_mark_tell_services_apart(kernel: KernelTable) -> None:
    same_place = ["-t", "-u", "--sctp-service"]
    did(kernel, *(f"-A {protocol} 192.0.2.10:25" for protocol in same_place))
    did(kernel, "-A -f 7", "-A -f 7 -6", "-A -f 8")
    assert len(lines(kernel)) == 6
    did(kernel, "-D -u 192.0.2.10:25", "-D -f 7 -6")
    assert sorted(lines(kernel)) == [
        "-A --sctp-service 192.0.2.10:25 -s wlc",
        "-A -f 7 -s wlc",
        "-A -f 8 -s wlc",
        f"-A {MAIL} -s wlc",
    ]


@pytest.mark.parametrize("service", [MAIL, "-f 7"])
def test_servers_of_one_address_differ_by_port(kernel: KernelTable, service: str) -> None:
    did(kernel, f"-A {service}", *(f"-a {service} -r 10.0.0.11:{p} -m" for p in (80, 81, 82)))
    did(kernel, f"-d {service} -r 10.0.0.11:81", f"-e {service} -r 10.0.0.11:82 -m -w 9")
    assert sorted(lines(kernel)[1:]) == [
        f"-a {service} -r 10.0.0.11:80 -m -w 1",
        f"-a {service} -r 10.0.0.11:82 -m -w 9",
    ]


def test_another_port_is_kept_for_gatewaying_too(kernel: KernelTable) -> None:
    did(kernel, f"-A {MAIL}", f"-a {MAIL} -r 10.0.0.11:26 -g", f"-a {MAIL} -r 10.0.0.12:27 -i")
    assert sorted(lines(kernel)[1:]) == [
        f"-a {MAIL} -r 10.0.0.11:26 -g -w 1",
        f"-a {MAIL} -r 10.0.0.12:27 -i -w 1 --tun-type ipip",
    ]


def test_weights_and_thresholds_may_be_very_large(kernel: KernelTable) -> None:
    # Linux 6.1 takes thresholds of 32 bits, 6.12 refuses those above 2**31 - 1 with EINVAL.
    line = f"-a {MAIL} -r 10.0.0.11:25 -g -w 2147483647 -x 2147483647 -y 2147483647"
    did(kernel, f"-A {MAIL}", line)
    assert lines(kernel)[1] == line


def test_a_deleted_service_takes_its_servers_along(kernel: KernelTable) -> None:
    add = [f"-A {MAIL}", f"-a {MAIL} -r 10.0.0.11:25"]
    did(kernel, *add, f"-D {MAIL}", add[0])
    assert lines(kernel) == [f"-A {MAIL} -s wlc"]


# ---- reading ----


def test_an_empty_table(kernel: KernelTable) -> None:
    snapshot = kernel.read()
    assert snapshot.table == Table()
    assert not snapshot.counters


def test_some_services_are_read_alone(kernel: KernelTable) -> None:
    did(kernel, *(f"-A -t 192.0.2.{n}:25" for n in range(1, 5)))
    did(kernel, "-a -t 192.0.2.2:25 -r 10.0.0.11:25")
    key, other, unknown = (
        op.key for op in ops(*(f"-D -t 192.0.2.{n}:25" for n in (2, 3, 9)))
        if isinstance(op, DeleteService)
    )  # fmt: skip
    some = kernel.read([key, unknown, other])
    assert list(some.table.entries) == [key, other]
    assert len(some.table.entries[key].servers) == 1
    assert some.table == Table(
        entries={each: kernel.read().table.entries[each] for each in (key, other)}
    )


# ---- refusals ----


def test_what_is_there_cannot_be_added(kernel: KernelTable) -> None:
    did(kernel, f"-A {MAIL} -s rr", f"-a {MAIL} -r 10.0.0.11:25 -w 5")
    assert refused(kernel, f"-A {MAIL} -s wrr", f"-a {MAIL} -r 10.0.0.11:25 -m -w 6") == [
        ("-A", "EEXIST"),
        ("-a", "EEXIST"),
    ]
    # The service's presence is seen first, before its scheduler.
    assert refused(kernel, f"-A {MAIL} -s nonesuch") == [("-A", "EEXIST")]
    assert lines(kernel) == [f"-A {MAIL} -s rr", f"-a {MAIL} -r 10.0.0.11:25 -g -w 5"]


def test_what_is_not_there_cannot_be_set(kernel: KernelTable) -> None:
    assert refused(kernel, f"-E {MAIL}", f"-e {MAIL} -r 10.0.0.11:25") == [
        ("-E", "ESRCH"),
        ("-e", "ESRCH"),
    ]
    did(kernel, f"-A {MAIL}")
    assert refused(kernel, f"-e {MAIL} -r 10.0.0.11:25") == [("-e", "ENOENT")]
    assert refused(kernel, "-a -t 192.0.2.10:26 -r 10.0.0.11:25") == [("-a", "ESRCH")]


def test_deleting_what_has_gone_is_no_failure(kernel: KernelTable) -> None:
    did(kernel, f"-D {MAIL}", f"-d {MAIL} -r 10.0.0.11:25")
    did(kernel, f"-A {MAIL}", f"-d {MAIL} -r 10.0.0.11:25")
    assert lines(kernel) == [f"-A {MAIL} -s wlc"]


def test_unknown_schedulers_and_engines(kernel: KernelTable) -> None:
    assert refused(kernel, f"-A {MAIL} -s nonesuch") == [("-A", "ENOENT")]
    assert refused(kernel, f"-A {MAIL} -p 9 --pe nonesuch") == [("-A", "ENOENT")]
    did(kernel, f"-A {MAIL} -s rr")
    assert refused(kernel, f"-E {MAIL} -s nonesuch") == [("-E", "ENOENT")]
    assert refused(kernel, f"-E {MAIL} -p 9 --pe nonesuch") == [("-E", "ENOENT")]
    assert lines(kernel) == [f"-A {MAIL} -s rr"]


def test_a_lower_threshold_above_the_upper(kernel: KernelTable) -> None:
    did(kernel, f"-A {MAIL}")
    assert refused(kernel, f"-a {MAIL} -r 10.0.0.11:25 -x 1 -y 2") == [("-a", "ERANGE")]
    did(kernel, f"-a {MAIL} -r 10.0.0.11:25 -x 2 -y 2")
    assert refused(kernel, f"-e {MAIL} -r 10.0.0.11:25 -x 1 -y 2") == [("-e", "ERANGE")]
    assert refused(kernel, f"-e {MAIL} -r 10.0.0.11:25 -y 2") == [("-e", "ERANGE")]
    assert lines(kernel)[1].endswith("-w 1 -x 2 -y 2")


@pytest.mark.parametrize("service", [MAIL, "-t [2001:db8::10]:25", "-f 7", "-f 7 -6"])
def test_the_other_family_works_by_tunnel_only(kernel: KernelTable, service: str) -> None:
    did(kernel, f"-A {service}")
    [tunnel] = ops(f"-a {service} -r 10.0.0.11:25 -i")
    assert isinstance(tunnel, AddServer)
    mine = tunnel.service.family == "inet"
    other = "2001:db8::11" if mine else "10.0.0.11"
    tunnel = replace(
        tunnel,
        server=replace(
            tunnel.server, key=replace(tunnel.server.key, address=ip_address(other))
        ),
    )  # fmt: skip
    for line in ("-m", "-g"):
        [like] = ops(f"-a {MAIL} -r 10.0.0.11:25 {line}")
        assert isinstance(like, AddServer)
        bad = replace(
            tunnel,
            server=replace(tunnel.server, forwarding=like.server.forwarding, tunnel=None),
        )
        assert shown(kernel.apply([bad])) == [("-a", "EINVAL")]
    assert kernel.apply([tunnel]) == ()
    [entry] = kernel.read().table.entries.values()
    assert list(entry.servers.values()) == [tunnel.server]


def test_a_gue_tunnel_needs_a_port(kernel: KernelTable) -> None:
    did(kernel, f"-A {MAIL}", f"-a {MAIL} -r 10.0.0.11:25")
    for line in (f"-a {MAIL} -r 10.0.0.12:25", f"-e {MAIL} -r 10.0.0.11:25"):
        [op] = ops(f"{line} -i --tun-type gue --tun-port 1")
        assert isinstance(op, AddServer | SetServer)
        assert op.server.tunnel
        portless = replace(op.server, tunnel=replace(op.server.tunnel, port=0))
        assert shown(kernel.apply([replace(op, server=portless)])) == [(line[:2], "EINVAL")]


@pytest.mark.parametrize("prefix", [0, 129])
def test_an_ipv6_prefix_out_of_range(kernel: KernelTable, prefix: int) -> None:
    [op] = ops("-A -t [2001:db8::10]:25 -p 9")
    assert isinstance(op, AddService)
    bad = replace(op.service, prefix=prefix)
    assert shown(kernel.apply([AddService(service=bad)])) == [("-A", "EINVAL")]
    assert kernel.apply([op]) == ()
    assert shown(kernel.apply([SetService(service=bad)])) == [("-E", "EINVAL")]
    # Without persistence it has no effect, and so is no reason to refuse.
    assert kernel.apply([SetService(service=replace(bad, persistence=None))]) == ()


@pytest.mark.parametrize(
    ("service", "address"),
    [
        *((MAIL, a) for a in ("224.0.0.1", "239.1.2.3", "255.255.255.255", "0.0.0.0")),
        *(("-t [2001:db8::10]:25", f"[{a}]") for a in ("ff02::1", "::", "fe80::1")),
    ],
)
def test_a_server_is_one_machine(kernel: KernelTable, service: str, address: str) -> None:
    did(kernel, f"-A {service}")
    assert refused(kernel, f"-a {service} -r {address}:25") == [("-a", "EINVAL")]
    # There is none that could be set or deleted.
    assert refused(kernel, f"-e {service} -r {address}:25") == [("-e", "ENOENT")]
    did(kernel, f"-d {service} -r {address}:25")


@pytest.mark.parametrize("service", ["192.0.2.10", "224.0.0.1", "127.0.0.1", "[fe80::1]", "[::1]"])
def test_a_service_may_be_at_any_address(kernel: KernelTable, service: str) -> None:
    did(kernel, f"-A -t {service}:25")
    assert lines(kernel) == [f"-A -t {service}:25 -s wlc"]


# ---- many at once ----


def test_a_failure_stops_none_of_the_others(kernel: KernelTable) -> None:
    assert refused(
        kernel,
        "-E -t 192.0.2.9:25",
        f"-A {MAIL} -s rr",
        f"-A {MAIL} -s nonesuch",
        f"-a {MAIL} -r 10.0.0.11:25",
        f"-a {MAIL} -r 224.0.0.1:25",
        f"-d {MAIL} -r 10.0.0.99:25",
        f"-a {MAIL} -r 10.0.0.12:25 -w 0",
        f"-e {MAIL} -r 10.0.0.13:25",
    ) == [("-E", "ESRCH"), ("-A", "EEXIST"), ("-a", "EINVAL"), ("-e", "ENOENT")]
    assert lines(kernel)[0] == f"-A {MAIL} -s rr"
    assert sorted(lines(kernel)[1:]) == [
        f"-a {MAIL} -r 10.0.0.11:25 -g -w 1",
        f"-a {MAIL} -r 10.0.0.12:25 -g -w 0",
    ]


def test_operations_are_done_in_turn(kernel: KernelTable) -> None:
    did(
        kernel,
        f"-A {MAIL} -s rr",
        f"-a {MAIL} -r 10.0.0.11:25 -w 1",
        f"-e {MAIL} -r 10.0.0.11:25 -w 2",
        f"-d {MAIL} -r 10.0.0.11:25",
        f"-a {MAIL} -r 10.0.0.11:25 -w 3",
        f"-E {MAIL} -s wrr",
        f"-e {MAIL} -r 10.0.0.11:25 -w 4",
    )
    assert lines(kernel) == [f"-A {MAIL} -s wrr", f"-a {MAIL} -r 10.0.0.11:25 -g -w 4"]


def test_each_of_thousands_of_failures_is_told(kernel: KernelTable) -> None:
    did(kernel, f"-A {MAIL}")
    many = ops(*(f"-e {MAIL} -r 10.1.{n >> 8}.{n & 255}:25" for n in range(3000)))
    assert kernel.apply(many) == tuple(OpFailed(op=op, errno=errno.ENOENT) for op in many)
    # And among thousands of successes, in their order.
    mixed: list[Op] = []
    for position, op in enumerate(many):
        assert isinstance(op, SetServer)
        if position % 7:
            mixed.append(AddServer(service=op.service, server=op.server))
        else:
            mixed.append(op)
    assert kernel.apply(mixed) == tuple(
        OpFailed(op=op, errno=errno.ENOENT) for op in mixed if isinstance(op, SetServer)
    )
    [entry] = kernel.read().table.entries.values()
    assert len(entry.servers) == sum(isinstance(op, AddServer) for op in mixed)
    gone = [DeleteServer(service=entry.service.key, key=key) for key in entry.servers]
    assert kernel.apply(gone) == ()


def test_nothing_to_do(kernel: KernelTable) -> None:
    assert kernel.apply([]) == ()
    assert kernel.read([]).table == Table()


def test_it_can_be_used_again_after_close(kernel: KernelTable) -> None:
    did(kernel, f"-A {MAIL}")
    kernel.close()
    assert lines(kernel) == [f"-A {MAIL} -s wlc"]
    kernel.close()
    did(kernel, f"-D {MAIL}")
