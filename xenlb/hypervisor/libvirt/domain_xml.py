"""PURE. The network interfaces in a domain's XML.

MAC addresses (for the neighbour table and leases), the libvirt network of each (for its leases),
the host's devices that carry it, and the <ip address=…> that the host's administrator wrote there.
"""

import re
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from xenlb.hypervisor.libvirt.xml_text import Malformed, parse_xml

MOST_INTERFACES = 64
MOST_ADDRESSES = 16

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """One <interface>; `mac` in lower case with colons, `addresses` as written (unchecked).

    `devices`: network devices of the host: the bridge, the device of a macvtap, the host's end of
    the interface (a tap, a veth or a Xen vif).
    """

    mac: str | None = None
    network: str | None = None
    devices: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()


def interfaces(text: str) -> tuple[Interface, ...]:
    """Return the interfaces in the order of the XML; raises Malformed."""
    root = parse_xml(text, wanted=[("devices", "interface")])
    if root.tag != "domain":
        raise Malformed("it is not a domain's XML")
    parsed: list[Interface] = []
    for element in root.findall("./devices/interface")[:MOST_INTERFACES]:
        mac = _attribute(element, "mac", "address").lower()
        devices = (
            _attribute(element, "source", "bridge"),
            _attribute(element, "source", "dev"),
            _attribute(element, "target", "dev"),
        )
        parsed.append(
            Interface(
                mac=mac if _MAC.fullmatch(mac) else None,
                network=_attribute(element, "source", "network") or None,
                devices=tuple(device for device in devices if device),
                addresses=tuple(
                    address
                    for ip in element.findall("ip")[:MOST_ADDRESSES]
                    if (address := ip.get("address")) is not None
                ),
            )
        )
    return tuple(parsed)


def _attribute(interface: Element, tag: str, name: str) -> str:
    element = interface.find(tag)
    return "" if element is None else element.get(name, "")
