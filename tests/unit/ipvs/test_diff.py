"""The difference of two tables, as properties; the strict fake does the operations."""

from dataclasses import replace

from hypothesis import example, given, settings

from tests.fakes.kernel import FakeKernel
from tests.ipvsadm.parse import parse
from tests.soak import often
from tests.unit.ipvs.strategies import SOME_KEYS, SOME_SERVERS, owned, tables
from xenlb.ipvs.diff import Owned, diff, find_foreign
from xenlb.ipvs.op import DeleteServer, DeleteService
from xenlb.ipvs.table import Entry, Forwarding, Server, ServerKey, ServiceKey, Table, Tunnel

MAIL = "-t 192.0.2.10:25"
EVERYTHING = Owned(
    services=frozenset(SOME_KEYS),
    servers=frozenset((key, server) for key in SOME_KEYS for server in SOME_SERVERS),
)


def applied(want: Table, have: Table, owned: Owned) -> Table:
    kernel = FakeKernel(have)
    assert kernel.apply(diff(want, have, owned)) == ()
    return kernel.read().table


def pairs(table: Table) -> set[tuple[ServiceKey, ServerKey]]:
    return {(key, server) for key, entry in table.entries.items() for server in entry.servers}


def serving(table: Table, key: ServiceKey) -> int:
    entry = table.entries.get(key)
    return sum(server.weight > 0 for server in entry.servers.values()) if entry else 0


def all_owned_the_table_becomes_what_is_wanted(want: Table, have: Table, owned: Owned) -> None:
    assert applied(want, have, EVERYTHING) == want


def what_is_wanted_is_there_and_what_is_owned_besides_is_gone(
    want: Table, have: Table, owned: Owned
) -> None:
    after = applied(want, have, owned)
    for key, entry in want.entries.items():
        assert after.entries[key].service == entry.service
        for server_key, server in entry.servers.items():
            assert after.entries[key].servers[server_key] == server
    assert not (pairs(after) & owned.servers) - pairs(want)
    for key in after.entries.keys() & owned.services - want.entries.keys():
        # A service of ours stays only for the servers that another tool put into it.
        assert after.entries[key].servers.keys() - {s for k, s in owned.servers if k == key}


def what_is_neither_wanted_nor_owned_stays_as_it_is(want: Table, have: Table, owned: Owned) -> None:
    after = applied(want, have, owned)
    for key, server in pairs(have) - pairs(want) - owned.servers:
        assert after.server(key, server) == have.server(key, server)
    for key in have.entries.keys() - want.entries.keys() - owned.services:
        assert after.entries[key].service == have.entries[key].service


def it_settles(want: Table, have: Table, owned: Owned) -> None:
    assert diff(want, applied(want, have, owned), owned) == ()


def of_a_table_and_itself_there_is_none(want: Table, have: Table, owned: Owned) -> None:
    for table in (want, have):
        assert diff(table, table, owned) == ()
        kernel = FakeKernel(table)
        assert diff(table, kernel.read().table, owned) == ()


def in_every_prefix_a_service_keeps_enough_servers(want: Table, have: Table, owned: Owned) -> None:
    after = applied(want, have, owned)
    least = {key: min(serving(have, key), serving(after, key)) for key in SOME_KEYS}
    kernel = FakeKernel(have)
    for op in diff(want, have, owned):
        assert kernel.apply([op]) == ()
        now = kernel.read().table
        for key in SOME_KEYS:
            assert serving(now, key) >= least[key]


def any_part_that_was_done_is_a_start(want: Table, have: Table, owned: Owned) -> None:
    """The agent may be killed after any operation; the next pass does the rest."""
    ops, whole = diff(want, have, owned), applied(want, have, owned)
    for part in range(len(ops) + 1):
        kernel = FakeKernel(have)
        assert kernel.apply(ops[:part]) == ()
        assert applied(want, kernel.read().table, owned) == whole


def foreign_and_ours_are_all_there_is(want: Table, have: Table, owned: Owned) -> None:
    found = find_foreign(want, have, owned)
    ours = want.entries.keys() | owned.services
    assert found.services == have.entries.keys() - ours
    in_ours = {(key, server) for key, server in pairs(have) if key in ours}
    assert found.servers == in_ours - pairs(want) - owned.servers


def nothing_foreign_is_deleted(want: Table, have: Table, owned: Owned) -> None:
    found = find_foreign(want, have, owned)
    for op in diff(want, have, owned):
        match op:
            case DeleteService(key=key):
                assert key not in found.services
                assert not {pair for pair in found.servers if pair[0] == key}
            case DeleteServer(service=service, key=key):
                assert (service, key) not in found.servers
                assert (service, key) in owned.servers
            case _:
                pass


RULES = (
    all_owned_the_table_becomes_what_is_wanted,
    what_is_wanted_is_there_and_what_is_owned_besides_is_gone,
    what_is_neither_wanted_nor_owned_stays_as_it_is,
    it_settles,
    of_a_table_and_itself_there_is_none,
    in_every_prefix_a_service_keeps_enough_servers,
    any_part_that_was_done_is_a_start,
    foreign_and_ours_are_all_there_is,
    nothing_foreign_is_deleted,
)


@settings(max_examples=often(120, soak=2000))
@given(tables(), tables(), owned())
def test_rules(want: Table, have: Table, owned: Owned) -> None:
    """All of the same tables: to draw two takes longer than to check them."""
    for rule in RULES:
        rule(want, have, owned)


def lines(want: str, have: str, owned: Owned = EVERYTHING) -> list[str]:
    return [str(op) for op in diff(parse(want), parse(have), owned)]


def owner_of(table: str) -> Owned:
    made = parse(table)
    return Owned(services=frozenset(made.entries), servers=frozenset(pairs(made)))


def test_the_order_of_operations() -> None:
    have = f"""
        -A {MAIL} -s rr
        -a {MAIL} -r 10.0.0.11:25 -g -w 4
        -a {MAIL} -r 10.0.0.12:25 -g -w 0
        -a {MAIL} -r 10.0.0.13:25 -g -w 1
        -A -f 7 -s rr
        -a -f 7 -r 10.0.0.11:25 -g -w 1
    """
    want = f"""
        -A {MAIL} -s wrr
        -a {MAIL} -r 10.0.0.11:25 -g -w 0
        -a {MAIL} -r 10.0.0.12:25 -g -w 2
        -a {MAIL} -r 10.0.0.14:25 -g -w 1
        -A -f 8
        -a -f 8 -r 10.0.0.11:25 -g -w 1
    """
    assert lines(want, have, owner_of(have)) == [
        "-A -f 8 -s wlc",
        f"-E {MAIL} -s wrr",
        f"-a {MAIL} -r 10.0.0.14:25 -g -w 1",
        "-a -f 8 -r 10.0.0.11:25 -g -w 1",
        f"-e {MAIL} -r 10.0.0.12:25 -g -w 2",
        f"-e {MAIL} -r 10.0.0.11:25 -g -w 0",
        f"-d {MAIL} -r 10.0.0.13:25",
        "-D -f 7",
    ]


def test_a_set_operation_has_every_field() -> None:
    server = f"-a {MAIL} -r 10.0.0.11:25 -m -w 1 -x 9 -y 3"
    [line] = lines(
        f"-A {MAIL} -p 60 -s sh -b sh-port -M 255.0.0.0",
        f"-A {MAIL} -p 50 -s sh -b sh-port -M 255.0.0.0",
    )
    assert line == f"-E {MAIL} -s sh -p 60 -M 255.0.0.0 -b sh-port"
    [line] = lines(f"-A {MAIL}\n{server}", f"-A {MAIL}\n{server.replace('-w 1', '-w 2')}")
    assert line == f"-e {MAIL} -r 10.0.0.11:25 -m -w 1 -x 9 -y 3"


def test_a_service_with_another_tools_server_loses_only_our_servers() -> None:
    ours = f"-A {MAIL}\n-a {MAIL} -r 10.0.0.11:25\n"
    have = ours + f"-a {MAIL} -r 10.0.0.99:25\n"
    assert lines("", have, owner_of(ours)) == [f"-d {MAIL} -r 10.0.0.11:25"]
    assert lines("", ours, owner_of(ours)) == [f"-D {MAIL}"]


def test_an_owned_server_in_a_foreign_service_goes_alone() -> None:
    have = f"-A {MAIL}\n-a {MAIL} -r 10.0.0.11:25\n"
    [pair] = pairs(parse(have))
    assert lines("", have, Owned(servers=frozenset({pair}))) == [f"-d {MAIL} -r 10.0.0.11:25"]


@given(tables())
@example(parse("-A -f 7\n-a -f 7 -r 10.0.0.11:25 -i"))
def test_settings_without_effect_are_no_difference(table: Table) -> None:
    """A netmask without persistence, tunnel options of what is no tunnel or needs none."""
    careless = {}
    for key, entry in table.entries.items():
        service = entry.service
        if service.persistence is None:
            service = replace(service, prefix=17)
        servers: dict[ServerKey, Server] = {}
        for server in entry.servers.values():
            said = server
            if server.forwarding is not Forwarding.TUNNEL:
                said = replace(server, tunnel=Tunnel(port=7))
            elif server.tunnel == Tunnel():
                said = replace(server, tunnel=None)
            servers[said.key] = said
        careless[key] = Entry(service=service, servers=servers)
    assert diff(Table(entries=careless), table, EVERYTHING) == ()
    assert applied(Table(entries=careless), Table(), EVERYTHING) == table
