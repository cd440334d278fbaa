"""ipvsadm's syntax: written lines read back, spellings, and what is said of wrong lines."""

import contextlib
import re
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ipvsadm.parse import NO_NAMES, Names, ParseError, parse, parse_op
from tests.unit.ipvs.strategies import addresses, keys, ports, servers, services, tables
from xenlb.ipvs import text
from xenlb.ipvs.diff import Owned, diff
from xenlb.ipvs.op import (
    AddServer,
    AddService,
    DeleteServer,
    DeleteService,
    Op,
    SetServer,
    SetService,
)
from xenlb.ipvs.table import (
    IPAddress,
    Protocol,
    SchedulerFlags,
    ServerKey,
    Table,
    TunnelChecksum,
    TunnelType,
)


@st.composite
def ops(draw: st.DrawFn) -> Op:
    key = draw(keys())
    server_key = ServerKey(address=draw(addresses), port=draw(ports))
    kind = draw(
        st.sampled_from([AddService, SetService, DeleteService, AddServer, SetServer, DeleteServer])
    )
    if kind is AddService or kind is SetService:
        return kind(service=draw(services(key)))
    if kind is DeleteService:
        return DeleteService(key=key)
    if kind is DeleteServer:
        return DeleteServer(service=key, key=server_key)
    server = draw(servers(server_key, key.family))
    return (
        SetServer(service=key, server=server)
        if kind is SetServer
        else AddServer(service=key, server=server)
    )


@given(ops())
def test_the_line_of_an_operation_is_that_operation(op: Op) -> None:
    assert parse_op(str(op)) == op


@given(tables())
def test_a_table_of_operations_is_that_table(table: Table) -> None:
    assert parse("".join(f"{op}\n" for op in diff(table, Table(), Owned()))) == table


@given(tables())
def test_a_dump_settles(table: Table) -> None:
    """It has no thresholds, as ipvsadm's has none; all else comes back."""
    once = parse(text.dump(table))
    assert text.dump(once) == text.dump(table)
    assert once.entries.keys() == table.entries.keys()
    for key, entry in table.entries.items():
        assert once.entries[key].service == entry.service
        assert once.entries[key].servers.keys() == entry.servers.keys()


# What ipvsadm 1.31 printed (`ipvsadm -Sn`) in User-mode Linux, in its order.
PRINTED = """\
-A -f -1294967296 -6 -s wlc -p 30 -M 1
-A -f -1 -s wlc -o
-a -f -1 -r 10.0.0.1:0 -m -w 2147483647
-A -t 192.0.2.10:0 -s wlc -p 100
-A -t 192.0.2.10:25 -s sh -p 300 -M 255.255.255.0 -b sh-fallback,sh-port
-a -t 192.0.2.10:25 -r 10.0.0.1:26 -m -w 65535
-a -t 192.0.2.10:25 -r 10.0.0.2:25 -g -w 1
-a -t 192.0.2.10:25 -r 10.0.0.4:25 -i -w 1 --tun-type ipip
-a -t 192.0.2.10:25 -r 10.0.0.5:25 -i -w 1 --tun-type gue --tun-port 5555 --tun-nocsum
-a -t 192.0.2.10:25 -r 10.0.0.6:25 -i -w 1 --tun-type gue --tun-port 5555 --tun-csum
-a -t 192.0.2.10:25 -r 10.0.0.7:25 -i -w 1 --tun-type gue --tun-port 5555 --tun-remcsum
-a -t 192.0.2.10:25 -r 10.0.0.8:25 -i -w 1 --tun-type gre --tun-csum
-a -t 192.0.2.10:25 -r 10.0.0.9:25 -i -w 1 --tun-type gre --tun-nocsum
-a -t 192.0.2.10:25 -r 127.0.0.1:80 -m -w 1
-A -t 192.0.2.10:27 -s wlc -b flag-1,flag-3
-A -u 192.0.2.10:29 -s sh -p 7 -M 255.0.255.0 --pe sip -o -b sh-fallback,sh-port
-A -u 192.0.2.10:35 -s none
-A --sctp-service 192.0.2.10:53 -s wlc
-A -t [::1]:80 -s wlc
-A -t [::1.2.3.4]:80 -s wlc
-A -t [::ffff:1.2.3.4]:80 -s wlc
-A -t [2001:db8::1]:80 -s wlc -p 30 -M 64
-a -t [2001:db8::1]:80 -r 10.0.0.2:80 -i -w 1 --tun-type ipip
-a -t [2001:db8::1]:80 -r [2001:db8::2]:81 -m -w 1
-A -t [2001:db8::1:0:0:1]:80 -s wlc
-A -f 7 -s wlc
-a -f 7 -r 10.0.0.2:0 -g -w 1
-A -f 7 -6 -s wlc -p 20
"""


def test_a_dump_is_what_ipvsadm_prints() -> None:
    assert text.dump(parse(PRINTED)) == PRINTED


def test_names_are_looked_up() -> None:
    known: dict[str, IPAddress] = {"www.example.net": IPv4Address("192.0.2.7")}
    names = Names(
        port=lambda name, protocol: (
            {"smtp": 25, "domain": 53}[name] if protocol is not Protocol.SCTP else None
        ),
        host=known.get,
    )
    table = parse(
        """
        -A -t www.example.net:smtp -s wlc
        -a -t www.example.net:smtp -r 10.0.0.1:domain -m -w 1
        -A -u [2001:db8::1]:domain
        """,
        names=names,
    )
    assert text.dump(table).splitlines() == [
        "-A -t 192.0.2.7:25 -s wlc",
        "-a -t 192.0.2.7:25 -r 10.0.0.1:53 -m -w 1",
        "-A -u [2001:db8::1]:53 -s wlc",
    ]
    with pytest.raises(ParseError, match=r"domain is not a port number \(print with -n\)"):
        parse("-A --sctp-service 192.0.2.7:domain", names=names)
    with pytest.raises(ParseError, match=r"www.example.org: not an IP address \(print with -n\)"):
        parse("-A -t www.example.org:25", names=names)


@pytest.mark.parametrize(
    ("line", "means"),
    [
        ("--add-service --tcp-service 192.0.2.1:80", "-A -t 192.0.2.1:80 -s wlc"),
        ("-At 192.0.2.1:80 -srr -p200", "-A -t 192.0.2.1:80 -s rr -p 200"),
        ("-A -t=192.0.2.1:80 -s=rr", "-A -t 192.0.2.1:80 -s rr"),
        ("-A -p -t 192.0.2.1:80", "-A -t 192.0.2.1:80 -s wlc -p 360"),
        ("-A -t 192.0.2.1:80 --persistent", "-A -t 192.0.2.1:80 -s wlc -p 360"),
        ("-A -t 192.0.2.1:80 --persistent=9", "-A -t 192.0.2.1:80 -s wlc -p 9"),
        ("-A -t 192.0.2.1:80 --persistent 9", "-A -t 192.0.2.1:80 -s wlc -p 9"),
        ("-A -t 192.0.2.1:80 -p 9 -M 255.255.255.255", "-A -t 192.0.2.1:80 -s wlc -p 9"),
        ("-A -t 192.0.2.1:80 -M 255.0.0.0", "-A -t 192.0.2.1:80 -s wlc"),
        ("-A -s mh -b mh-port,flag-1 -f 7", "-A -f 7 -s mh -b mh-fallback,mh-port"),
        ("-A -t 192.0.2.1 -p 9", "-A -t 192.0.2.1:0 -s wlc -p 9"),
        ("-A -t 2001:db8::1 -p 9", "-A -t [2001:db8::1]:0 -s wlc -p 9"),
        ("-A -t [2001:db8::1] -p 9", "-A -t [2001:db8::1]:0 -s wlc -p 9"),
        ("-A -f 7 --ipv6", "-A -f 7 -6 -s wlc"),
        ("-A -6 -f 7", "-A -f 7 -6 -s wlc"),
        ("/usr/sbin/ipvsadm -D -u '192.0.2.1:80' # gone", "-D -u 192.0.2.1:80"),
        ("ipvsadm -D -u 192.0.2.1:80", "-D -u 192.0.2.1:80"),
        ("-E -f 7 --ops", "-E -f 7 -s wlc -o"),
        ("-a -f 7 -r 10.0.0.1", "-a -f 7 -r 10.0.0.1:0 -g -w 1"),
        ("-a -r 10.0.0.1 -t 192.0.2.1:80", "-a -t 192.0.2.1:80 -r 10.0.0.1:80 -g -w 1"),
        ("-a -f 7 -r 10.0.0.1 --ipip", "-a -f 7 -r 10.0.0.1:0 -i -w 1 --tun-type ipip"),
        ("-e -f 7 -r 10.0.0.1 -w0 -x=9 --l-threshold=3", "-e -f 7 -r 10.0.0.1:0 -g -w 0 -x 9 -y 3"),
        ("-d -f 7 --real-server=10.0.0.1:9", "-d -f 7 -r 10.0.0.1:9"),
    ],
)  # fmt: skip
def test_spellings(line: str, means: str) -> None:
    assert str(parse_op(line)) == means


def test_a_file_for_ipvsadm_restore() -> None:
    table = parse(
        """
        # the mail service
        ipvsadm -C
        ipvsadm -A -t 192.0.2.10:25 -s rr   # all day
        -a -t 192.0.2.10:25 -r 10.0.0.11:26 -m
        -a -t 192.0.2.10:25 -r 10.0.0.12:26 -m
        -e -t 192.0.2.10:25 -r 10.0.0.12:26 -m -w 4
        -d -t 192.0.2.10:25 -r 10.0.0.11:26
        -E -t 192.0.2.10:25 -s wrr
        -A -f 9
        -D -f 9
        """
    )
    assert text.dump(table).splitlines() == [
        "-A -t 192.0.2.10:25 -s wrr",
        "-a -t 192.0.2.10:25 -r 10.0.0.12:26 -m -w 4",
    ]
    assert parse("-A -f 7\n-C\n") == Table()
    assert parse("") == Table()


SERVICE = "-t 192.0.2.1:80"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("-t 192.0.2.1:80 -A", "begins with its command"),
        ("stuff", "stuff belongs to no option"),
        ("-A", "no service"),
        (f"-A {SERVICE} -f 7", "-f and -t name two services"),
        ("-A -D -f 7", "two commands, -A and -D"),
        (f"-A {SERVICE} {SERVICE}", "-t appears twice"),
        (f"-A {SERVICE} -w 1", "-w does not go with -A"),
        (f"-D {SERVICE} -s rr", "-s does not go with -D"),
        (f"-a {SERVICE} -r 10.0.0.1 -p", "-p does not go with -a"),
        (f"-A {SERVICE} --colour", "--colour is not an option"),
        (f"-A {SERVICE} -q", "-q is not an option"),
        ("-L -n", "-L is not an option"),
        (f"-A {SERVICE} -s", "-s needs a value"),
        (f"-A {SERVICE} --ops=1", "--ops takes no value"),
        (f"-A {SERVICE} -o", "-o is for udp"),
        (f"-A {SERVICE} -6", "-6 goes with -f only"),
        ("-A -t 192.0.2.1", "add -p"),
        ("-A -t 192.0.2.1:http", "http is not a port number"),
        ("-A -t 192.0.2.1:65536", "65536 is not a port number"),
        ("-A -t 192.0.2.1:", "is not a port number"),
        ("-A -t 192.0.2.300:80", "not an IP address"),
        ("-A -t localhost:80", "not an IP address"),
        ("-A -t [2001:db8::x]:80", "not an IP address"),
        ("-A -t [2001:db8::1:80", "not of the form"),
        ("-A -t [2001:db8::1]80", "not of the form"),
        ("-A -f 0", "packets without a mark"),
        ("-A -f 4294967296", "not a number from"),
        ("-A -f 0x10", "not a number from"),
        (f"-A {SERVICE} -p 0", "not a number from 1 to 2678400"),
        (f"-A {SERVICE} -p 2678401", "not a number from 1 to 2678400"),
        (f"-A {SERVICE} -p 9 -M 64", "not a netmask"),
        ("-A -f 7 -6 -p 9 -M 0", "not a number from 1 to 128"),
        ("-A -f 7 -6 -p 9 -M 255.0.0.0", "not a number from 1 to 128"),
        (f"-A {SERVICE} -s rr -b sh-port", "sh-port is not a flag of the scheduler rr"),
        (f"-A {SERVICE} -b flag-4", "flag-4 is no scheduler flag"),
        (f"-a {SERVICE}", "no server"),
        (f"-a {SERVICE} -r 10.0.0.1 -g -m", "exclude each other"),
        (f"-a {SERVICE} -r 10.0.0.1 -w -1", "-w -1: not a number from 0 to 2147483647"),
        (f"-a {SERVICE} -r 10.0.0.1 -w 2147483648", "not a number from 0 to 2147483647"),
        (f"-a {SERVICE} -r 10.0.0.1 -w ²", "not a number"),
        (f"-a {SERVICE} -r 10.0.0.1 -x many", "not a number"),
        (f"-a {SERVICE} -r 2001:db8::1", "tunnel"),
        (f"-a {SERVICE} -r 10.0.0.1 --tun-type gre", "goes with -i (tunnel) only"),
        (f"-a {SERVICE} -r 10.0.0.1 -i --tun-type vxlan", "write ipip, gue or gre"),
        (f"-a {SERVICE} -r 10.0.0.1 -i --tun-type gue", "needs --tun-port"),
        (f"-a {SERVICE} -r 10.0.0.1 -i --tun-port 7", "--tun-type gue only"),
        (f"-a {SERVICE} -r 10.0.0.1 -i --tun-csum", "does not go with --tun-type ipip"),
        (f"-a {SERVICE} -r 10.0.0.1 -i --tun-type gre --tun-remcsum", "--tun-type gre"),
        (f"-a {SERVICE} -r 10.0.0.1 -i --tun-type gre --tun-csum --tun-nocsum", "exclude each"),
        (f"-A {SERVICE} -s 'rr", "quotes do not match"),
    ],
)
def test_wrong_lines(line: str, reason: str) -> None:
    with pytest.raises(ParseError, match=re.escape(reason)) as caught:
        parse(f"\n-A -t 192.0.2.99:80\n{line}\n")
    assert caught.value.line == 3
    assert str(caught.value) == f"line 3: {caught.value.reason}"
    with pytest.raises(ParseError):
        parse_op(line)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("-A -f 7", "the service has been added"),
        ("-E -f 8", "the service has not been added"),
        ("-D -f 8", "the service has not been added"),
        ("-a -f 8 -r 10.0.0.1", "the service of this server has not been added"),
        ("-a -f 7 -r 10.0.0.1", "the service has this server"),
        ("-e -f 7 -r 10.0.0.2", "the service has no such server"),
        ("-d -f 7 -r 10.0.0.2", "the service has no such server"),
    ],
)
def test_lines_that_the_kernel_would_refuse(line: str, reason: str) -> None:
    with pytest.raises(ParseError, match=f"line 3: {reason}"):
        parse(f"-A -f 7\n-a -f 7 -r 10.0.0.1\n{line}")


@pytest.mark.parametrize("line", ["", "# nothing", "-C", "ipvsadm"])
def test_what_is_no_operation(line: str) -> None:
    with pytest.raises(ParseError, match="an operation on a service or a server was expected"):
        parse_op(line)


@given(st.text(max_size=60))
def test_any_line_is_read_or_refused(line: str) -> None:
    for read in (parse, parse_op):
        with contextlib.suppress(ParseError):
            read(line)


@given(
    st.lists(
        st.sampled_from(
            [
                *("A", "d", "-A", "-E", "-D", "-a", "-e", "-d", "-f", "7", "-t", "192.0.2.1:80"),
                *("-r", "10.0.0.1", "-i", "-p", "-M", "-b", "flag-1", "--tun-type", "gue"),
                *("--tun-port", "-6", "-w", "--pe", "="),
            ]
        ),
        max_size=9,
    )
)
def test_any_words_are_read_or_refused(words: list[str]) -> None:
    try:
        op = parse_op(" ".join(words))
    except ParseError:
        return
    assert parse_op(str(op)) == op


@given(st.ip_addresses(v=6))
def test_ipv6_addresses_are_written_as_the_c_library_does(address: IPv6Address) -> None:
    assert ip_address(text.address(address)) == address


def test_the_third_flag_of_sh_is_only_in_the_line_of_an_operation() -> None:
    op = parse_op("-A -f 7 -s sh -b flag-3")
    assert isinstance(op, AddService)
    assert op.service.flags == SchedulerFlags.THREE
    assert str(op) == "-A -f 7 -s sh -b flag-3"
    assert text.dump(parse("-A -f 7 -s sh -b sh-port,flag-3")) == "-A -f 7 -s sh -b sh-port\n"


def test_tunnel_words_are_those_of_the_types() -> None:
    op = parse_op("-a -f 7 -r 10.0.0.1 -i --tun-type gue --tun-port 7 --tun-remcsum")
    assert isinstance(op, AddServer)
    assert op.server.tunnel is not None
    assert (op.server.tunnel.type, op.server.tunnel.checksum) == (
        TunnelType.GUE,
        TunnelChecksum.REMOTE,
    )
    assert NO_NAMES.port("http", Protocol.TCP) is None
