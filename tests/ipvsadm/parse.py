"""Parse the IPVS table in ipvsadm's syntax. Pure.

Accepts the output of `ipvsadm -S` and `-Sn`, files for `ipvsadm -R`, and single operations.

The port of a gatewaying or tunnel server is kept as written. ipvsadm silently replaces it by the
port of the service; the kernel stores any, and a table that has one must be read back as it is.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from tests.ipvsadm import options
from tests.ipvsadm.options import IDENTITY, ParseError, option_name
from xenlb.ipvs import table
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
    AddressKey,
    Entry,
    Family,
    Forwarding,
    IPAddress,
    MarkKey,
    Protocol,
    SchedulerFlags,
    Server,
    ServerKey,
    Service,
    ServiceKey,
    Table,
    Tunnel,
    TunnelChecksum,
    TunnelType,
    family_of,
    prefix_of,
)
from xenlb.ipvs.text import split_endpoint

__all__ = ["NO_NAMES", "Names", "ParseError", "parse", "parse_op"]

# The value of `-p` alone in ipvsadm 1.31; its manual page says 300.
DEFAULT_PERSISTENCE = 360
MAX_PERSISTENCE = 31 * 86400
MAX_WEIGHT = 2**31 - 1


def _no_port(name: str, _protocol: Protocol) -> int | None:
    return None


def _no_host(name: str) -> IPAddress | None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """Look-ups for the names that `ipvsadm -S` without -n prints; None: unknown."""

    port: Callable[[str, Protocol], int | None] = _no_port
    host: Callable[[str], IPAddress | None] = _no_host


NO_NAMES = Names()

_METHODS = {
    "gatewaying": Forwarding.GATEWAYING,
    "ipip": Forwarding.TUNNEL,
    "masquerading": Forwarding.MASQUERADE,
}
_CHECKSUMS = {f"tun-{checksum}": checksum for checksum in TunnelChecksum}
_PROTOCOLS = {f"{protocol}-service": protocol for protocol in Protocol}
_FLAGS = {
    "flag-1": SchedulerFlags.ONE,
    "flag-2": SchedulerFlags.TWO,
    "flag-3": SchedulerFlags.THREE,
    "sh-fallback": SchedulerFlags.ONE,
    "mh-fallback": SchedulerFlags.ONE,
    "sh-port": SchedulerFlags.TWO,
    "mh-port": SchedulerFlags.TWO,
}


def parse(text: str, *, names: Names = NO_NAMES) -> Table:
    """The table that `ipvsadm -R` would create from the lines of `text`. Raises ParseError.

    `names` looks up what is not a number.
    """
    draft: dict[ServiceKey, tuple[Service, dict[ServerKey, Server]]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        letter, values = options.parse_line(line, number)
        if letter == "C":
            draft.clear()
        elif letter:
            command = _Command(number=number, names=names, letter=letter, options=values)
            _apply(draft, command.op(), number)
    entries = {
        key: Entry(service=service, servers=servers) for key, (service, servers) in draft.items()
    }
    return Table(entries=entries)


def parse_op(line: str, *, names: Names = NO_NAMES) -> Op:
    """The operation of one line, such as `-e -t 192.0.2.10:25 -r 10.0.0.11:25 -g -w 0`."""
    letter, values = options.parse_line(line, 1)
    if letter in {"", "C"}:
        raise ParseError(1, "an operation on a service or a server was expected")
    return _Command(number=1, names=names, letter=letter, options=values).op()


def _apply(
    draft: dict[ServiceKey, tuple[Service, dict[ServerKey, Server]]], op: Op, number: int
) -> None:
    """Apply `op` to the draft, as strictly as the kernel."""
    key = op.service if isinstance(op, AddServer | SetServer | DeleteServer) else None
    if key is not None and key not in draft:
        raise ParseError(number, "the service of this server has not been added by a line before")
    match op:
        case AddService(service=service):
            if service.key in draft:
                raise ParseError(number, "the service has been added by a line before")
            draft[service.key] = (service, {})
        case SetService(service=service):
            if service.key not in draft:
                raise ParseError(number, "the service has not been added by a line before")
            draft[service.key] = (service, draft[service.key][1])
        case DeleteService(key=service_key):
            if draft.pop(service_key, None) is None:
                raise ParseError(number, "the service has not been added by a line before")
        case AddServer(service=service_key, server=server):
            if server.key in draft[service_key][1]:
                raise ParseError(number, "the service has this server from a line before")
            draft[service_key][1][server.key] = server
        case SetServer(service=service_key, server=server):
            if server.key not in draft[service_key][1]:
                raise ParseError(number, "the service has no such server from a line before")
            draft[service_key][1][server.key] = server
        case DeleteServer(service=service_key, key=server_key):
            if draft[service_key][1].pop(server_key, None) is None:
                raise ParseError(number, "the service has no such server from a line before")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Command:
    """One line: the letter of the command, and the options by long name."""

    number: int
    names: Names
    letter: str
    options: dict[str, str]

    def error(self, reason: str) -> ParseError:
        return ParseError(self.number, reason)

    def op(self) -> Op:
        key = self.service_key()
        match self.letter:
            case "A":
                return AddService(service=self.service(key))
            case "E":
                return SetService(service=self.service(key))
            case "D":
                return DeleteService(key=key)
            case "a":
                return AddServer(service=key, server=self.server(key))
            case "e":
                return SetServer(service=key, server=self.server(key))
            case _:
                return DeleteServer(service=key, key=self.server_key(key))

    def service_key(self) -> ServiceKey:
        named = sorted(self.options.keys() & (IDENTITY - {"ipv6"}))
        if not named:
            raise self.error("no service: -t, -u, --sctp-service or -f is missing")
        if len(named) > 1:
            raise self.error(
                f"{option_name(named[0])} and {option_name(named[1])} name two services"
            )
        if named[0] == "fwmark-service":
            family = Family.INET6 if "ipv6" in self.options else Family.INET
            # ipvsadm -S prints marks from 2**31 on as negative numbers.
            mark = self.whole("fwmark-service", minimum=-(2**31), maximum=2**32 - 1)
            if mark == 0:
                raise self.error("-f 0: packets without a mark cannot make a service")
            return MarkKey(family=family, mark=mark % 2**32)
        if "ipv6" in self.options:
            raise self.error("-6 goes with -f only: an address has its own family")
        protocol = _PROTOCOLS[named[0]]
        address, port = self.endpoint(named[0], protocol)
        return AddressKey(protocol=protocol, address=address, port=port or 0)

    def service(self, key: ServiceKey) -> Service:
        options = self.options
        persistence = None
        if "persistent" in options:
            persistence = DEFAULT_PERSISTENCE
            if options["persistent"]:
                persistence = self.whole("persistent", minimum=1, maximum=MAX_PERSISTENCE)
        if isinstance(key, AddressKey):
            if key.port == 0 and persistence is None:
                raise self.error("a service of every port (port 0) must be persistent: add -p")
            if "ops" in options and key.protocol is not Protocol.UDP:
                raise self.error("-o is for udp and firewall mark services only")
        scheduler = options.get("scheduler", "wlc")
        return Service(
            key=key,
            scheduler=scheduler,
            flags=self.flags(scheduler),
            one_packet="ops" in options,
            persistence=persistence,
            prefix=key.family.bits if persistence is None else self.prefix(key.family),
            persistence_engine=options.get("pe", ""),
        )

    def flags(self, scheduler: str) -> SchedulerFlags:
        flags = SchedulerFlags.NONE
        for name in filter(None, self.options.get("sched-flags", "").split(",")):
            if name not in _FLAGS:
                raise self.error(f"{name} is no scheduler flag; known are {', '.join(_FLAGS)}")
            if not name.startswith("flag-") and not name.startswith(f"{scheduler}-"):
                raise self.error(f"{name} is not a flag of the scheduler {scheduler}")
            flags |= _FLAGS[name]
        return flags

    def prefix(self, family: Family) -> int:
        mask = self.options.get("netmask")
        if mask is None:
            return family.bits
        if family is Family.INET6:
            return self.whole("netmask", minimum=1, maximum=128)
        try:
            return prefix_of(int(IPv4Address(mask)))
        except AddressValueError:
            raise self.error(f"-M {mask} is not a netmask such as 255.255.255.0") from None

    def server_key(self, key: ServiceKey) -> ServerKey:
        if "real-server" not in self.options:
            raise self.error("no server: -r is missing")
        protocol = key.protocol if isinstance(key, AddressKey) else Protocol.TCP
        address, port = self.endpoint("real-server", protocol)
        if port is None:
            port = key.port if isinstance(key, AddressKey) else 0
        return ServerKey(address=address, port=port)

    def server(self, key: ServiceKey) -> Server:
        server_key = self.server_key(key)
        methods = [name for name in _METHODS if name in self.options]
        if len(methods) > 1:
            raise self.error(
                f"{option_name(methods[0])} and {option_name(methods[1])} exclude each other"
            )
        forwarding = _METHODS[methods[0]] if methods else Forwarding.GATEWAYING
        tunnel = self.tunnel(forwarding)
        if family_of(server_key.address) is not key.family and tunnel is None:
            raise self.error(
                "a server of the other address family works with -i (tunnel) only; "
                "give an address of the service's family"
            )
        return Server(
            key=server_key,
            forwarding=forwarding,
            weight=self.whole("weight", maximum=MAX_WEIGHT, default=1),
            upper_threshold=self.whole("u-threshold", maximum=2**32 - 1, default=0),
            lower_threshold=self.whole("l-threshold", maximum=2**32 - 1, default=0),
            tunnel=tunnel,
        )

    def tunnel(self, forwarding: Forwarding) -> Tunnel | None:
        given = [name for name in self.options if name.startswith("tun-")]
        if forwarding is not Forwarding.TUNNEL:
            if given:
                raise self.error(f"{option_name(given[0])} goes with -i (tunnel) only")
            return None
        name = self.options.get("tun-type", "ipip")
        if name not in list(TunnelType):
            raise self.error(f"--tun-type {name}: write ipip, gue or gre")
        kind = TunnelType(name)
        checksums = [name for name in given if name in _CHECKSUMS]
        if len(checksums) > 1:
            raise self.error(f"--{checksums[0]} and --{checksums[1]} exclude each other")
        if checksums and kind is TunnelType.IPIP:
            raise self.error(f"--{checksums[0]} does not go with --tun-type ipip")
        checksum = _CHECKSUMS[checksums[0]] if checksums else TunnelChecksum.NONE
        if checksum is TunnelChecksum.REMOTE and kind is TunnelType.GRE:
            raise self.error("--tun-remcsum does not go with --tun-type gre")
        if kind is not TunnelType.GUE:
            if "tun-port" in self.options:
                raise self.error("--tun-port goes with --tun-type gue only")
            return Tunnel(type=kind, checksum=checksum)
        if "tun-port" not in self.options:
            raise self.error("--tun-type gue needs --tun-port, the UDP port of the tunnel")
        port = self.whole("tun-port", minimum=1, maximum=65535)
        return Tunnel(type=kind, port=port, checksum=checksum)

    def whole(self, name: str, *, maximum: int, minimum: int = 0, default: int = 0) -> int:
        """The number of an option, within its limits; `default` without the option."""
        value = self.options.get(name)
        if value is None:
            return default
        if not re.fullmatch(r"-?[0-9]{1,10}", value) or not minimum <= int(value) <= maximum:
            raise self.error(
                f"{option_name(name)} {value}: not a number from {minimum} to {maximum}"
            )
        return int(value)

    def endpoint(self, option: str, protocol: Protocol) -> tuple[IPAddress, int | None]:
        """Address and port of `host`, `host:port`, `[v6]:port`, `[v6]` or a bare `v6`."""
        value = self.options[option]
        try:
            host, port = split_endpoint(value)
        except ValueError:
            message = f"{option_name(option)} {value}: not of the form [ADDRESS]:PORT"
            raise self.error(message) from None
        return self.host(option, host), None if port is None else self.port(option, port, protocol)

    def host(self, option: str, host: str) -> IPAddress:
        try:
            return table.address((IPv6Address if ":" in host else IPv4Address)(host).packed)
        except AddressValueError:
            address = None if ":" in host else self.names.host(host)
        if address is None:
            raise self.error(f"{option_name(option)} {host}: not an IP address (print with -n)")
        return address

    def port(self, option: str, port: str, protocol: Protocol) -> int:
        number = int(port) if re.fullmatch("[0-9]{1,5}", port) else self.names.port(port, protocol)
        if number is None or number > 65535:
            raise self.error(f"{option_name(option)}: {port} is not a port number (print with -n)")
        return number
