"""From needs to files of the guest's own network configuration, and what makes them known to it.

Each system says natively what it can; where something is left that it cannot say, all of the needs
go to /etc/xenlb-guest.conf, too, and guest.sh keeps the guest to them. All, and not what is left:
guest.sh takes away what it made and no longer finds there, and what is there already it leaves
alone.

The files of each system are native_files.py's. How they come into the guest is the rooms' plan and
ways, what is true in the guest, seen's.
"""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from pathlib import Path
from typing import assert_never
from uuid import UUID

from xenlb.guestside.install.operations import GuestFile, GuestSymlink
from xenlb.guestside.render import native_files
from xenlb.guestside.render.facts import MANAGES_LOOPBACK, Facts
from xenlb.guestside.render.hold_files import hold_files
from xenlb.guestside.render.template import OVERRIDES, TemplateError, UnsafeValue, safe
from xenlb.guestside.requirements.hold import Hold, NotifyVia
from xenlb.guestside.requirements.needs import Needs, settings_lines
from xenlb.ipvs.table import Family
from xenlb.model.guest_side import Init, System
from xenlb.model.settings import DrainUntil

# Of a guest that configures itself, until it is given another: it tells the host, and waits for
# nothing.
IMAGE_HOLD = Hold(
    uuid=UUID(int=0),
    tell=NotifyVia.XENSTORE,
    timeout=3600,
    until=DrainUntil.ESTABLISHED,
    watches=(),
)
GUEST_SCRIPT = "usr/local/lib/xenlb/guest.sh"
GUEST_SETTINGS = "etc/xenlb-guest.conf"
UNITS = "etc/systemd/system"
WANTS = f"{UNITS}/multi-user.target.wants"


def side_files(
    needs: Needs, *, system: System, init: Init, facts: Facts, overrides: Path = OVERRIDES
) -> tuple[GuestFile | GuestSymlink, ...]:
    """All files of a guest with these needs. Raises TemplateError, also for what the guest says of
    itself and cannot be."""
    _check(needs)
    system = _in_charge(system, facts)
    files = native_files.Renderer(overrides=overrides)
    left = is_left(needs, system=system, facts=facts)
    every: list[GuestFile | GuestSymlink] = [*native_files.modules(needs, files)]
    if system is not System.NETWORK_SCRIPTS:
        every += native_files.sysctls(needs, files)
    match system:
        case System.IFUPDOWN:
            every += native_files.ifupdown(needs, facts, files)
        case System.NETPLAN:
            every += native_files.netplan(needs, facts, files)
        case System.NETWORKD:
            every += native_files.networkd(needs, facts, files)
        case System.NETWORK_MANAGER:
            every += native_files.network_manager(needs, facts, files, left=left)
        case System.NETWORK_SCRIPTS:
            every += native_files.network_scripts(needs, init, facts, files, left=left)
        case System.SHELL:
            pass
        case _:
            assert_never(system)
    if needs.network:
        # Also where nothing is left to guest.sh: it says to the next apply, and to a removal, what
        # the guest was given.
        every.append(GuestFile(path=GUEST_SETTINGS, text=_settings(needs)))
    if left:
        every += _guest_script(init, files)
    if needs.hold is not None:
        every += hold_files(needs.hold, init, overrides=overrides)
        if init is Init.SYSTEMD:
            every.append(_enabled("xenlb-hold"))
    return tuple(every)


def image_files(init: Init, *, overrides: Path = OVERRIDES) -> tuple[GuestFile | GuestSymlink, ...]:
    """For the image of guests that configure themselves: what reads their settings at boot and when
    they change. Those of the hold come with them. systemd stops it after an hour, whatever its
    settings say."""
    every = [
        *_guest_script(init, native_files.Renderer(overrides=overrides)),
        *hold_files(IMAGE_HOLD, init, overrides=overrides),
    ]
    if init is Init.SYSTEMD:
        every.append(_enabled("xenlb-hold"))
    return tuple(every)


def commands(needs: Needs, *, system: System, init: Init, facts: Facts) -> tuple[str, ...]:
    """Shell lines for a running guest whose files have changed, in order; any of them may be run
    again. What is to be true at once `guest.sh up` makes true; the guest's own programs read their
    files when they start.

    They are not told before: `networkctl reload` makes systemd-networkd (252) take the addresses of
    a link whose files have changed away and set them again, `nmcli connection reload` makes
    NetworkManager (1.42) take up lo anew, without ::1 for a moment."""
    system = _in_charge(system, facts)
    left = is_left(needs, system=system, facts=facts)
    lines: list[str] = []
    if init is Init.SYSTEMD:
        lines.append("systemctl daemon-reload")
    if system is System.NETPLAN:
        lines.append("netplan generate")  # into /run, where it is read at the next start
    # The hold is never restarted: to stop it is to wait, and to tell the host that the guest goes.
    # It reads its settings when it is stopped.
    for service, wanted, verb in (
        ("xenlb-guest", left, "restart"),
        ("xenlb-hold", needs.hold is not None, "start"),
    ):
        match init, wanted:
            case Init.SYSTEMD, True:
                lines.append(f"systemctl {verb} {service}.service")
            case Init.SYSVINIT, True:
                lines.append(
                    f"if command -v update-rc.d >/dev/null; then update-rc.d {service} defaults; "
                    f"else chkconfig --add {service}; fi"
                )
                lines.append(f"/etc/init.d/{service} {verb}")
            case Init.SYSTEMD, False if service == "xenlb-guest":
                # Its files are gone; it leaves in place what it made.
                lines.append(f"systemctl stop {service}.service 2>/dev/null || :")
            case _:
                pass
    return tuple(lines)


def removal_commands(*, system: System, init: Init, facts: Facts) -> tuple[str, ...]:
    """The same when xenlb's files are gone. The hold is stopped now, when it can hold no longer:
    before, to stop it would be to wait, and to tell the host that the guest goes."""
    services = ("xenlb-guest", "xenlb-hold")
    if init is Init.SYSTEMD:
        stops = (f"systemctl stop {service}.service 2>/dev/null || :" for service in services)
        lines = ["systemctl daemon-reload", *stops]
    else:
        lines = [
            f"if command -v update-rc.d >/dev/null; then update-rc.d -f {service} remove; "
            f"else rm -f /etc/rc?.d/[SK]??{service}; fi"
            for service in services
        ]
    if _in_charge(system, facts) is System.NETPLAN:
        lines.append("netplan generate")
    return tuple(lines)


def is_left(needs: Needs, *, system: System, facts: Facts) -> bool:
    """Is there anything that the system's own files cannot say?"""
    system = _in_charge(system, facts)
    left = replace(needs, default_gateways=())  # never xenlb's to set
    if facts.applies_sysctls or system is System.IFUPDOWN:
        left = replace(left, sysctls=())
    behind_networkd = system in {System.NETPLAN, System.NETWORKD}
    if behind_networkd and all(facts.link(route.interface).network_file for route in needs.routes):
        left = replace(left, routes=(), rules=())
    elsewhere = tuple(each for each in needs.addresses if each.device != "lo")
    match system:
        case System.IFUPDOWN:
            left = replace(left, tunnels=(), routes=(), rules=(), addresses=())
        case System.NETPLAN:
            left = replace(left, addresses=elsewhere)
        case System.NETWORKD:
            tunnels = tuple(each for each in needs.tunnels if not native_files.networkd_makes(each))
            ports = tuple(each for each in needs.decapsulations if each.family is Family.INET6)
            ends = {each.name for each in tunnels}
            addresses = tuple(each for each in needs.addresses if each.device in ends)
            left = replace(left, tunnels=tunnels, decapsulations=ports, addresses=addresses)
        case System.NETWORK_MANAGER:
            if facts.manager_version >= MANAGES_LOOPBACK:
                left = replace(left, addresses=elsewhere)
        case System.NETWORK_SCRIPTS:
            if not any(facts.link(route.interface).address_routes for route in needs.routes):
                left = replace(left, routes=(), rules=())
            # Aliases have no IPv6 addresses, and ifcfg-lo is the distribution's.
            six = tuple(each for each in needs.addresses if each.address.version == 6)
            left = replace(left, addresses=(*elsewhere, *six))
        case System.SHELL:
            left = needs
        case _:
            assert_never(system)
    return bool(settings_lines(left))


def _check(needs: Needs) -> None:
    """Everything in it is as safe as what a template may say: the settings of guest.sh are made of
    it without one."""
    for field in fields(needs):
        for each in getattr(needs, field.name) if field.name != "hold" else ():
            try:
                for value in _values(each):
                    if not isinstance(value, Enum | bool | None):
                        safe(value)
            except UnsafeValue as error:
                raise TemplateError(f"{field.name} of the guest: {error}") from None


def _values(each: object) -> Iterator[object]:
    # Not by astuple(): the copy that it makes of an address has lost its zone.
    if is_dataclass(each):
        yield from (getattr(each, field.name) for field in fields(each))
    else:
        yield each


def _in_charge(system: System, facts: Facts) -> System:
    """Behind netplan may be NetworkManager, which then has files of its own."""
    if system is System.NETPLAN and facts.netplan_by_manager:
        return System.NETWORK_MANAGER
    return system


def _enabled(service: str) -> GuestSymlink:
    """As `systemctl enable` makes it."""
    return GuestSymlink(path=f"{WANTS}/{service}.service", target=f"/{UNITS}/{service}.service")


def settings_text(needs: Needs) -> str:
    """The settings of guest.sh. Raises TemplateError."""
    _check(needs)
    return _settings(needs)


def _settings(needs: Needs) -> str:
    """Of needs that were looked at."""
    return "\n".join(("xenlb 1", *settings_lines(needs))) + "\n"


def _guest_script(init: Init, files: native_files.Renderer) -> Iterator[GuestFile | GuestSymlink]:
    yield files.file(GUEST_SCRIPT, "guest.sh", {}, mode=0o755)
    match init:
        case Init.SYSTEMD:
            yield files.file(f"{UNITS}/xenlb-guest.service", "xenlb-guest.service", {})
            yield _enabled("xenlb-guest")
        case Init.SYSVINIT:
            yield files.file("etc/init.d/xenlb-guest", "xenlb-guest.init", {}, mode=0o755)
        case _:
            assert_never(init)
