"""PURE. What is read of a domain's XML: its interfaces.

MAC addresses (for the neighbour table and leases), the libvirt network of each (for its leases),
the host's devices that carry it, and the <ip address=…> that the host's administrator wrote there.
Metadata: metadata.py.
"""

import re
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from xenlb.hypervisor.libvirt.xml_text import Malformed, parse

MOST_INTERFACES = 64
MOST_ADDRESSES = 16

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """One <interface>; `mac` in lower case with colons, `addresses` as written (unchecked).

    `devices`: network devices of the host: the bridge, the device of a macvtap, its own end (a tap,
    a veth or a Xen vif).
    """

    mac: str | None = None
    network: str | None = None
    devices: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()


def interfaces(text: str) -> tuple[Interface, ...]:
    """The interfaces in the order of the XML; raises Malformed."""
    root = parse(text, wanted=[("devices", "interface")])
    if root.tag != "domain":
        raise Malformed("it is not a domain's XML")
    found: list[Interface] = []
    for element in root.findall("./devices/interface")[:MOST_INTERFACES]:
        mac = _attribute(element.find("mac"), "address")
        mac = mac.lower() if mac is not None else None
        source, target = element.find("source"), element.find("target")
        devices = (
            _attribute(source, "bridge"),
            _attribute(source, "dev"),
            _attribute(target, "dev"),
        )
        found.append(
            Interface(
                mac=mac if mac is not None and _MAC.fullmatch(mac) else None,
                network=_attribute(source, "network"),
                devices=tuple(device for device in devices if device),
                addresses=tuple(
                    address
                    for ip in element.findall("ip")[:MOST_ADDRESSES]
                    if (address := ip.get("address")) is not None
                ),
            )
        )
    return tuple(found)


def _attribute(element: Element | None, name: str) -> str | None:
    return None if element is None else element.get(name)
