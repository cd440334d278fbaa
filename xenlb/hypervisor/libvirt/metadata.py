"""PURE. The services that a guest joins by its domain's <metadata>.

    <services xmlns="urn:xenlb:1"><service name="mail" weight="2" address="10.0.0.11"/></services>

It is written on the host (virsh metadata), by any user who may define domains. So its size and
values are checked, an invalid service does not affect the others, and nothing raises.
"""

import re
from xml.etree.ElementTree import Element

from xenlb.hypervisor.address_policy import UnusableAddress, parse_address
from xenlb.hypervisor.libvirt.xml_text import Malformed, local_name, parse_xml
from xenlb.ipvs.table import IPAddress
from xenlb.model.domain import MetadataService
from xenlb.untrusted.printable import quoted

NAMESPACE = "urn:xenlb:1"
LONGEST = 64 * 1024
MOST_SERVICES = 64
MOST_PROBLEMS = 16
LONGEST_NAME = 64
HEAVIEST = 65535

_WEIGHT = re.compile(r"0|[1-9][0-9]{0,4}", re.ASCII)
_KEYS = {"name", "weight", "address"}

Metadata = tuple[tuple[MetadataService, ...], tuple[str, ...]]
NOTHING: Metadata = ((), ())


class _InvalidService(ValueError):
    pass


def read_metadata(text: str) -> Metadata:
    """Return services and problems (one line each) of the element in NAMESPACE.

    libvirt gives the element with or without its namespace, depending on the call.
    """
    try:
        root = parse_xml(text, longest=LONGEST)
    except Malformed as error:
        return (), (f"metadata: {error}",)
    if not _is(root, "services"):
        return (), (f"metadata: expected <services>, found <{_bare(root)}>",)
    services: dict[str, MetadataService] = {}
    problems: list[str] = []
    if root.attrib:
        problems.append(f"metadata: <services> has no attribute {quoted(_name(min(root.attrib)))}")
    for number, element in enumerate(root, start=1):
        if number > MOST_SERVICES:
            problems.append(f"metadata: more than {MOST_SERVICES} services; the rest is left out")
            break
        try:
            service = _service(element)
            if service.name in services:
                raise _InvalidService(f"service {quoted(service.name)} is listed twice")
        except _InvalidService as error:
            problems.append(f"metadata: entry {number}: {error}")
        else:
            services[service.name] = service
    if len(problems) > MOST_PROBLEMS:
        problems[MOST_PROBLEMS:] = [f"metadata: and {len(problems) - MOST_PROBLEMS} more problems"]
    return tuple(services.values()), tuple(problems)


def _service(element: Element) -> MetadataService:
    if not _is(element, "service"):
        raise _InvalidService(f"expected <service>, found <{_bare(element)}>")
    if len(element):
        raise _InvalidService("<service> has no elements inside")
    unknown = sorted(set(element.attrib) - _KEYS)
    if unknown:
        raise _InvalidService(f"<service> has no attribute {quoted(_name(unknown[0]))}")
    name = element.get("name", "")
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise _InvalidService(f"name is missing or not a service's name: {quoted(name)}")
    return MetadataService(
        name=name, weight=_weight(element.get("weight")), address=_address(element.get("address"))
    )


def _weight(text: str | None) -> int | None:
    if text is None:
        return None
    if not _WEIGHT.fullmatch(text) or int(text) > HEAVIEST:
        raise _InvalidService(f"weight is not a whole number from 0 to {HEAVIEST}: {quoted(text)}")
    return int(text)


def _address(text: str | None) -> IPAddress | None:
    if text is None:
        return None
    try:
        return parse_address(text)
    except UnusableAddress as error:
        raise _InvalidService(f"address {quoted(text)}: {error}") from None


def _is(element: Element, name: str) -> bool:
    # A comment's or a processing instruction's tag is a function, not text.
    tag = element.tag
    return isinstance(tag, str) and local_name(tag) in {("", name), (NAMESPACE, name)}


def _name(tag: str) -> str:
    return local_name(tag)[1]


def _bare(element: Element) -> str:
    return quoted(_name(element.tag)).strip("'") if isinstance(element.tag, str) else "?"
