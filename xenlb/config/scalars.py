"""Parse texts of the configuration: ports, addresses, names, URIs.

Pure functions of one text. Each raises InvalidValue. YAML and other keys play no part here.
"""

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address, ip_address, ip_network
from socket import AF_INET, inet_pton
from typing import Final
from urllib.parse import urlsplit

from xenlb.config.invalid_value import InvalidValue, known_words_hint
from xenlb.config.quantities import whole_number
from xenlb.ipvs import table
from xenlb.ipvs.table import IPAddress, Protocol
from xenlb.ipvs.text import split_endpoint
from xenlb.model.settings import IPNetwork, Port
from xenlb.untrusted.printable import quoted
from xenlb.untrusted.suggestions import did_you_mean

SCHEDULERS: Final = (
    "rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "sed", "nq", "fo", "ovf", "mh", "twos",
)  # fmt: skip

# libvirt's drivers, and the transports that may follow with a plus sign (libvirt.org/uri.html).
DRIVERS: Final = (
    "xen", "qemu", "lxc", "ch", "bhyve", "vz", "openvz", "vbox", "esx", "vpx", "hyperv", "test",
)  # fmt: skip
TRANSPORTS: Final = ("unix", "ssh", "tls", "tcp", "ext", "libssh", "libssh2")

SERVICE_NAME: Final = r"[A-Za-z0-9._-]{1,63}"
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?\.?")
GUEST_INTERFACE: Final = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}"
SSH_DESTINATION: Final = r"[A-Za-z0-9_][A-Za-z0-9_.-]*(@[A-Za-z0-9][A-Za-z0-9_.:-]*)?"
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff]")


def plain_text(text: str) -> str:
    """The text, if it is printable and has no blanks around it."""
    if not text.strip():
        raise InvalidValue("is an empty text", hint="write a value or remove the key")
    if _UNPRINTABLE.search(text):
        raise InvalidValue(f"{quoted(text)} contains a control character", hint="remove it")
    if text != text.strip():
        raise InvalidValue(f"{quoted(text)} begins or ends with a blank", hint="remove the blank")
    return text


def port_number(text: str) -> int:
    """A port number other than 0."""
    return whole_number(text, least=1, most=65535)


def port(text: str) -> Port:
    """NUMBER or NUMBER/PROTOCOL; 0 means every port."""
    number, slash, protocol = text.partition("/")
    names = tuple(member.value for member in Protocol)
    if slash and protocol not in names:
        raise InvalidValue(
            f"{quoted(protocol)} is not a protocol of IPVS",
            hint=did_you_mean(protocol.lower(), names, similarity=0.8)
            or "write 25, 25/tcp, 53/udp or 2905/sctp",
        )
    if re.fullmatch(r"[0-9]+ *(-|\.\.) *[0-9]+", number):
        hint = "list them, or use fwmark: and let a firewall rule mark the range"
        raise InvalidValue(
            f"{quoted(text)} is a range, and a service takes single ports", hint=hint
        )
    try:
        value = whole_number(number, least=0, most=65535)
    except InvalidValue as wrong:
        if "is not a number" in wrong.message:
            raise InvalidValue(
                wrong.message, hint="write a port as 25, 465/tcp or 53/udp"
            ) from None
        raise
    return Port(number=value, protocol=Protocol(protocol) if slash else Protocol.TCP)


def plain_ipv4(text: str) -> IPAddress | None:
    """A unicast IPv4 address; None if the text needs the closer look of address().

    inet_pton() accepts what ipaddress accepts, in a tenth of the time. Loopback is included.
    """
    try:
        packed = inet_pton(AF_INET, text)
    except (OSError, ValueError):
        return None
    return table.address(packed) if 0 < packed[0] < 224 else None


def address(text: str) -> IPAddress:
    """A unicast IPv4 or IPv6 address for the kernel's table: no name, prefix length or scope."""
    plain = plain_ipv4(text)
    if plain is not None:
        return plain
    if "/" in text:
        raise InvalidValue(
            f"{quoted(text)} has a prefix length", hint="write the address alone, without /…"
        )
    if "%" in text:
        raise InvalidValue(
            f"{quoted(text)} has a scope, which IPVS does not know", hint="write a global address"
        )
    if text.startswith("["):
        raise InvalidValue(f"{quoted(text)} is in brackets", hint="write the address alone")
    try:
        result = ip_address(text)
    except ValueError:
        if re.fullmatch(r"[0-9.]+", text):
            hint = "four numbers of 0 … 255 without leading zeros, like 192.0.2.10"
        elif re.fullmatch(r"[0-9.]+:[0-9]+", text):
            hint = "write the address alone, without the port"
        elif _HOST_NAME.fullmatch(text):
            raise InvalidValue(
                f"{quoted(text)} is a name, and names are not looked up",
                hint="write the IP address",
            ) from None
        else:
            hint = "write one like 192.0.2.10 or 2001:db8::10"
        raise InvalidValue(f"{quoted(text)} is not an IP address", hint=hint) from None
    if isinstance(result, IPv6Address) and result.ipv4_mapped is not None:
        raise InvalidValue(
            f"{text} is an IPv4 address inside IPv6", hint=f"write {result.ipv4_mapped}"
        )
    if result.is_unspecified:
        raise InvalidValue(
            f"{result} is not the address of a machine", hint="write the address itself"
        )
    if result.is_multicast:
        raise InvalidValue(f"{result} is a multicast address", hint="write a unicast address")
    if result == IPv4Address("255.255.255.255"):
        raise InvalidValue(f"{result} is the broadcast address", hint="write a unicast address")
    return result


def service_address(text: str) -> IPAddress:
    """A virtual IP address. Clients must reach it, so loopback is refused."""
    result = address(text)
    if result.is_loopback:
        raise InvalidValue(
            f"{result} is a loopback address, which no client can reach",
            hint="write an address that clients can reach",
        )
    return result


def server_address(text: str) -> IPAddress:
    """A real server. Loopback is allowed: for IPVS it is the director itself."""
    result = address(text)
    # ip_vs_add_dest() returns EINVAL: a table entry cannot hold the interface.
    if isinstance(result, IPv6Address) and result.is_link_local:
        raise InvalidValue(
            f"{result} is a link-local address, which IPVS cannot reach",
            hint="write a global or unique local address",
        )
    return result


def endpoint(text: str) -> tuple[IPAddress, int | None]:
    """ADDRESS or ADDRESS:PORT; an IPv6 address with a port has brackets."""
    try:
        host, port = split_endpoint(text)
    except ValueError:
        raise InvalidValue(
            f"{quoted(text)} is not [ADDRESS]:PORT", hint="write '[2001:db8::99]:25'"
        ) from None
    if text.startswith("[") and "." in host and ":" not in host:
        raise InvalidValue(
            f"{quoted(text)} has an IPv4 address in brackets",
            hint=f"write {text[1:].replace(']', '')}",
        )
    return server_address(host), None if port is None else port_number(port)


def listen_endpoint(text: str) -> tuple[IPAddress, int]:
    """ADDRESS:PORT, an address of this host."""
    if text.isascii() and text.isdigit():
        hint = f"write the address at which the guests reach this host: 10.0.0.1:{text[:5]}"
        raise InvalidValue(f"{quoted(text)} has no address", hint=hint)
    host, number = endpoint(text)
    if number is None:
        example = f"'[{host}]:7371'" if isinstance(host, IPv6Address) else f"{host}:7371"
        raise InvalidValue(f"{quoted(text)} has no port", hint=f"write {example}")
    return host, number


def netmask(text: str) -> tuple[int, bool]:
    """The prefix length of a persistence netmask, and whether the text has IPv4's dots."""
    if "." in text:
        try:
            bits = int(IPv4Address(text))
        except AddressValueError:
            raise InvalidValue(
                f"{quoted(text)} is not a netmask", hint="write 255.255.255.0 or 24"
            ) from None
        prefix = bits.bit_count()
        if bits != (0xFFFFFFFF << (32 - prefix)) & 0xFFFFFFFF:
            raise InvalidValue(
                f"{text} has gaps", hint="write a netmask whose ones come first, or a prefix length"
            )
        if prefix == 0:
            raise InvalidValue(f"{text} puts all clients on one server", hint="at least 128.0.0.0")
        return prefix, True
    return whole_number(text.removeprefix("/"), least=1, most=128), False


def service_name(text: str) -> str:
    """A name of 1 to 63 letters, digits, dots, underscores and hyphens."""
    if not re.fullmatch(SERVICE_NAME, text):
        raise InvalidValue(
            f"{quoted(text)} cannot be the name of a service",
            hint="1 to 63 of the letters A-Z a-z, digits, dot, underscore and hyphen",
        )
    return text


def interface(text: str) -> str:
    """An interface name that the kernel's dev_valid_name() accepts."""
    if len(text.encode()) > 15:
        raise InvalidValue(
            f"{quoted(text)} is too long for an interface", hint="at most 15 characters"
        )
    if text in {".", ".."} or re.search(r"[/:\s]", text):
        raise InvalidValue(f"{quoted(text)} is not the name of an interface", hint="see: ip link")
    return text


def guest_interface(text: str) -> str:
    """A guest's interface. Its name is written into files, so special characters are refused."""
    if not re.fullmatch(GUEST_INTERFACE, text):
        raise InvalidValue(
            f"{quoted(text)} is not the name of a guest's interface",
            hint="at most 15 letters, digits, dots, hyphens and underscores, like eth0",
        )
    return text


def ssh_destination(text: str) -> str:
    """USER@HOST or a name of ssh's configuration; options are refused."""
    if not re.fullmatch(SSH_DESTINATION, text):
        raise InvalidValue(
            f"{quoted(text)} is not a destination for ssh", hint="write one like root@mail1"
        )
    return text


def network(text: str) -> IPNetwork:
    """An IPv4 or IPv6 network with a prefix length and no bits set behind it."""
    if "/" not in text:
        raise InvalidValue(
            f"{quoted(text)} has no prefix length", hint="write one like 10.0.0.0/24"
        )
    try:
        return ip_network(text)
    except ValueError:
        try:
            wider = ip_network(text, strict=False)
        except ValueError:
            raise InvalidValue(
                f"{quoted(text)} is not a network", hint="write one like 10.0.0.0/24"
            ) from None
        raise InvalidValue(
            f"{quoted(text)} has bits set behind its prefix", hint=f"write {wider}"
        ) from None


def libvirt_uri(text: str) -> str:
    """A URI for virConnectOpen(), without a password."""
    try:
        parts = urlsplit(text)
        password, _ = parts.password, parts.port  # raises ValueError for a bad port
    except ValueError:
        raise InvalidValue(
            f"{quoted(text)} is not a URI", hint="write one like xen:///system"
        ) from None
    if password is not None:
        raise InvalidValue(
            "a password in a URI", hint="use a key, or libvirt's auth.conf; write USER@ alone"
        )
    driver, plus, transport = parts.scheme.partition("+")
    if "://" not in text or not driver:
        raise InvalidValue(f"{quoted(text)} is not a URI", hint="write one like xen:///system")
    if driver not in DRIVERS:
        raise InvalidValue(
            f"{quoted(driver)} is not a driver of libvirt", hint=known_words_hint(driver, DRIVERS)
        )
    if plus and transport not in TRANSPORTS:
        raise InvalidValue(
            f"{quoted(transport)} is not a transport of libvirt",
            hint=known_words_hint(transport, TRANSPORTS),
        )
    if re.search(r"\s", text):
        raise InvalidValue(f"{quoted(text)} contains a blank", hint="write %20 for it")
    if not parts.path:
        raise InvalidValue(f"{quoted(text)} has no path", hint=f"write {text[:60]}/system")
    return text
