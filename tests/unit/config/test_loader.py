"""What a configuration means, how its problems read, and that nothing else ever comes out."""

import os
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path

import pytest

from tests.unit.config.test_broken import problems
from xenlb.config import ConfigError, load, load_config, parse
from xenlb.ipvs.table import (
    AddressKey,
    Family,
    Forwarding,
    MarkKey,
    Protocol,
    SchedulerFlags,
    ServerKey,
    Tunnel,
    TunnelChecksum,
    TunnelType,
)
from xenlb.model.checks import (
    Agent,
    Asks,
    Dns,
    Exec,
    Http,
    Icmp,
    Imap,
    Ldap,
    Mysql,
    Pgsql,
    Pop3,
    Redis,
    Share,
    Smtp,
    Tcp,
    Tls,
    TlsHandshake,
    Udp,
)
from xenlb.model.guest_side import Delivery, GuestSide, Init, OnBoot, ReturnPath, System
from xenlb.model.membership import candidates
from xenlb.model.settings import (
    AddressPolicy,
    Check,
    Director,
    DrainPolicy,
    DrainUntil,
    Member,
    OnFailure,
    Port,
    ServiceSettings,
    Settings,
    SysctlPolicy,
)
from xenlb.model.state import Observed, State
from xenlb.model.target import Target

ETC = Path(__file__).parents[3] / "etc"
EXAMPLES = sorted((ETC / "examples").glob("*.yaml"))


def one(keys: str, defaults: str = "{}") -> ServiceSettings:
    """The only service of a configuration, in flow style."""
    text = f"director: {{addresses: leave}}\ndefaults: {defaults}\nservices: {{a: {{{keys}}}}}"
    (service,) = parse(text, "xenlb.yaml").services
    return service


# What it means


def test_every_key_given() -> None:
    text = """\
libvirt: {uris: ["xen:///system", "xen+ssh://root@dom0b/system"], keepalive: 30s}
guests: {networks: [10.0.0.0/24], listen: "10.0.0.1:7371"}
director: {interface: br0, addresses: leave, sysctls: apply}
services:
  mail:
    address: 192.0.2.10
    ports: [53/udp]
    scheduler: sh
    scheduler-flags: [sh-port, sh-fallback]
    one-packet: true
    persistence: 5m
    persistence-netmask: 255.255.255.0
    forwarding: masquerade
    server-port: 5353
    weight: 7
    upper-threshold: 100
    lower-threshold: 80
    check: {type: tcp, interval: 2s, timeout: 500ms, rise: 2, fall: 4, port: 8053}
    flush: false
    on-failure: quiesce
    keep-in-service: 50%
    slow-start: 1m
    sorry-server: 10.0.0.99:54
    drain: {timeout: 2h, until: all, udp: 90s, shutdown-grace: 30s}
    servers:
      - {guest: "mail*", address: 10.0.0.11, weight: 2}
      - {guest: 6695EB01-f6a4-8304-79aa-97f2502e193f}
      - {host: 10.0.0.5, weight: 0}
    from-metadata: true
"""
    assert parse(text, "xenlb.yaml") == Settings(
        uris=("xen:///system", "xen+ssh://root@dom0b/system"),
        keepalive=30.0,
        networks=(IPv4Network("10.0.0.0/24"),),
        listen=(IPv4Address("10.0.0.1"), 7371),
        director=Director(
            interface="br0", addresses=AddressPolicy.LEAVE, sysctls=SysctlPolicy.APPLY
        ),
        services=(
            ServiceSettings(
                name="mail",
                address=IPv4Address("192.0.2.10"),
                family=Family.INET,
                ports=(Port(number=53, protocol=Protocol.UDP),),
                scheduler="sh",
                flags=SchedulerFlags.ONE | SchedulerFlags.TWO,
                one_packet=True,
                persistence=300,
                prefix=24,
                forwarding=Forwarding.MASQUERADE,
                server_port=5353,
                weight=7,
                upper_threshold=100,
                lower_threshold=80,
                checks=(Check(type="tcp", interval=2.0, timeout=0.5, rise=2, fall=4, port=8053),),
                on_failure=OnFailure.QUIESCE,
                keep_in_service=0.5,
                slow_start=60.0,
                sorry_server=(IPv4Address("10.0.0.99"), 54),
                drain=DrainPolicy(
                    timeout=7200.0, until=DrainUntil.ALL, udp=90.0, shutdown_grace=30.0
                ),
                servers=(
                    Member(guest="mail*", address=IPv4Address("10.0.0.11"), weight=2),
                    Member(guest="6695EB01-f6a4-8304-79aa-97f2502e193f"),
                    Member(host=IPv4Address("10.0.0.5"), weight=0),
                ),
                from_metadata=True,
            ),
        ),
    )


def test_the_inside_of_guests_key_by_key() -> None:
    service = one(
        "fwmark: 7, check: none, forwarding: gatewaying, guest-side: {on-boot: off, interface: "
        "eth1, addresses: [192.0.2.10]}, servers: [{guest: a, guest-side: {ssh: root@a, system: "
        "shell, init: sysvinit, gateway: [10.0.0.1, 'fd00::1']}}, {guest: b}]",
        "{guest-side: {delivery: ssh, on-boot: apply, table: 300, tx-checksums: false, "
        "return-path: rule}}",
    )
    side = GuestSide(
        delivery=Delivery.SSH,
        on_boot=OnBoot.OFF,
        interface="eth1",
        return_path=ReturnPath.RULE,
        addresses=(IPv4Address("192.0.2.10"),),
        table=300,
        tx_checksums=False,
    )
    assert service.side == side
    own = replace(
        side,
        ssh="root@a",
        system=System.SHELL,
        init=Init.SYSVINIT,
        gateways=(IPv4Address("10.0.0.1"), IPv6Address("fd00::1")),
    )
    assert [member.side for member in service.servers] == [own, None]


def test_only_defaults() -> None:
    assert parse("services: {}", "xenlb.yaml") == Settings()
    assert one("address: 192.0.2.10, ports: [25]") == ServiceSettings(
        name="a", address=IPv4Address("192.0.2.10"), ports=(Port(number=25),)
    )


def test_ipv6() -> None:
    service = one("address: '2001:db8::10', ports: [25], forwarding: tunnel, "
                  "servers: [{host: 192.0.2.5}]")  # fmt: skip
    assert service.family is Family.INET6
    assert service.prefix == 128
    assert service.tunnel == Tunnel()
    assert service.kernel_keys() == (
        AddressKey(protocol=Protocol.TCP, address=IPv6Address("2001:db8::10"), port=25),
    )


def test_firewall_mark() -> None:
    service = one("fwmark: 4294967295, family: inet6, check: none")
    assert service.kernel_keys() == (MarkKey(family=Family.INET6, mark=4294967295),)
    assert service.prefix == 128
    both = parse(
        "services: {a: {fwmark: 7, check: none}, b: {fwmark: 7, family: inet6, check: none}}", "f"
    )
    assert len({key for service in both.services for key in service.kernel_keys()}) == 2


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("ports: [25]", Check()),
        ("ports: [25, 465]", Check()),
        ("ports: [25], server-port: 26", Check()),
        ("ports: [53/udp]", None),
        ("ports: [53/udp, 5060/sctp]", None),
        ("ports: [53/udp, 53, 953]", Check(port=53)),
        ("ports: [0, 8080], persistence: 60s", Check(port=8080)),
        ("ports: [53/udp], check: {port: 53}", Check(port=53)),
        ("ports: [0], persistence: 60s, check: {port: 80}", Check(port=80)),
        ("ports: [25], check: none", None),
        ("ports: [25], check: {}", Check()),
        ("ports: [25], check: {interval: 2s}", Check(interval=2.0, timeout=1.0)),
        ("ports: [25], check: {interval: 4s}", Check(interval=4.0, timeout=3.0)),
        ("ports: [25], check: {interval: 3s}", Check(interval=3.0, timeout=1.5)),
    ],
)
def test_check(keys: str, expected: Check | None) -> None:
    checks = () if expected is None else (expected,)
    assert one(f"address: 192.0.2.10, {keys}").checks == checks


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("send: 'PING\\r\\n\\x00\\xff\\\\', expect: PONG",
         Tcp(send="PING\r\n\0\xff\\", expect="PONG")),
        ('send: "QUIT\\r\\n"', Tcp(send="QUIT\r\n")),
        ("type: tls", TlsHandshake()),
        ("type: tls, tls: {name: a.example, ca-file: /ca.pem}",
         TlsHandshake(tls=Tls(name="a.example", ca_file="/ca.pem"))),
        ("type: http", Http()),
        ("type: http, method: HEAD, path: '/up?a=b%20c', host: 'a.example:8080', status: 200,"
         " header: 'X-Up: ^yes$'",
         Http(method="HEAD", path="/up?a=b%20c", host="a.example:8080", status=((200, 200),),
              header=("X-Up", "^yes$"))),
        ("type: http, status: [200-299, 401], body: '\\bfine\\b'",
         Http(status=((200, 299), (401, 401)), body=r"\bfine\b")),
        ("type: https", Http(tls=Tls())),
        ("type: https, host: 'a.example:8443'",
         Http(tls=Tls(name="a.example"), host="a.example:8443")),
        ("type: https, host: a.example, tls: {name: b.example, verify: false}",
         Http(tls=Tls(name="b.example", verify=False), host="a.example")),
        ("type: https, host: '10.0.0.1'", Http(tls=Tls(), host="10.0.0.1")),
        ("type: https, host: '[2001:db8::1]:443'", Http(tls=Tls(), host="[2001:db8::1]:443")),
        ("type: smtp", Smtp()),
        ("type: smtp, hello: lb.example, expect: [250, 500-504], starttls: {verify: false}",
         Smtp(hello="lb.example", expect=((250, 250), (500, 504)), starttls=Tls(verify=False))),
        ("type: smtp, tls: true", Smtp(tls=Tls())),
        ("type: imap, tls: false, starttls: true", Imap(starttls=Tls())),
        ("type: pop3, tls: true", Pop3(tls=Tls())),
        ("type: ldap, tls: true", Ldap(tls=Tls())),
        ("type: mysql, user: check", Mysql(user="check")),
        ("type: mysql", Mysql()),
        ("type: pgsql, user: a b, database: c", Pgsql(user="a b", database="c")),
        ("type: redis", Redis()),
        ("type: dns, query: example.org, record: A, expect: 10.0.0.1, recursive: true, port: 53",
         Dns(query="example.org", record="A", expect="10.0.0.1", recursive=True)),
        ("type: dns, recursive: true, port: 53", Dns(recursive=True)),
        ("type: udp, send: x, expect: y, port: 53", Udp(send="x", expect="y")),
        ("type: icmp", Icmp()),
        ("type: exec, command: [/bin/check, '-H', '$X'], user: daemon",
         Exec(command=("/bin/check", "-H", "$X"), user="daemon")),
        ("type: exec, command: [/bin/check], weight: {least: 10%}",
         Exec(command=("/bin/check",), share=Share(least=0.1))),
        ("type: agent", Agent()),
        ("type: agent, send: '\\n', weight: {most: 50%}", Agent(send="\n", share=Share(most=0.5))),
    ],
)  # fmt: skip
def test_probe_of_a_check(keys: str, expected: Asks) -> None:
    (check,) = one(f"address: 192.0.2.10, ports: [25], check: {{{keys}}}").checks
    assert check.asks == expected


def test_the_keys_that_every_check_has() -> None:
    (check,) = one(
        "address: 192.0.2.10, ports: [80], forwarding: gatewaying, check: {via: vip, interval: 2s,"
        " timeout: 1s, rise: 2, fall: 4, port: 81, flap-damping: 0s}"
    ).checks
    assert check == Check(
        interval=2.0, timeout=1.0, rise=2, fall=4, port=81, via_vip=True, flap_damping=0.0
    )


def types(service: ServiceSettings) -> list[str]:
    return [check.type for check in service.checks]


def test_several_checks() -> None:
    listed = "[{type: http, path: /up}, {type: icmp, fall: 9}]"
    address = "address: 192.0.2.10, ports: [80]"
    http, icmp = Check(type="http", asks=Http(path="/up")), Check(type="icmp", asks=Icmp(), fall=9)
    every = one(f"{address}, check: {listed}")
    assert (every.checks, every.any_check) == ((http, icmp), False)
    assert one(f"{address}, check: {{all: {listed}}}") == every
    assert one(f"{address}, check: {{any: {listed}}}") == replace(every, any_check=True)
    assert one(address, f"{{check: {{any: {listed}}}}}") == replace(every, any_check=True)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("ports: [53/udp, 53], check: {type: dns}", [53, 53]),
        ("ports: [53/udp, 5353/udp], check: {type: dns}", [53, 5353]),
        ("ports: [53/udp, 53, 853], check: [{type: dns}, {type: tcp}]", [53, 53, 53, 53, 53, 53]),
        ("ports: [80, 443], check: [{type: tcp}, {type: icmp}]", [80, 0, 443, 0]),
        ("ports: [80, 53/udp], check: {type: exec, command: [/bin/true]}", [80, 53]),
        ("ports: [25], server-port: 26, check: {type: exec, command: [/bin/true]}", [26]),
        ("ports: [5060/sctp], check: {type: exec, command: [/bin/true]}", [5060]),
        ("ports: [53/udp], server-port: 54, check: {type: udp}", [54]),
        ("ports: [0], persistence: 1s, check: {type: exec, command: [/bin/true]}", [0]),
        ("ports: [0], persistence: 1s, check: {type: icmp}", [0]),
        ("ports: [80], check: {port: 8080}", [8080]),
        ("ports: [53/udp], check: [{type: dns}, {type: smtp, port: 25}]", [53, 25]),
    ],
)
def test_the_port_that_is_probed(keys: str, expected: list[int]) -> None:
    assert [target.port for target in targets(f"address: 192.0.2.10, {keys}")] == expected


def test_a_mark_can_be_probed_without_a_port() -> None:
    found = targets("fwmark: 7, check: [{type: icmp}, {port: 80}]")
    assert [str(target) for target in found] == ["icmp 10.0.0.5", "tcp 10.0.0.5:80"]


def targets(keys: str) -> list[Target]:
    service = one(f"{keys}, servers: [{{host: 10.0.0.5}}]")
    return [
        target
        for found in candidates(
            service, State(observed=Observed(settings=Settings(services=(service,)))), {}
        )
        for target in found.targets
    ]


def test_one_target_for_a_server_however_many_services_it_has() -> None:
    keys = "check: [{type: http, port: 80}, {type: icmp}], servers: [{host: 10.0.0.5}]"
    settings = parse(
        f"director: {{addresses: leave}}\nservices:\n  a: {{address: 192.0.2.1, ports: [80, 443],"
        f" {keys}}}\n  b: {{address: 192.0.2.2, ports: [80], {keys}}}\n",
        "xenlb.yaml",
    )
    state = State(observed=Observed(settings=settings))
    found = [
        target
        for service in settings.services
        for candidate in candidates(service, state, {})
        for target in candidate.targets
    ]
    assert (len(found), len(set(found))) == (6, 2)


@pytest.mark.parametrize(
    ("keys", "tunnel"),
    [
        ("forwarding: gatewaying", None),
        ("forwarding: tunnel", Tunnel()),
    ],
)
def test_via_the_service_address(keys: str, tunnel: Tunnel | None) -> None:
    by_vip, plain = targets(
        f"address: 192.0.2.10, ports: [80], {keys}, check: [{{via: vip}}, {{via: server}}]"
    )
    assert (by_vip.vip, by_vip.tunnel, by_vip.port) == (IPv4Address("192.0.2.10"), tunnel, 80)
    assert (plain.vip, plain.tunnel) == (None, None)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("ports: [25], sorry-server: 10.0.0.99", [25]),
        ("ports: [25], sorry-server: '10.0.0.99:26'", [26]),
        ("ports: [25], sorry-server: '10.0.0.99:25', forwarding: gatewaying", [25]),
        ("ports: [25, 465], sorry-server: 10.0.0.99", [25, 465]),
        ("ports: [0], persistence: 1s, check: none, sorry-server: 10.0.0.99", [0]),
    ],
)
def test_port_of_the_sorry_server(keys: str, expected: list[int]) -> None:
    service = one(f"address: 192.0.2.10, {keys}")
    assert [service.sorry_key(key) for key in service.kernel_keys()] == [
        ServerKey(address=IPv4Address("10.0.0.99"), port=port) for port in expected
    ]


# Defaults


def test_defaults_are_merged_key_by_key() -> None:
    service = one(
        "address: 192.0.2.10, ports: [25], weight: 3, drain: {until: all}, check: {rise: 2}",
        "{weight: 5, scheduler: rr, drain: {timeout: 2m, until: established}, check: {fall: 9}}",
    )
    assert (service.weight, service.scheduler) == (3, "rr")
    assert service.drain == DrainPolicy(timeout=120.0, until=DrainUntil.ALL)
    assert service.checks == (Check(rise=2, fall=9),)


def test_a_check_of_the_defaults_and_none() -> None:
    keys = "address: 192.0.2.10, ports: [25]"
    assert one(f"{keys}, check: none", "{check: {fall: 9}}").checks == ()
    assert one(keys, "{check: none}").checks == ()
    assert one(f"{keys}, check: {{fall: 9}}", "{check: none}").checks == (Check(fall=9),)


@pytest.mark.parametrize(
    ("defaults", "keys", "expected"),
    [
        # The same type, said or not: key by key.
        ("{type: http, path: /up, fall: 9}", "{path: /ready}",
         Check(type="http", asks=Http(path="/ready"), fall=9)),
        ("{type: http, path: /up}", "{type: http, status: 204, timeout: 1s}",
         Check(type="http", asks=Http(path="/up", status=((204, 204),)), timeout=1.0)),
        # Another type: what every type has, and nothing else.
        ("{type: http, path: /up, host: a.example, port: 8080, fall: 9}", "{type: https}",
         Check(type="https", asks=Http(tls=Tls()), fall=9)),
        ("{port: 8080, send: x, rise: 7}", "{type: http}",
         Check(type="http", asks=Http(), port=8080, rise=7)),
        ("{type: exec, command: [/bin/true]}", "{type: icmp}", Check(type="icmp", asks=Icmp())),
        # What a service needs may stand in either.
        ("{type: exec}", "{command: [/bin/true]}",
         Check(type="exec", asks=Exec(command=("/bin/true",)))),
        # A port of the defaults is none for icmp; a way of the defaults is not every service's.
        ("{port: 8080}", "{type: icmp}", Check(type="icmp", asks=Icmp())),
        ("{via: vip}", "{fall: 9}", Check(fall=9)),
        # A list stands for itself.
        ("{type: http, interval: 9s}", "[{type: tcp}]", Check()),
        ("[{type: http}, {type: icmp}]", "{fall: 9}", Check(fall=9)),
        ("{any: [{type: http}]}", "{}", Check()),
    ],
)  # fmt: skip
def test_a_check_over_that_of_the_defaults(defaults: str, keys: str, expected: Check) -> None:
    service = one(f"address: 192.0.2.10, ports: [25], check: {keys}", f"{{check: {defaults}}}")
    assert service.checks == (expected,)
    assert not service.any_check


def test_checks_of_the_defaults_that_a_service_cannot_have() -> None:
    listed = "{check: [{type: tcp}, {type: dns}, {type: icmp}]}"
    assert types(one("address: 192.0.2.10, ports: [25]", listed)) == ["tcp", "icmp"]
    assert types(one("address: 192.0.2.10, ports: [53/udp]", listed)) == ["dns", "icmp"]


@pytest.mark.parametrize(
    ("defaults", "keys"),
    [
        ("family: inet6", "address: 192.0.2.10, ports: [25]"),
        ("persistence-netmask: 24", "address: 192.0.2.10, ports: [25]"),
        ("persistence-netmask: 64", "address: 192.0.2.10, ports: [25], persistence: 60s"),
        ("persistence-netmask: 255.255.255.0",
         "address: '2001:db8::1', ports: [25], persistence: 60s"),
        ("scheduler-flags: [sh-port]", "address: 192.0.2.10, ports: [25], scheduler: mh"),
        ("one-packet: true", "address: 192.0.2.10, ports: [53/udp, 53]"),
        ("server-port: 26", "address: 192.0.2.10, ports: [25], forwarding: tunnel"),
        ("server-port: 26", "address: 192.0.2.10, ports: [25, 465]"),
        ("server-port: 26", "fwmark: 7, check: none"),
        ("tunnel: {type: gue, port: 6080}", "address: 192.0.2.10, ports: [25]"),
        ("check: {fall: 9}", "address: 192.0.2.10, ports: [53/udp]"),
    ],
)  # fmt: skip
def test_a_default_without_meaning_is_not_used(defaults: str, keys: str) -> None:
    assert one(keys, f"{{{defaults}}}") == one(keys)


def test_a_default_with_meaning_is_used() -> None:
    masquerade = one("address: 192.0.2.10, ports: [25]", "{server-port: 26}")
    assert masquerade.server_port == 26
    mark = one("fwmark: 7, check: none", "{family: inet6, one-packet: true}")
    assert (mark.family, mark.one_packet) == (Family.INET6, True)
    tunnel = one(
        "address: 192.0.2.10, ports: [25], forwarding: tunnel, tunnel: {type: gre}",
        "{tunnel: {type: gue, port: 6080, checksum: csum}}",
    )
    assert tunnel.tunnel == Tunnel(type=TunnelType.GRE, checksum=TunnelChecksum.CHECKSUM)


# How it reads


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("weight: 010", "4:13: services.mail.weight: '010' begins with 0, which YAML reads as octal"
         " (write 10)"),
        ("ports: [22:30]", "4:13: services.mail.ports[0]: '22:30' is one number of base 60 to YAML"
         " (write one plain number)"),
        ("fwmark: 7", "4:13: services.mail.fwmark: address and fwmark exclude each other"
         " (remove one, or make two services)"),
        ("ports: [1000-2000]", "4:13: services.mail.ports[0]: '1000-2000' is a range, and a service"
         " takes single ports (list them, or use fwmark: and let a firewall rule mark the range)"),
        ("ports: [25/smtp]", "4:13: services.mail.ports[0]: 'smtp' is not a protocol of IPVS"
         " (write 25, 25/tcp, 53/udp or 2905/sctp)"),
        ("one-packet: yes", "4:17: services.mail.one-packet: 'yes' is neither true nor false"
         " (write true)"),
        ("weight: '1'", "4:13: services.mail.weight: '1' is in quotes, but a number is expected"
         " (write 1)"),
        ("persistence: 300", "4:18: services.mail.persistence: 300 has no unit (write 300s)"),
        ("slow-start: 1.5h", "4:17: services.mail.slow-start: 1.5h is not a whole number with a"
         " unit (write 90m)"),
        ("keep-in-service: 50", "4:22: services.mail.keep-in-service: 50 has no percent sign"
         " (write 50%)"),
        ("scheduler: lbcl", "4:16: services.mail.scheduler: 'lbcl' is not a scheduler of the kernel"
         " (did you mean lblc?)"),
        ("forwarding: nat", "4:17: services.mail.forwarding: 'nat' is another program's name for it"
         " (write masquerade)"),
        ("fowarding: tunnel", "4:5: services.mail.fowarding: unknown key"
         " (did you mean forwarding?)"),
        ("check: tcp", "4:12: services.mail.check: 'tcp' is not a check"
         " (write {type: tcp}, or none)"),
        ("check: {type: smpt}", "4:19: services.mail.check.type: 'smpt' is not a type of check"
         " (did you mean smtp?)"),
        ("check: [tcp]", "4:13: services.mail.check[0]: 'tcp' is not a check"
         " (write {type: tcp})"),
        ("check: {any: [{type: tcp, path: /}]}", "4:31: services.mail.check.any[0].path: a check of"
         " type tcp has no path (it is for type: http, https)"),
        ("check: {type: smtp, tls: true, starttls: true}", "4:46: services.mail.check.starttls:"
         " tls and starttls exclude each other (tls is from the beginning, starttls by that"
         " command: remove one)"),
        ("check: {type: ping}", "4:19: services.mail.check.type: 'ping' is another program's name"
         " for it (write icmp)"),
        ("check: {via: vip}", "4:18: services.mail.check.via: with masquerade no server has the"
         " service address (write via: server, or use forwarding: gatewaying)"),
        ("check: [{type: tcp}, {type: dns}]", "4:26: services.mail.check[1]: a check of type dns"
         " needs a udp port, and there is none (add port: NUMBER to the check, or check: none)"),
        ("check: {type: dns, port: 53, record: A}", "4:42: services.mail.check.record:"
         " record has no meaning without query (add query: NAME, or remove it: without query any"
         " answer passes)"),
        ("check: {type: exec, command: /bin/check -p 22 $HOST}",
         "4:34: services.mail.check.command: '/bin/check -p 22 $HOST' would need a shell, and there"
         " is none (write [/bin/check, -p, '22', '$HOST'])"),
        ("check: {type: http, body: 'a(b'}",
         "4:31: services.mail.check.body: 'a(b' is not a regular"
         r" expression: missing ), unterminated subpattern at position 1 (write \ before a"
         r" character that is meant as it is: \( \[ \* \? \.)"),
        ("check: {type: http, path: \"/\\r\\nX: 1\"}", "4:31: services.mail.check.path:"
         r" '/\r\nX: 1' contains a control character (remove it)"),
        ("servers: [mail1]", "4:15: services.mail.servers[0]: 'mail1' is neither guest nor host"
         " (write - guest: mail1)"),
        ("servers: [{host: mx.example.org}]", "4:22: services.mail.servers[0].host:"
         " 'mx.example.org' is a name, and names are not looked up (write the IP address)"),
        ("servers: [{guest: *mail}]", "4:23: services.mail.servers[0].guest: an alias (*mail)"
         " (write the value out; a text that begins with * goes into quotes: '*mail')"),
        ("servers: [{guest: 7}]", "4:23: services.mail.servers[0].guest: 7 is a number to YAML,"
         " not a text (write it in quotes: '7')"),
        ("servers: [{host: 192.0.2.10}]", "4:22: services.mail.servers[0].host: 192.0.2.10 is the"
         " address of service mail (write the server's own address)"),
        ("address: 127.0.0.1", "4:14: services.mail.address: 127.0.0.1 is a loopback address, which"
         " no client can reach (write an address that clients can reach)"),
        ("lower-threshold: 5", "4:22: services.mail.lower-threshold: a lower-threshold without an"
         " upper one (add upper-threshold: 10, or remove it)"),
        ("<<: *base", "4:5: services.mail: a merge key (<<)"
         " (write the keys out, or put them under defaults)"),
    ],
)  # fmt: skip
def test_message(line: str, expected: str) -> None:
    more = "" if line.startswith("address") else "    address: 192.0.2.10\n"
    more += "" if line.startswith("ports") else "    ports: [25]\n"
    text = f"director: {{interface: eth0}}\nservices:\n  mail:\n    {line}\n{more}"
    assert [str(problem) for problem in problems(text)] == [f"xenlb.yaml:{expected}"]


def test_two_services_with_one_key_are_both_named() -> None:
    text = (
        "director: {addresses: leave}\nservices:\n"
        "  mail: {address: 192.0.2.10, ports: [25]}\n  spam: {address: 192.0.2.10, ports: [25]}\n"
    )
    assert [str(problem) for problem in problems(text)] == [
        "xenlb.yaml:4:39: services.spam.ports[0]: tcp port 25 of 192.0.2.10 is service mail already"
        " (see line 3: remove it there or in spam)"
    ]


def test_all_problems_at_once_in_file_order() -> None:
    text = """\
libvirt: {uris: [xne:///system]}
director: {interface: eth0, sysctl: ipvs}
defaults:
  drain: {timeout: 60}
services:
  mail:
    address: 192.0.2.10
    ports: [25, 010, 465, 70000]
    scheduler: lbcl
    server-port: 26
    forwarding: gatewaying
    servers:
      - guest: mail1
      - mail2
      - host: mail3.example.org
        wieght: 2
      - host: 192.0.2.10
  web:
    fwmark: 7
    ports: [80]
  web:
    fwmark: 8
"""
    where = [(problem.line, problem.path) for problem in problems(text)]
    assert where == [
        (1, "libvirt.uris[0]"),
        (2, "director.sysctl"),
        (4, "defaults.drain.timeout"),
        (8, "services.mail.ports[1]"),
        (8, "services.mail.ports[3]"),
        (9, "services.mail.scheduler"),
        (10, "services.mail.server-port"),
        (14, "services.mail.servers[1]"),
        (15, "services.mail.servers[2].host"),
        (16, "services.mail.servers[2].wieght"),
        (17, "services.mail.servers[3].host"),
        (18, "services.web"),
        (20, "services.web.ports"),
        (21, "services.web"),
    ]
    with pytest.raises(ConfigError) as caught:
        parse(text, "xenlb.yaml")
    assert str(caught.value).splitlines() == [str(problem) for problem in problems(text)]


# Files


@pytest.mark.parametrize("path", [ETC / "xenlb.yaml", *EXAMPLES], ids=lambda path: path.name)
def test_example(path: Path) -> None:
    assert load(path).services


def test_examples_match_their_comments() -> None:
    assert [path.stem for path in EXAMPLES] == [
        "fwmark-http-https",
        "mail-gatewaying",
        "mail-masquerade",
        "tunnel",
        "web-ipv6",
    ]
    (mail,) = load(ETC / "examples" / "mail-masquerade.yaml").services
    assert (mail.ports, mail.server_port) == ((Port(number=25),), 26)
    assert (mail.scheduler, mail.persistence) == ("lblc", 300)
    assert [str(member.address) for member in mail.servers] == ["10.0.0.11", "10.0.0.12"]


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path)
    (problem,) = caught.value.problems
    return str(problem).removeprefix(f"{path}:")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "1:1: the file is empty (it needs at least: services: {})"),
        (b"# nothing\n\n", "1:1: the file is empty (it needs at least: services: {})"),
        (b"---\n", "2:1: the file has no value (write KEY: VALUE, one a line)"),
        (b"- a\n", "1:1: the file is a list (write KEY: VALUE, one a line)"),
        (b"a: 1\nb: \xff\n", "2:4: byte 0xff is not UTF-8 (save the file as UTF-8)"),
        (b"\xef\xbb\xbfservices: {}\n",
         "1:1: the file begins with a byte order mark (save it as UTF-8 without BOM)"),
        ("services: {}\n".encode("utf-16"), "1:1: the file is UTF-16 (save it as UTF-8)"),
        (b"services: {}\n\0", "2:1: character U+0000 is not allowed in YAML (remove it)"),
        (b"a: 1\r\nb: \x07\r\n", "2:4: character U+0007 is not allowed in YAML (remove it)"),
        (b"#" * (8 * 1024 * 1024 + 1),
         "1:1: the file is larger than 8 MiB (is it a configuration?)"),
        (b"a: " + b"[" * 100, "1:35: nested deeper than 32 levels (flatten it)"),
        (b"a: " + b"{a: " * 100_000, "1:128: nested deeper than 32 levels (flatten it)"),
        (b"a: [" + b"1," * 1_000_001 + b"]",
         "1:2000003: more than a million values (is it a configuration?)"),
    ],
)  # fmt: skip
def test_file_that_is_no_configuration(tmp_path: Path, data: bytes, expected: str) -> None:
    path = tmp_path / "xenlb.yaml"
    path.write_bytes(data)
    assert refused(path) == expected


def test_brackets_without_end(tmp_path: Path) -> None:
    """PyYAML's scanner goes ahead of its parser here, and from 6.0.4 on has a limit of its own."""
    path = tmp_path / "xenlb.yaml"
    path.write_bytes(b"a: " + b"[" * 100_000)
    place, said = refused(path).split(": ", 1)
    assert place in {"1:35", "1:1003"}
    assert said == "nested deeper than 32 levels (flatten it)"


def test_file_that_is_not_there(tmp_path: Path) -> None:
    assert refused(tmp_path / "x") == (
        "1:1: there is no such file (write it, or name another with --config)"
    )
    assert refused(tmp_path) == "1:1: is a folder (name the file in it)"
    (tmp_path / "loop").symlink_to("loop")
    assert refused(tmp_path / "loop").startswith("1:1: cannot be read: ")
    for file in ("/dev/zero", "/dev/null"):
        assert refused(Path(file)) == (
            "1:1: is not a regular file (write it to a file, and name that)"
        )
    os.mkfifo(tmp_path / "pipe")
    assert refused(tmp_path / "pipe").startswith("1:1: is not a regular file")
    assert refused(Path("a\0b")) == "a\\x00b:1:1: is no file name (name another with --config)"


def test_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "xenlb.yaml"
    path.write_text("services: {}\n")
    path.chmod(0)
    was = os.geteuid()
    if was == 0:
        os.seteuid(65534)
    try:
        said = refused(path)
    finally:
        os.seteuid(was)
    assert said == "1:1: the file may not be read (run as root, or check its rights)"


def test_requirements_of_this_host(tmp_path: Path) -> None:
    """It is noted with its place, and looked for when that is asked."""
    path = tmp_path / "xenlb.yaml"
    program, folder = tmp_path / "plugin", tmp_path / "folder"
    program.write_text("")
    folder.mkdir()
    path.write_text(f"""\
director: {{interface: loo}}
services:
  a:
    address: 192.0.2.10
    ports: [25]
    check: {{type: exec, command: [/not/there, -v], user: nobody}}
    servers: [{{host: 10.0.0.5}}]
  b:
    address: 192.0.2.10
    ports: [80]
    check:
      - {{type: exec, command: [{program}], user: unheard-of}}
      - {{type: exec, command: [{folder}]}}
      - {{type: https, tls: {{ca-file: /no/ca.pem}}}}
    servers: [{{host: 10.0.0.5}}]
  c:
    address: 192.0.2.10
    ports: [81]
    check: {{type: exec, command: [/bin/sh]}}
    servers: [{{host: 10.0.0.5}}]
""")
    loaded = load_config(path)
    problems = [str(each).removeprefix(f"{path}:") for each in loaded.missing_requirements()]
    assert problems == [
        "1:23: director.interface: this host has no interface loo (did you mean lo?)",
        "6:35: services.a.check.command[0]: there is no program /not/there:"
        " no such file or directory (install it, or correct the path)",
        f"12:32: services.b.check[0].command[0]: {program} is no program"
        f" (chmod +x {program}, or correct the path)",
        f"12:{32 + len(str(program)) + 9}: services.b.check[0].user: this host has no user"
        " unheard-of (getent passwd shows the users)",
        f"13:32: services.b.check[1].command[0]: {folder} is no program"
        f" (chmod +x {folder}, or correct the path)",
        "14:38: services.b.check[2].tls.ca-file: there is no file /no/ca.pem:"
        " no such file or directory (put it there, or correct the path)",
    ]
    path.write_text(
        path.read_text().replace("{interface: loo}", "{interface: loo, addresses: leave}")
    )
    assert len(load_config(path).missing_requirements()) == 5, (
        "another program looks after the interface"
    )
