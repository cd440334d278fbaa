"""A draft that no rule objected to → the settings of a service, with what is left out filled in.

Here is what a default means for a service: one without meaning for it (a netmask without
persistence, server-port under gatewaying) is not used; the same key with the service itself is an
error (service_rules.py).
"""

from dataclasses import replace
from typing import Final

from xenlb.config.check_parser import CheckDraft
from xenlb.config.check_rules import needs_port, via_problem
from xenlb.config.cursor import Value
from xenlb.config.draft import Draft, MemberDraft, TunnelDraft
from xenlb.config.service_parser import SCHEDULER_FLAGS
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


def without_idle_defaults(draft: Draft) -> Draft:
    """The draft without the defaults that have no meaning for it."""
    if draft.written_family.inherited and not draft.fwmark.given:
        draft = replace(draft, written_family=Value(value=Family.INET))
    if draft.netmask.inherited and not _netmask_fits(draft):
        draft = replace(draft, netmask=Value(value=None))
    if draft.flags.inherited and any(
        SCHEDULER_FLAGS[flag][0] != draft.scheduler.value for flag in draft.flags.value
    ):
        draft = replace(draft, flags=Value(value=()))
    if draft.one_packet.inherited and not draft.all_udp:
        draft = replace(draft, one_packet=Value(value=False))
    if draft.server_port.inherited and (
        draft.forwarding.value is not Forwarding.MASQUERADE or draft.one_port is None
    ):
        draft = replace(draft, server_port=Value(value=None))
    tunnel = _without_idle_tunnel_defaults(draft.tunnel)
    return draft if tunnel is draft.tunnel else replace(draft, tunnel=tunnel)


def _without_idle_tunnel_defaults(tunnel: TunnelDraft) -> TunnelDraft:
    """A service with a type of its own does not get the port and checksum of another's."""
    if not tunnel.type.own or tunnel.type.value is TunnelType.GUE:
        return tunnel
    if tunnel.port.inherited:
        tunnel = replace(tunnel, port=Value(value=None))
    if tunnel.checksum.inherited and not (
        tunnel.type.value is TunnelType.GRE and tunnel.checksum.value is TunnelChecksum.CHECKSUM
    ):
        tunnel = replace(tunnel, checksum=Value(value=TunnelChecksum.NONE))
    return tunnel


def _netmask_fits(draft: Draft) -> bool:
    if draft.netmask.value is None or not draft.persistence.given:
        return False
    prefix, dotted = draft.netmask.value
    return prefix <= 32 if draft.family is Family.INET else not dotted


def settings_of(draft: Draft) -> ServiceSettings:
    """The settings of a draft that no rule objected to."""
    own_family = draft.family
    assert own_family is not None
    flags = SchedulerFlags.NONE
    for flag in draft.flags.value:
        flags |= SCHEDULER_FLAGS[flag][1]
    return ServiceSettings(
        name=draft.name,
        address=draft.address.value,
        fwmark=draft.fwmark.value,
        family=own_family,
        ports=draft.ports,
        scheduler=draft.scheduler.value,
        flags=flags,
        one_packet=draft.one_packet.value,
        persistence=draft.persistence.value,
        prefix=own_family.bits if draft.netmask.value is None else draft.netmask.value[0],
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


def checks_of(draft: Draft) -> tuple[Check, ...]:
    """How the servers of the service are probed.

    A check without any port that it could ask is left out where the service did not write it (a
    tcp check by default, of a service of UDP only); elsewhere it is an error (check_rules.py).
    """
    if not draft.check.section.value:
        return ()
    return tuple(
        _check_of(draft, check)
        for check in draft.check.checks
        if check.port.given or not needs_port(check) or _own_ports(draft, check)
    )


def _check_of(draft: Draft, check: CheckDraft) -> Check:
    """`port` stays None where every kernel service can be probed on its own port (all are of the
    check's protocol; under masquerade that is server-port if there is one). With ports of several
    protocols, or with port 0 among them, it is the first of the check's protocol, for all.
    A timeout that is left out is 3s, or half of an interval that is not longer than that.
    """
    port = check.port.value if needs_port(check) or check.port.own else None
    mine = _own_ports(draft, check)
    if port is None and mine and len(mine) < len(draft.placed_ports.value):
        port = mine[0]
    interval = check.interval.value
    timeout = check.timeout.value
    if timeout is None:
        timeout = DEFAULT_TIMEOUT if interval > DEFAULT_TIMEOUT else interval / 2
    return Check(
        type=check.type.value,
        asks=check.asks(),
        interval=interval,
        timeout=timeout,
        rise=check.rise.value,
        fall=check.fall.value,
        port=port,
        via_vip=check.via_vip.value and via_problem(draft, check) is None,
        flap_damping=check.flap_damping.value,
    )


def _own_ports(draft: Draft, check: CheckDraft) -> tuple[int, ...]:
    return draft.ports_of(protocols_of(check.asks_class()))


def _tunnel_of(draft: Draft) -> Tunnel | None:
    if draft.forwarding.value is not Forwarding.TUNNEL:
        return None
    part = draft.tunnel
    return Tunnel(type=part.type.value, port=part.port.value or 0, checksum=part.checksum.value)


def _sorry_server_of(draft: Draft) -> tuple[IPAddress, int] | None:
    """Port 0 where each port of the service goes to the same port there."""
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
