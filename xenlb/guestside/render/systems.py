"""All files of a guest, and the commands that make its programs read them.

Each network configuration system expresses what it can. If it cannot express a need, all needs go
to /etc/xenlb-guest.conf as well, and guest.sh keeps the guest to them. All of them, because
guest.sh removes what it made and no longer finds there; it leaves existing state alone.
"""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from pathlib import Path
from typing import assert_never
from uuid import UUID

from xenlb.guestside.install.operations import GuestFile, GuestSymlink
from xenlb.guestside.render import native_files
from xenlb.guestside.render.facts import MANAGES_LOOPBACK, Facts
from xenlb.guestside.render.native_files import Renderer
from xenlb.guestside.render.template import OVERRIDES, TemplateError, UnsafeValue, safe
from xenlb.guestside.requirements import hold as hold_settings
from xenlb.guestside.requirements.hold import Hold, NotifyVia
from xenlb.guestside.requirements.needs import Needs, settings_lines
from xenlb.ipvs.table import Family
from xenlb.model.guest_side import Init, System
from xenlb.model.settings import DrainUntil

# Of a guest that configures itself, before it has other settings: it notifies the host, and waits
# for no connections.
IMAGE_HOLD = Hold(
    uuid=UUID(int=0),
    tell=NotifyVia.XENSTORE,
    timeout=3600,
    until=DrainUntil.ESTABLISHED,
    watches=(),
)
GUEST_SCRIPT = "usr/local/lib/xenlb/guest.sh"
GUEST_SETTINGS = "etc/xenlb-guest.conf"
HOLD_SCRIPT = "usr/local/lib/xenlb/hold.sh"
HOLD_SETTINGS = "etc/xenlb-hold.conf"
UNITS = "etc/systemd/system"
WANTS = f"{UNITS}/multi-user.target.wants"


def guest_files(
    needs: Needs, *, system: System, init: Init, facts: Facts, overrides: Path = OVERRIDES
) -> tuple[GuestFile | GuestSymlink, ...]:
    """All files of a guest with these needs. Raises TemplateError, also for an unsafe fact."""
    settings = settings_text(needs)
    system = _effective(system, facts)
    renderer = Renderer(overrides=overrides)
    script = needs_guest_script(needs, system=system, facts=facts)
    files: list[GuestFile | GuestSymlink] = [*native_files.modules(needs, renderer)]
    if system is not System.NETWORK_SCRIPTS:
        files += native_files.sysctls(needs, renderer)
    match system:
        case System.IFUPDOWN:
            files += native_files.ifupdown(needs, facts, renderer)
        case System.NETPLAN:
            files += native_files.netplan(needs, facts, renderer)
        case System.NETWORKD:
            files += native_files.networkd(needs, facts, renderer)
        case System.NETWORK_MANAGER:
            files += native_files.network_manager(needs, facts, renderer, script=script)
        case System.NETWORK_SCRIPTS:
            files += native_files.network_scripts(needs, init, facts, renderer, script=script)
        case System.SHELL:
            pass
        case _:
            assert_never(system)
    if needs.network:
        # Also without guest.sh: the next apply or removal reads the last settings there.
        files.append(GuestFile(path=GUEST_SETTINGS, text=settings))
    if script:
        files += _guest_script(init, renderer)
    if needs.hold is not None:
        files += hold_files(needs.hold, init, overrides=overrides)
        files += _enabled("xenlb-hold", init)
    return tuple(files)


def image_files(init: Init, *, overrides: Path = OVERRIDES) -> tuple[GuestFile | GuestSymlink, ...]:
    """Files for the image of guests that configure themselves: guest.sh and the hold.

    systemd stops the hold after an hour, whatever its later settings say.
    """
    renderer = Renderer(overrides=overrides)
    hold = hold_files(IMAGE_HOLD, init, overrides=overrides)
    return (*_guest_script(init, renderer), *hold, *_enabled("xenlb-hold", init))


def hold_files(hold: Hold, init: Init, *, overrides: Path = OVERRIDES) -> tuple[GuestFile, ...]:
    """The files of a hold. Raises TemplateError."""
    renderer = Renderer(overrides=overrides)
    values = hold_settings.template_values(hold)
    return (
        renderer.file(HOLD_SCRIPT, "hold.sh", values, mode=0o755),
        # For root only: it may contain a secret.
        GuestFile(path=HOLD_SETTINGS, text=hold_settings.settings_text(hold), mode=0o600),
        _service("xenlb-hold", init, renderer, values),
    )


def _guest_script(init: Init, renderer: Renderer) -> Iterator[GuestFile | GuestSymlink]:
    yield renderer.file(GUEST_SCRIPT, "guest.sh", {}, mode=0o755)
    yield _service("xenlb-guest", init, renderer, {})
    yield from _enabled("xenlb-guest", init)


def _service(name: str, init: Init, renderer: Renderer, values: Mapping[str, int]) -> GuestFile:
    if init is Init.SYSVINIT:
        return renderer.file(f"etc/init.d/{name}", f"{name}.init", values, mode=0o755)
    return renderer.file(f"{UNITS}/{name}.service", f"{name}.service", values)


def _enabled(name: str, init: Init) -> tuple[GuestSymlink, ...]:
    """The link that `systemctl enable` makes; sysvinit's are made by a command in the guest."""
    unit = f"{name}.service"
    link = GuestSymlink(path=f"{WANTS}/{unit}", target=f"/{UNITS}/{unit}")
    return (link,) if init is Init.SYSTEMD else ()


def apply_commands(needs: Needs, *, system: System, init: Init, facts: Facts) -> tuple[str, ...]:
    """Shell lines for a running guest with new files, in order; each may be repeated.

    `guest.sh up` changes the state at once; the guest's own programs read their files when they
    start. They do not reload before: `networkctl reload` makes systemd-networkd (252) remove and
    set the addresses of a link with changed files. `nmcli connection reload` makes NetworkManager
    (1.42) reconfigure lo, without ::1 for a moment.
    """
    system = _effective(system, facts)
    lines: list[str] = []
    if init is Init.SYSTEMD:
        lines.append("systemctl daemon-reload")
    if system is System.NETPLAN:
        lines.append("netplan generate")  # writes to /run, which networkd reads at its next start
    if needs_guest_script(needs, system=system, facts=facts):
        lines += _start("xenlb-guest", "restart", init)
    elif init is Init.SYSTEMD:
        # Its files are gone; a stop leaves its changes in place.
        lines.append("systemctl stop xenlb-guest.service 2>/dev/null || :")
    if needs.hold is not None:
        # The hold is never restarted: a stop waits for connections, and tells the host that the
        # guest leaves. It reads its settings when it stops.
        lines += _start("xenlb-hold", "start", init)
    return tuple(lines)


def _start(service: str, verb: str, init: Init) -> tuple[str, ...]:
    if init is Init.SYSTEMD:
        return (f"systemctl {verb} {service}.service",)
    return (
        f"if command -v update-rc.d >/dev/null; then update-rc.d {service} defaults; "
        f"else chkconfig --add {service}; fi",
        f"/etc/init.d/{service} {verb}",
    )


def removal_commands(*, system: System, init: Init, facts: Facts) -> tuple[str, ...]:
    """Shell lines for a running guest after the removal of xenlb's files.

    The hold is stopped only now, when its script is gone: before, a stop would wait for
    connections, and tell the host that the guest leaves.
    """
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
    if _effective(system, facts) is System.NETPLAN:
        lines.append("netplan generate")
    return tuple(lines)


def needs_guest_script(needs: Needs, *, system: System, facts: Facts) -> bool:
    """Whether there are needs that the system's own files cannot express."""
    system = _effective(system, facts)
    left = replace(needs, default_gateways=())  # xenlb never sets these
    if facts.applies_sysctls or system is System.IFUPDOWN:
        left = replace(left, sysctls=())
    behind_networkd = system in {System.NETPLAN, System.NETWORKD}
    if behind_networkd and all(facts.link(route.interface).network_file for route in needs.routes):
        left = replace(left, routes=(), rules=())
    on_tunnels = tuple(need for need in needs.addresses if need.device != "lo")
    match system:
        case System.IFUPDOWN:
            left = replace(left, tunnels=(), routes=(), rules=(), addresses=())
        case System.NETPLAN:
            left = replace(left, addresses=on_tunnels)
        case System.NETWORKD:
            tunnels = tuple(t for t in needs.tunnels if not native_files.networkd_makes(t))
            ports = tuple(port for port in needs.decapsulations if port.family is Family.INET6)
            devices = {tunnel.name for tunnel in tunnels}
            addresses = tuple(need for need in needs.addresses if need.device in devices)
            left = replace(left, tunnels=tunnels, decapsulations=ports, addresses=addresses)
        case System.NETWORK_MANAGER:
            if facts.manager_version >= MANAGES_LOOPBACK:
                left = replace(left, addresses=on_tunnels)
        case System.NETWORK_SCRIPTS:
            if not any(facts.link(route.interface).address_routes for route in needs.routes):
                left = replace(left, routes=(), rules=())
            # Aliases have no IPv6 addresses, and ifcfg-lo is the distribution's.
            six = tuple(need for need in needs.addresses if need.address.version == 6)
            left = replace(left, addresses=(*on_tunnels, *six))
        case System.SHELL:
            left = needs
        case _:
            assert_never(system)
    return bool(settings_lines(left))


def _effective(system: System, facts: Facts) -> System:
    """NetworkManager may be the renderer of netplan; it then has files of its own."""
    if system is System.NETPLAN and facts.netplan_by_manager:
        return System.NETWORK_MANAGER
    return system


def settings_text(needs: Needs) -> str:
    """The settings of guest.sh. Raises TemplateError for a value that no template may contain."""
    for field in fields(needs):
        for need in getattr(needs, field.name) if field.name != "hold" else ():
            try:
                for value in _values(need):
                    if not isinstance(value, Enum | bool | None):
                        safe(value)
            except UnsafeValue as error:
                raise TemplateError(f"{field.name} of the guest: {error}") from None
    return "\n".join(("xenlb 1", *settings_lines(needs))) + "\n"


def _values(need: object) -> Iterator[object]:
    # Not by astuple(): its copy of an address loses the zone.
    if is_dataclass(need):
        yield from (getattr(need, field.name) for field in fields(need))
    else:
        yield need
