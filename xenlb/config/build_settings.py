"""Build the settings of a service from a draft without problems.

A key of `defaults` without meaning for a service (a netmask without persistence, server-port with
gatewaying) is not used. The same key in the service itself is a problem.
"""

from dataclasses import replace
from typing import Final

from xenlb.config.check_parser import CheckDraft
from xenlb.config.check_rules import needs_port, via_problem
from xenlb.config.draft import SCHEDULER_FLAGS, MemberDraft, ServiceDraft, TunnelDraft
from xenlb.config.keys import ConfigValue
from xenlb.ipvs.table import (
    Family,
    Forwarding,
    IPAddress,
    SchedulerFlags,
    Tunnel,
    TunnelChecksum,
    TunnelType,
)
from xenlb.model.checks import protocols_of
from xenlb.model.settings import Check, Member, ServiceSettings

DEFAULT_TIMEOUT: Final = Check().timeout


def without_idle_defaults(draft: ServiceDraft) -> ServiceDraft:
    """The draft without inherited keys that have no meaning for it."""
    if draft.written_family.inherited and not draft.fwmark.given:
        draft = replace(draft, written_family=ConfigValue(Family.INET))
    if draft.netmask.inherited and not _netmask_fits(draft):
        draft = replace(draft, netmask=ConfigValue(None))
    if draft.flags.inherited and any(
        SCHEDULER_FLAGS[flag][0] != draft.scheduler.value for flag in draft.flags.value
    ):
        draft = replace(draft, flags=ConfigValue(()))
    if draft.one_packet.inherited and not draft.all_udp:
        draft = replace(draft, one_packet=ConfigValue(False))
    if draft.server_port.inherited and (
        draft.forwarding.value is not Forwarding.MASQUERADE or draft.one_port is None
    ):
        draft = replace(draft, server_port=ConfigValue(None))
    tunnel = _without_idle_tunnel_defaults(draft.tunnel)
    return draft if tunnel is draft.tunnel else replace(draft, tunnel=tunnel)


def _without_idle_tunnel_defaults(tunnel: TunnelDraft) -> TunnelDraft:
    """A service with its own type does not inherit the port and checksum of another type."""
    if not tunnel.type.own or tunnel.type.value is TunnelType.GUE:
        return tunnel
    if tunnel.port.inherited:
        tunnel = replace(tunnel, port=ConfigValue(None))
    if tunnel.checksum.inherited and not (
        tunnel.type.value is TunnelType.GRE and tunnel.checksum.value is TunnelChecksum.CHECKSUM
    ):
        tunnel = replace(tunnel, checksum=ConfigValue(TunnelChecksum.NONE))
    return tunnel


def _netmask_fits(draft: ServiceDraft) -> bool:
    if draft.netmask.value is None or not draft.persistence.given:
        return False
    prefix, dotted = draft.netmask.value
    return prefix <= 32 if draft.family is Family.INET else not dotted


def build_service(draft: ServiceDraft) -> ServiceSettings:
    """The settings of a draft without problems."""
    family = draft.family
    assert family is not None
    flags = SchedulerFlags.NONE
    for flag in draft.flags.value:
        flags |= SCHEDULER_FLAGS[flag][1]
    return ServiceSettings(
        name=draft.name,
        address=draft.address.value,
        fwmark=draft.fwmark.value,
        family=family,
        ports=draft.ports,
        scheduler=draft.scheduler.value,
        flags=flags,
        one_packet=draft.one_packet.value,
        persistence=draft.persistence.value,
        prefix=family.bits if draft.netmask.value is None else draft.netmask.value[0],
        forwarding=draft.forwarding.value,
        tunnel=_tunnel_of(draft),
        server_port=draft.server_port.value,
        weight=draft.weight.value,
        upper_threshold=draft.upper_threshold.value,
        lower_threshold=draft.lower_threshold.value,
        checks=checks_of(draft),
        any_check=draft.check.any_check,
        flush=draft.flush.value,
        on_failure=draft.on_failure.value,
        keep_in_service=draft.keep_in_service.value,
        slow_start=draft.slow_start.value,
        sorry_server=_sorry_server_of(draft),
        drain=draft.drain,
        servers=tuple(_member_of(member) for member in draft.servers.value),
        from_metadata=draft.from_metadata.value,
        side=draft.side.settings(),
    )


def checks_of(draft: ServiceDraft) -> tuple[Check, ...]:
    """The checks of the service's servers.

    A default check without a usable port (tcp, for a service of UDP only) is left out.
    """
    if not draft.check.enabled.value:
        return ()
    return tuple(
        _check_of(draft, check)
        for check in draft.check.checks
        if check.port.given or not needs_port(check) or _usable_ports(draft, check)
    )


def _check_of(draft: ServiceDraft, check: CheckDraft) -> Check:
    """The settings of one check.

    `port` is None if every kernel service can be probed on its own port. If the service has ports
    of several protocols, or port 0, all are probed on the first port of the check's protocol.
    The default timeout is 3s, or half of an interval that is not longer.
    """
    port = check.port.value if needs_port(check) or check.port.own else None
    usable = _usable_ports(draft, check)
    if port is None and usable and len(usable) < len(draft.placed_ports.value):
        port = usable[0]
    interval = check.interval.value
    timeout = check.timeout.value
    if timeout is None:
        timeout = DEFAULT_TIMEOUT if interval > DEFAULT_TIMEOUT else interval / 2
    return Check(
        type=check.type.value,
        asks=check.probe(),
        interval=interval,
        timeout=timeout,
        rise=check.rise.value,
        fall=check.fall.value,
        port=port,
        via_vip=check.via_vip.value and via_problem(draft, check) is None,
        flap_damping=check.flap_damping.value,
    )


def _usable_ports(draft: ServiceDraft, check: CheckDraft) -> tuple[int, ...]:
    return draft.ports_of(protocols_of(check.probe_class()))


def _tunnel_of(draft: ServiceDraft) -> Tunnel | None:
    if draft.forwarding.value is not Forwarding.TUNNEL:
        return None
    part = draft.tunnel
    return Tunnel(type=part.type.value, port=part.port.value or 0, checksum=part.checksum.value)


def _sorry_server_of(draft: ServiceDraft) -> tuple[IPAddress, int] | None:
    """Address and port; port 0 if each port of the service goes to the same port there."""
    if draft.sorry_server.value is None:
        return None
    address, port = draft.sorry_server.value
    return address, port or draft.one_port or 0


def _member_of(member: MemberDraft) -> Member:
    return Member(
        guest=member.guest.value,
        host=member.host.value,
        address=member.address.value,
        weight=member.weight.value,
        side=None if member.side is None else member.side.settings(),
        network=member.network.value,
    )
