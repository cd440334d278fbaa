"""Format the IPVS table in ipvsadm's syntax. Pure.

service() and server() are complete, so that the line of an operation can be typed again. dump() is
the output of `ipvsadm -Sn`. Version 1.31 leaves out thresholds and the third flag of sh and mh, and
prints a firewall mark of 2**31 and more as a negative number.
"""

from collections.abc import Iterator

from xenlb.ipvs.table import (
    AddressKey,
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
    TunnelType,
    mask_of,
)

SERVICE_OPTIONS = {Protocol.TCP: "-t", Protocol.UDP: "-u", Protocol.SCTP: "--sctp-service"}
FORWARDING_OPTIONS = {
    Forwarding.MASQUERADE: "-m",
    Forwarding.GATEWAYING: "-g",
    Forwarding.TUNNEL: "-i",
    # ipvsadm has no options for these two; this is what it prints.
    Forwarding.LOCALNODE: "-g",
    Forwarding.BYPASS: "(null)",
}
# Schedulers whose flags have names; the others have flag-1 … flag-3.
FLAG_NAMES = {
    "sh": ("sh-fallback", "sh-port"),
    "mh": ("mh-fallback", "mh-port"),
}
_FLAGS = (SchedulerFlags.ONE, SchedulerFlags.TWO, SchedulerFlags.THREE)


def address(value: IPAddress) -> str:
    """An address as inet_ntop(3) writes it; ipaddress writes ::1.2.3.4 as ::102:304."""
    if value.version == 6:
        number = int(value)
        if number >> 32 == 0xFFFF:
            return f"::ffff:{_dotted(number & 0xFFFFFFFF)}"
        if number >> 32 == 0 and number >> 16:
            return f"::{_dotted(number)}"
    return str(value)


def _dotted(number: int) -> str:
    return ".".join(str(number >> shift & 0xFF) for shift in (24, 16, 8, 0))


def endpoint(value: IPAddress, port: int) -> str:
    """Return `192.0.2.1:80` or `[2001:db8::1]:80`, as ipvsadm -n prints it."""
    return f"{address(value)}:{port}" if value.version == 4 else f"[{address(value)}]:{port}"


def split_endpoint(value: str) -> tuple[str, str | None]:
    """Host and port of `host`, `host:port`, `[v6]:port`, `[v6]` or a bare `v6`.

    Raises ValueError if brackets are not of that form.
    """
    if value.startswith("["):
        host, closed, rest = value[1:].partition("]")
        if not closed or (rest and not rest.startswith(":")):
            raise ValueError(value)
        return host, rest[1:] if rest else None
    if value.count(":") > 1:
        return value, None
    host, colon, port = value.partition(":")
    return host, port if colon else None


def service_key(key: ServiceKey) -> str:
    """`-t 192.0.2.10:25`, `--sctp-service [2001:db8::1]:80`, `-f 7 -6`."""
    if isinstance(key, AddressKey):
        return f"{SERVICE_OPTIONS[key.protocol]} {endpoint(key.address, key.port)}"
    return f"-f {key.mark}" if key.family == "inet" else f"-f {key.mark} -6"


def label(key: ServiceKey) -> str:
    """The label of a service in messages: `192.0.2.10:25/tcp`, `fwmark 7`, `fwmark 7 inet6`."""
    if isinstance(key, AddressKey):
        return f"{endpoint(key.address, key.port)}/{key.protocol}"
    return f"fwmark {key.mark}" if key.family == "inet" else f"fwmark {key.mark} {key.family}"


def service(value: Service) -> str:
    """A service with all its options: `-t 192.0.2.10:25 -s sh -p 300 -b sh-fallback`."""
    return f"{service_key(value.key)}{_service_options(value, every_flag=True)}"


def _service_options(value: Service, *, every_flag: bool) -> str:
    words = f" -s {value.scheduler}"
    if value.persistence is not None:
        words += f" -p {value.persistence}"
        if value.prefix != value.key.family.bits:
            mask = _dotted(mask_of(value.prefix)) if value.key.family == "inet" else value.prefix
            words += f" -M {mask}"
    if value.persistence_engine:
        words += f" --pe {value.persistence_engine}"
    if value.one_packet:
        words += " -o"
    if value.flags:
        flag_names = FLAG_NAMES.get(value.scheduler)
        names = flag_names or ("flag-1", "flag-2", "flag-3")
        if flag_names and every_flag:
            names = (*flag_names, "flag-3")
        flags = [name for name, flag in zip(names, _FLAGS, strict=False) if flag & value.flags]
        if flags:
            words += f" -b {','.join(flags)}"
    return words


def server_key(key: ServerKey) -> str:
    """`-r 10.0.0.11:26`."""
    return f"-r {endpoint(key.address, key.port)}"


def server(value: Server) -> str:
    """A server with all its options; thresholds of 0, the kernel's default, are left out."""
    words = f"{server_key(value.key)} {FORWARDING_OPTIONS[value.forwarding]} -w {value.weight}"
    if value.upper_threshold:
        words += f" -x {value.upper_threshold}"
    if value.lower_threshold:
        words += f" -y {value.lower_threshold}"
    return words + _tunnel(value)


def _tunnel(value: Server) -> str:
    if value.forwarding is not Forwarding.TUNNEL:
        return ""
    tunnel = value.tunnel or Tunnel()
    words = f" --tun-type {tunnel.type}"
    if tunnel.type is TunnelType.GUE:
        words += f" --tun-port {tunnel.port}"
    if tunnel.type is not TunnelType.IPIP:
        words += f" --tun-{tunnel.checksum}"
    return words


def dump(table: Table) -> str:
    """The table as `ipvsadm -Sn` prints it, byte for byte.

    The order differs for marks more than 2**31 apart: ipvsadm's comparison overflows.
    """
    return "".join(f"{line}\n" for line in _lines(table))


def _lines(table: Table) -> Iterator[str]:
    for key in sorted(table.entries, key=_order):
        entry = table.entries[key]
        name = service_key(key)
        if isinstance(key, MarkKey) and key.mark >> 31:
            name = name.replace(str(key.mark), str(_signed(key.mark)))
        yield f"-A {name}{_service_options(entry.service, every_flag=False)}"
        for key_of_server in sorted(entry.servers, key=_server_order):
            value = entry.servers[key_of_server]
            method = FORWARDING_OPTIONS[value.forwarding]
            words = f"-a {name} {server_key(key_of_server)} {method} -w {value.weight}"
            yield words + _tunnel(value)


def _signed(mark: int) -> int:
    return mark - (1 << 32) if mark >> 31 else mark


def _order(key: ServiceKey) -> tuple[int, int, int, int, int]:
    """Order of ipvsadm: mark (signed; 0 for an address), family, protocol, address, port."""
    if isinstance(key, MarkKey):
        return (_signed(key.mark), key.family.bits, 0, 0, 0)
    return (0, key.family.bits, key.protocol.number, int(key.address), key.port)


def _server_order(key: ServerKey) -> tuple[int, int, int]:
    return (key.address.version, int(key.address), key.port)
