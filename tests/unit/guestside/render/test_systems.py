"""The files of each system for each way to be a server, whole, against those kept in golden/.

    XENLB_GOLDEN=write pytest tests/unit/guestside/render/test_systems.py

writes them anew; what changed is then in `git diff`.
"""

import os
import re
import subprocess
from collections.abc import Sequence
from configparser import ConfigParser
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.guestside.render.test_hold import hold
from tests.unit.guestside.render.test_template import HOSTILE
from tests.unit.guestside.requirements.test_needs import CASES as METHODS
from tests.unit.guestside.requirements.test_needs import GATEWAYING, RULE, V4, V6, place
from xenlb.config import parse
from xenlb.guestside.director_files import director_files
from xenlb.guestside.inspect.observed import NetworkSystem, Observed
from xenlb.guestside.install.operations import GuestFile, GuestSymlink
from xenlb.guestside.platform import facts_of
from xenlb.guestside.render.facts import LOOPBACK_FILE, Facts, NetworkLink
from xenlb.guestside.render.systems import (
    apply_commands,
    guest_files,
    needs_guest_script,
    settings_text,
)
from xenlb.guestside.render.template import TemplateError
from xenlb.guestside.requirements.compile import NeedsError, compile_needs
from xenlb.guestside.requirements.needs import (
    Needs,
    Route,
    Rule,
    ServiceAddress,
    Sysctl,
    settings_lines,
)
from xenlb.ipvs.table import Family
from xenlb.model.guest_side import Init, System

GOLDEN = Path(__file__).parent / "golden"
NONE = Path("/nonexistent")
KNOWN = Facts(
    links=tuple(NetworkLink(interface=f"eth{n}", network_file=f"20-eth{n}.network") for n in (0, 1))
)
# What has its own tests and is the same everywhere.
ELSEWHERE = re.compile(r".*/(guest\.sh|xenlb-hold\.conf|hold\.sh|xenlb-(guest|hold)(\.service)?)")

NEEDS: dict[str, Needs] = {
    **{name: compile_needs([each]) for name, (each, _) in METHODS.items()},
    "everything": compile_needs(
        [
            *(place(vip, forwarding=GATEWAYING) for vip in (V4, "192.0.2.11", V6)),
            *(each for each, _ in METHODS.values()),
        ],
        hold=hold(),
    ),
}
OTHER_FACTS: dict[str, tuple[System, Init, Facts, str]] = {
    "unsourced": (System.IFUPDOWN, Init.SYSVINIT, Facts(sources_interfaces_d=False), "ipip"),
    "loopback-file": (
        System.NETWORKD,
        Init.SYSTEMD,
        Facts(loopback_file="lo.network"),
        "gatewaying",
    ),
    "unknown": (System.NETWORKD, Init.SYSTEMD, Facts(), "masquerade-rule"),
    "unknown-file": (System.NETPLAN, Init.SYSTEMD, Facts(), "masquerade-rule"),
    "by-manager": (System.NETPLAN, Init.SYSTEMD, Facts(netplan_by_manager=True), "everything"),
    "old": (System.NETWORK_MANAGER, Init.SYSTEMD, Facts(manager_version=(1, 30)), "gatewaying"),
    "red-hat-6": (System.NETWORK_SCRIPTS, Init.SYSVINIT, Facts(), "everything"),
    "address-routes": (
        System.NETWORK_SCRIPTS,
        Init.SYSTEMD,
        Facts(links=(NetworkLink(interface="eth1", address_routes=True),)),
        "masquerade-rule",
    ),
    "container": (System.NETWORKD, Init.SYSTEMD, Facts(applies_sysctls=False), "gatewaying"),
    "sysvinit": (System.SHELL, Init.SYSVINIT, Facts(), "gatewaying"),
}
DIRECTOR = """
director: {interface: br0, addresses: leave}
services:
  a: {address: 192.0.2.10, ports: [25]}
  b: {address: "2001:db8::10", ports: [25], forwarding: gatewaying}
"""


def side(
    needs: Needs, system: System, *, init: Init = Init.SYSTEMD, facts: Facts = KNOWN
) -> tuple[GuestFile | GuestSymlink, ...]:
    return guest_files(needs, system=system, init=init, facts=facts, overrides=NONE)


def listing(files: Sequence[GuestFile | GuestSymlink], lines: Sequence[str]) -> str:
    """Path, rights and content of each, and the commands for a running guest."""
    parts = []
    for file in files:
        match file:
            case GuestSymlink(path=path, target=target):
                parts.append(f"==> {path} -> {target}\n")
            case GuestFile(path=path, text=text, mode=mode, block=block):
                part = " a part" if block else ""
                body = "…\n" if ELSEWHERE.fullmatch(path) else text
                parts.append(f"==> {path} {mode:04o}{part}\n{body}")
    return "\n".join([*parts, "==> commands\n" + "".join(f"{line}\n" for line in lines)])


def compare(name: str, text: str) -> None:
    kept = GOLDEN / f"{name}.txt"
    if os.environ.get("XENLB_GOLDEN") == "write":
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(text)
    assert kept.exists(), f"there is no {kept}; XENLB_GOLDEN=write makes it"
    assert text == kept.read_text()


def of_director(system: System) -> tuple[GuestFile, ...]:
    settings = parse(DIRECTOR, "xenlb.yaml")
    facts = Facts(links=(NetworkLink(interface="br0", network_file="10-netplan-br0.network"),))
    return director_files(settings, system=system, facts=facts, kernel=(6, 1), overrides=NONE)


def every_golden() -> dict[str, str]:
    made = {
        f"{system}/{case}": listing(
            side(needs, system),
            apply_commands(needs, system=system, init=Init.SYSTEMD, facts=KNOWN),
        )
        for system in System
        for case, needs in NEEDS.items()
    }
    for case, (system, init, facts, name) in OTHER_FACTS.items():
        needs = NEEDS[name]
        made[f"{system}/{name}.{case}"] = listing(
            side(needs, system, init=init, facts=facts),
            apply_commands(needs, system=system, init=init, facts=facts),
        )
    for system in set(System) - {System.SHELL}:
        made[f"{system}/director"] = listing(of_director(system), ())
    return made


EVERY = every_golden()


@pytest.mark.parametrize("name", sorted(EVERY))
def test_the_files(name: str) -> None:
    compare(name, EVERY[name])


def test_no_golden_file_is_left_over() -> None:
    kept = {str(path.relative_to(GOLDEN).with_suffix("")) for path in GOLDEN.rglob("*.txt")}
    assert kept == {str(Path(name)) for name in EVERY}


def every_file() -> list[GuestFile]:
    """Of all cases, each content once."""
    found: dict[str, GuestFile] = {}
    for system in System:
        for needs in NEEDS.values():
            for file in side(needs, system):
                if isinstance(file, GuestFile):
                    found.setdefault(file.text, file)
    for system, init, facts, name in OTHER_FACTS.values():
        for file in side(NEEDS[name], system, init=init, facts=facts):
            if isinstance(file, GuestFile):
                found.setdefault(file.text, file)
    for system in set(System) - {System.SHELL}:
        found.update((file.text, file) for file in of_director(system))
    return list(found.values())


FILES = every_file()


def test_shell_is_shell(tmp_path: Path) -> None:
    """Scripts, the parts of scripts, the lines of /etc/network/interfaces and the commands: for the
    shell itself and for shellcheck."""
    scripts = [file.text for file in FILES if file.text.startswith("#!")]
    scripts += [file.text for file in FILES if file.path.endswith(("ifup-local", "rc.local"))]
    step = re.compile(r"^ +(?:pre-up|up|down|post-down) (.*)$", re.MULTILINE)
    scripts += ["\n".join(step.findall(file.text)) for file in FILES if "interfaces" in file.path]
    for system in System:
        for init in Init:
            lines = apply_commands(NEEDS["everything"], system=system, init=init, facts=KNOWN)
            scripts.append("\n".join(lines))
    paths = []
    for number, text in enumerate(scripts):
        assert text
        path = tmp_path / f"{number}.sh"
        path.write_text(text if text.startswith("#!") else f"#!/bin/sh\n{text}\n")
        subprocess.run(["sh", "-n", path], check=True)
        paths.append(path)
    assert len(paths) > 20
    command = ["shellcheck", "--severity=warning", *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == ""


def test_other_forms_are_what_they_should_be() -> None:
    """YAML is read as it was meant; of the INI files each section and key is one of the program's
    (whether it does what it should, only the program itself shows)."""
    seen = set()
    for file in FILES:
        suffix = Path(file.path).suffix
        seen.add(suffix)
        if suffix == ".yaml":
            network = yaml.safe_load(file.text)["network"]
            assert network["version"] == 2
            for link in network["ethernets"].values():
                assert set(link) == {"addresses"}
                assert all(isinstance(each, str) for each in link.get("addresses", ()))
        elif suffix == ".nmconnection":
            parser = ConfigParser(interpolation=None)
            parser.read_string(file.text)
            assert set(parser.sections()) == {"connection", "ipv4", "ipv6"}
        elif suffix in {".network", ".netdev"} or ".network.d" in file.path:
            for line in file.text.splitlines():
                assert re.fullmatch(r"|#.*|\[[A-Za-z]+\]|[A-Za-z0-9]+=[A-Za-z0-9.:/_-]+", line)
    assert {".yaml", ".nmconnection", ".network", ".netdev", ".conf"} <= seen


@pytest.mark.parametrize("system", System)
def test_the_script_is_there_only_for_what_nothing_else_says(system: System) -> None:
    left = {
        name
        for name, needs in NEEDS.items()
        if needs_guest_script(needs, system=system, facts=KNOWN)
    }
    expected = {
        System.IFUPDOWN: {"masquerade", "gatewaying", "rule"},
        System.NETWORKD: {"masquerade", "gatewaying", "rule"},
        System.NETPLAN: {"masquerade", "gatewaying", "rule"},
        System.NETWORK_MANAGER: {"masquerade", "gatewaying"},
        System.NETWORK_SCRIPTS: {"masquerade", "gatewaying four", "rule"},
        System.SHELL: {"masquerade"},
    }[system]
    native = {"masquerade"}
    if "gatewaying" in expected:
        native |= {"gatewaying", "gatewaying-6"}
    if "gatewaying four" in expected:
        native |= {"gatewaying"}
    if "rule" in expected:
        native |= {"masquerade-rule", "masquerade-rule-6"}
    assert set(NEEDS) - left == native


def test_what_the_script_keeps_is_everything() -> None:
    """Not only what the system cannot say: it would take away the rest, which a pass of it over
    everything had made."""
    needs = NEEDS["everything"]
    for system in System:
        texts = {
            file.path: file.text for file in side(needs, system) if isinstance(file, GuestFile)
        }
        assert texts["etc/xenlb-guest.conf"].splitlines() == ["xenlb 1", *settings_lines(needs)]


def test_what_a_guest_shows_is_what_its_files_are_made_for() -> None:
    shown = Observed(
        systems={
            "eth0": NetworkSystem(
                system=System.NETPLAN, network_file="10-netplan-a.network", by_manager=True
            ),
            "lo": NetworkSystem(system=System.NETWORKD, network_file="lo.network"),
        },
        network_manager=(1, 30),
        interfaces_d=True,
    )
    assert facts_of(shown) == Facts(
        links=(NetworkLink(interface="eth0", network_file="10-netplan-a.network"),),
        loopback_file="lo.network",
        netplan_by_manager=True,
        manager_version=(1, 30),
    )
    ours = replace(shown.systems["lo"], network_file=LOOPBACK_FILE)
    after = replace(shown, systems={**shown.systems, "lo": ours})
    assert facts_of(after).loopback_file is None  # else a second apply would not be the first
    assert facts_of(shown, container=True) == replace(facts_of(shown), applies_sysctls=False)


def test_an_operators_template_of_a_system(tmp_path: Path) -> None:
    own = tmp_path / "ifupdown/if-up"
    own.parent.mkdir()
    for text, says in (
        ("#!/bin/sh\n# {{ routes[0].table }}\n", None),
        ("#!/bin/sh\n\n{{ routes[0].tables }}\n", r"ifupdown/if-up, line 3: .* has no attribute"),
        ("{% for way in routes %}", r"ifupdown/if-up, line 1: "),
    ):
        own.write_text(text)
        make = partial(
            guest_files,
            NEEDS["masquerade-rule"],
            system=System.IFUPDOWN,
            init=Init.SYSTEMD,
            facts=KNOWN,
            overrides=tmp_path,
        )
        if says is None:
            file, _settings = make()
            assert isinstance(file, GuestFile)
            assert file.text == "#!/bin/sh\n# 732\n"
        else:
            with pytest.raises(TemplateError, match=says):
                make()


# Whatever gets here from a guest or a configuration that was not looked at


def hostile_facts(text: str) -> list[tuple[System, Needs, Facts]]:
    rule = compile_needs([place(V4, side=RULE)])
    lo = NEEDS["gatewaying"]
    return [
        (System.NETWORKD, rule, Facts(links=(NetworkLink(interface="eth0", network_file=text),))),
        (System.NETWORKD, lo, Facts(loopback_file=text)),
        (System.NETPLAN, rule, Facts(links=(NetworkLink(interface="eth0", network_file=text),))),
    ]


def hostile_needs(text: str) -> list[Needs]:
    route = Route(gateway=ip_address("10.0.0.1"), interface=text, table=7)
    rule = Rule(family=Family.INET, table=7, source=ip_address("10.0.0.2"))
    zone = ip_address(f"fe80::1%{text}") if not {"%", "/"} & set(text) else None
    address = ServiceAddress(address=ip_address(V4), device=text)
    needs = [
        Needs(routes=(route,), rules=(rule,)),
        Needs(sysctls=(Sysctl(name=text, value=1),)),
        replace(NEEDS["gre"], tunnels=(replace(NEEDS["gre"].tunnels[0], name=text),)),
        replace(NEEDS["gre"], tunnels=(replace(NEEDS["gre"].tunnels[0], module=text),)),
        Needs(addresses=(address,), no_tx_checksums=(text,)),
        Needs(no_tx_checksums=(text,)),
    ]
    if zone is not None:
        needs += [
            Needs(addresses=(ServiceAddress(address=zone, device="lo"),)),
            Needs(routes=(replace(route, interface="eth0", gateway=zone),)),
            Needs(
                routes=(replace(route, interface="eth0"),),
                rules=(Rule(family=Family.INET, table=7, source=zone),),
            ),
        ]
    return needs


# Characters of which each alone would do harm somewhere.
HARM = st.sampled_from(list("\n\r\0 \t'\"\\$`;|&<>(){}[]*?!#%=,~^é"))


@given(st.text("abc", max_size=3), HARM, st.text("abc$(){}\n ", max_size=9))
def test_no_hostile_name_is_written(before: str, harm: str, after: str) -> None:
    refused(before + harm + after)


@pytest.mark.parametrize(
    "text",
    [each for each in HOSTILE if isinstance(each, str) and each]
    + ["$(touch /tmp/x)", "'; reboot; '", '"\n[Match]\nName=*', "x" * 10_000],
    ids=lambda text: ascii(text)[:20],
)
def test_no_known_trick_is_written(text: str) -> None:
    refused(text)


@pytest.mark.parametrize("text", ["../../etc/passwd", "..", ".", ".x", "a/b", "/etc/passwd"])
def test_no_path_is_made_of_a_name(text: str) -> None:
    for system, needs, facts in hostile_facts(text):
        with pytest.raises(TemplateError, match="which is invalid"):
            side(needs, system, facts=facts)


def refused(text: str) -> None:
    """Whatever it is the name of, and whatever the system."""
    cases = hostile_facts(text)
    cases += [(system, each, KNOWN) for each in hostile_needs(text) for system in System]
    for system, needs, facts in cases:
        with pytest.raises(TemplateError) as error:
            side(needs, system, facts=facts)
        assert len(str(error.value)) < 300
        assert str(error.value).isprintable()
    for needs in hostile_needs(text):
        with pytest.raises(TemplateError):
            settings_text(needs)


def test_unknown_facts_of_the_director_are_errors() -> None:
    settings = parse(DIRECTOR, "xenlb.yaml")
    for system, changed, says in (
        (System.NETWORKD, settings, r"\.network file of br0"),
        (System.SHELL, settings, "the network software of this host"),
        (
            System.IFUPDOWN,
            replace(settings, director=replace(settings.director, interface=None)),
            "the interface for the service addresses",
        ),
    ):
        with pytest.raises(NeedsError, match=says) as error:
            director_files(changed, system=system, kernel=(6, 1), overrides=NONE)
        assert error.value.hint
