"""The platform of a guest: its init system and network software, configured or detected."""

from dataclasses import dataclass

from xenlb.guestside.inspect.observed import Observed
from xenlb.guestside.install.operations import Executor, File, Folder, Missing, Present
from xenlb.guestside.render.facts import LOOPBACK_FILE, MANAGES_LOOPBACK, Facts, NetworkLink
from xenlb.guestside.transport.channel import DeliveryError
from xenlb.model.guest_side import GuestSide, Init, System

_INTERFACES = "etc/network/interfaces"
_WANTS = "etc/systemd/system/multi-user.target.wants"
_NETWORKD = f"{_WANTS}/systemd-networkd.service"
_MANAGER = f"{_WANTS}/NetworkManager.service"
_NETPLAN, _SCRIPTS = "etc/netplan", "etc/sysconfig/network-scripts"
_SYSTEMD = ("lib/systemd/systemd", "usr/lib/systemd/systemd")
_SYSVINIT = "etc/inittab"


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """The network software, the init system, and facts that its files depend on."""

    system: System
    init: Init
    facts: Facts


def platform_of_running(
    side: GuestSide, observed: Observed, *, name: str, container: bool
) -> Platform:
    """The platform of a running guest. Raises DeliveryError for an unknown init system."""
    init = side.init or observed.init
    if init is None:
        raise _unknown_init(name)
    system = side.system or observed.system_of(side.interface)
    return Platform(system=system, init=init, facts=facts_of(observed, container=container))


def facts_of(observed: Observed, *, container: bool = False) -> Facts:
    """The facts that a running guest shows; `container` is known from its libvirt URI."""
    systems = observed.systems
    loopback = systems.get("lo")
    return Facts(
        links=tuple(
            NetworkLink(
                interface=interface,
                network_file=system.network_file,
                address_routes=system.address_routes,
            )
            for interface, system in systems.items()
            if interface != "lo"
        ),
        sources_interfaces_d=observed.interfaces_d,
        # xenlb's own file does not count.
        loopback_file=None
        if loopback is None or loopback.network_file == LOOPBACK_FILE
        else loopback.network_file,
        netplan_by_manager=any(system.by_manager for system in systems.values()),
        manager_version=observed.network_manager or MANAGES_LOOPBACK,
        applies_sysctls=not container,
    )


async def platform_of_files(
    side: GuestSide, executor: Executor, *, name: str, container: bool
) -> Platform:
    """The platform of a powered-off guest, by its files. Raises DeliveryError.

    No file shows which .network file networkd uses for an interface, so routes are left to
    guest.sh.
    """
    files = (_INTERFACES, _NETWORKD, _MANAGER, *_SYSTEMD, _SYSVINIT)
    present = await executor.read(files=files, folders=(_NETPLAN, _SCRIPTS))
    stanzas = _text(present, _INTERFACES)
    init = side.init
    if init is None:
        if any(not isinstance(present[path], Missing) for path in _SYSTEMD):
            init = Init.SYSTEMD
        elif not isinstance(present[_SYSVINIT], Missing):
            init = Init.SYSVINIT
        else:
            raise _unknown_init(name)
    return Platform(
        system=side.system or _system(side, present, stanzas),
        init=init,
        facts=Facts(sources_interfaces_d="interfaces.d" in stanzas, applies_sysctls=not container),
    )


def _system(side: GuestSide, present: Present, stanzas: str) -> System:
    words = [line.split() for line in stanzas.splitlines()]
    if any(line[:2] == ["iface", side.interface] for line in words):
        return System.IFUPDOWN
    for path, system in (
        (_NETPLAN, System.NETPLAN),
        (_NETWORKD, System.NETWORKD),
        (_MANAGER, System.NETWORK_MANAGER),
        (_SCRIPTS, System.NETWORK_SCRIPTS),
    ):
        match present[path]:
            case Missing() | Folder(empty=True):
                pass
            case _:
                return system
    return System.SHELL


def _text(present: Present, path: str) -> str:
    match present[path]:
        case File(content=content):
            return content.decode("ascii", "replace")
        case _:
            return ""


def _unknown_init(name: str) -> DeliveryError:
    return DeliveryError(
        f"the init system of {name} is unknown",
        hint="set  guest-side: {init: systemd}  or {init: sysvinit}",
    )
