"""Metadata and domain XML: parsed values, and no exceptions for any text."""

from ipaddress import ip_address
from typing import ClassVar
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenlb.hypervisor.libvirt.domain_xml import Interface, interfaces
from xenlb.hypervisor.libvirt.metadata import MOST_PROBLEMS, MOST_SERVICES, read_metadata
from xenlb.hypervisor.libvirt.xml_text import LONGEST, PIECE, Malformed, parse_xml
from xenlb.model.domain import MetadataService

LAUGHS = (
    '<!DOCTYPE services [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    '<services><service name="&b;"/></services>'
)


@pytest.mark.parametrize(
    "text",
    [
        "<services><service name='mail' weight='2' address='10.0.0.11'/></services>",
        "<services xmlns='urn:xenlb:1'>\n <service name='mail' weight='2' address='10.0.0.11'/>\n"
        "</services>",
        "<xenlb:services xmlns:xenlb='urn:xenlb:1'>"
        "<xenlb:service name='mail' weight='2' address='10.0.0.11'/></xenlb:services>",
    ],
)
def test_service_with_everything(text: str) -> None:
    mail = MetadataService(name="mail", weight=2, address=ip_address("10.0.0.11"))
    assert read_metadata(text) == ((mail,), ())


def test_several_services_and_defaults() -> None:
    services, problems = read_metadata(
        "<services><!-- both --><service name='mail'/><service name='web' weight='0'"
        " address='2001:db8::7'/></services>"
    )
    assert services == (
        MetadataService(name="mail"),
        MetadataService(name="web", weight=0, address=ip_address("2001:db8::7")),
    )
    assert problems == ()


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("<service/>", "name is missing"),
        ("<service name=''/>", "name is missing"),
        (f"<service name='{'x' * 65}'/>", "not a service's name"),
        ("<service name='a&#10;b'/>", "not a service's name"),
        ("<service name='web' weight='-1'/>", "weight is not a whole number"),
        ("<service name='web' weight='65536'/>", "weight is not a whole number"),
        ("<service name='web' weight='010'/>", "weight is not a whole number"),
        ("<service name='web' weight='٣'/>", "weight is not a whole number"),
        ("<service name='web' weight=''/>", "weight is not a whole number"),
        ("<service name='web' address='10.0.0.011'/>", "not an IPv4 or IPv6 address"),
        ("<service name='web' address='127.0.0.1'/>", "loopback"),
        ("<service name='web' address='fe80::1%eth0'/>", "zone"),
        ("<service name='web' wait='1'/>", "no attribute 'wait'"),
        ("<service name='mail'/>", "is listed twice"),
        ("<service name='web'><b/></service>", "no elements inside"),
        ("<guest name='web'/>", "expected <service>, found <guest>"),
        ("<service xmlns='urn:other' name='web'/>", "expected <service>"),
    ],
)
def test_invalid_entry_is_reported_and_affects_no_other(entry: str, problem: str) -> None:
    services, problems = read_metadata(f"<services><service name='mail'/>{entry}</services>")
    assert services == (MetadataService(name="mail"),)
    (only,) = problems
    assert problem in only
    assert "entry 2" in only
    assert only.isprintable()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "not well-formed"),
        ("<services>", "not well-formed"),
        ("<service name='mail'/>", "expected <services>, found <service>"),
        ("<services xmlns='urn:other'/>", "expected <services>"),
        (LAUGHS, "DOCTYPE"),
        ("<services>" + " " * 70000 + "</services>", "longer than"),
        ("<services>\ud800</services>", "cannot be read"),
        ("<a>" * 30000, ""),
    ],
)
def test_wrong_text_gives_one_problem(text: str, problem: str) -> None:
    services, problems = read_metadata(text)
    assert services == ()
    (only,) = problems
    assert problem in only


def test_number_of_services_and_problems_is_bounded() -> None:
    many = "".join(f"<service name='s{n}'/>" for n in range(MOST_SERVICES + 40))
    services, problems = read_metadata(f"<services>{many}</services>")
    assert len(services) == MOST_SERVICES
    assert len(problems) == 1
    wrong = "<service/>" * MOST_SERVICES
    services, problems = read_metadata(f"<services>{wrong}</services>")
    assert services == ()
    assert len(problems) == MOST_PROBLEMS + 1
    assert "more problems" in problems[-1]


@given(text=st.text())
def test_any_text_is_parsed_without_an_exception(text: str) -> None:
    services, problems = read_metadata(text)
    assert services == ()
    assert len(problems) == 1


ATTRIBUTE = st.text(st.characters(min_codepoint=32, exclude_categories=["Cs", "Co", "Cn"]))


@given(name=ATTRIBUTE, weight=ATTRIBUTE | st.integers().map(str), address=ATTRIBUTE)
def test_any_attribute_is_parsed_without_an_exception(name: str, weight: str, address: str) -> None:
    services, problems = read_metadata(
        f"<services><service name={quoteattr(name)} weight={quoteattr(weight)}"
        f" address={quoteattr(address)}/></services>"
    )
    assert len(services) + len(problems) == 1
    assert all(problem.isprintable() and len(problem) < 300 for problem in problems)


# --- domain XML ----------------------------------------------------------------------------------

DOMAIN = """
<domain type='xen' id='4'>
  <name>mail1</name>
  <devices>
    <interface type='bridge'>
      <mac address='00:16:3E:00:00:01'/>
      <source bridge='xenbr0'/>
      <ip address='10.0.0.11' family='ipv4'/>
      <ip address='2001:db8::11' family='ipv6' prefix='64'/>
      <target dev='vif4.0'/>
    </interface>
    <interface type='network'>
      <mac address='52:54:00:aa:bb:cc'/>
      <source network='default'/>
    </interface>
    <interface type='ethernet'><mac address='nonsense'/></interface>
  </devices>
</domain>
"""


def test_interfaces_of_a_domain() -> None:
    assert interfaces(DOMAIN) == (
        Interface(
            mac="00:16:3e:00:00:01",
            devices=("xenbr0", "vif4.0"),
            addresses=("10.0.0.11", "2001:db8::11"),
        ),
        Interface(mac="52:54:00:aa:bb:cc", network="default"),
        Interface(),
    )


def test_domain_without_devices() -> None:
    assert interfaces("<domain type='lxc'/>") == ()


@pytest.mark.parametrize("text", ["", "<network/>", "<!DOCTYPE domain><domain/>", "<domain>"])
def test_xml_of_other_objects_is_refused(text: str) -> None:
    with pytest.raises(Malformed):
        interfaces(text)


def test_devices_of_a_macvtap_and_of_a_network() -> None:
    xml = (
        "<domain><devices><interface type='direct'><source dev='eth0' mode='bridge'/></interface>"
        "<interface type='network'><source network='default' bridge='virbr0'/></interface>"
        "</devices></domain>"
    )
    assert [each.devices for each in interfaces(xml)] == [("eth0",), ("virbr0",)]


# --- what a text may cost ------------------------------------------------------------------------


class Parser(ElementTree.XMLParser):
    """Records the sizes of the pieces."""

    sizes: ClassVar[list[int]] = []

    def feed(self, data: str | bytes) -> None:  # type: ignore[override]
        self.sizes.append(len(data))
        super().feed(data)


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    Parser.sizes = []
    monkeypatch.setattr(ElementTree, "XMLParser", Parser)
    return Parser.sizes


def test_a_document_type_is_refused_before_anything_is_parsed(fed: list[int]) -> None:
    with pytest.raises(Malformed, match="DOCTYPE"):
        parse_xml(LAUGHS)
    assert fed == []
    assert read_metadata(LAUGHS)[1] == ("metadata: it has a DOCTYPE, which is not allowed",)
    assert fed == []


def test_a_text_beyond_the_budget_is_not_parsed(fed: list[int]) -> None:
    with pytest.raises(Malformed, match=f"longer than {LONGEST}"):
        parse_xml("<domain>" + " " * LONGEST + "</domain>")
    assert fed == []


def test_a_long_text_is_fed_in_pieces_and_only_wanted_elements_are_built(fed: list[int]) -> None:
    junk = "<a><b c='d'/></a>" * 40_000
    wanted = "<interface type='bridge'><mac address='00:16:3e:00:00:01'/></interface>"
    text = f"<domain>{junk}<devices>{junk[: 17 * 10_000]}{wanted}</devices></domain>"
    root = parse_xml(text, wanted=[("devices", "interface")])
    assert [each.tag for each in root.iter()] == ["domain", "devices", "interface", "mac"]
    assert max(fed) <= PIECE
    assert sum(fed) == len(text)
    with pytest.raises(Malformed, match="more than 20000 elements"):
        parse_xml(text)
