"""Rules about the keys of `check`: with each other, and with the service around them.

A check in `defaults` is judged as each service merges it.
"""

from typing import Any, Final

from xenlb.config.check_parser import CheckDraft
from xenlb.config.draft import ServiceDraft
from xenlb.config.problem_report import Location, ProblemReport
from xenlb.config.quantities import duration_text
from xenlb.ipvs.table import Forwarding, Protocol, TunnelType
from xenlb.model.checks import Exec, Icmp, protocols_of
from xenlb.model.settings import OnFailure

_NONE: Final = "or check: none"


def check(draft: ServiceDraft, report: ProblemReport) -> None:
    """Report checks that contradict themselves or the service, and checks that appear twice."""
    part = draft.check
    if not part.enabled.value or part.enabled.bad:
        return
    seen: dict[Any, Location] = {}
    for one in part.checks:
        _times(draft, one, report)
        if one.type.bad:
            continue
        _type(draft, one, report)
        _port(draft, one, report)
        if one.via_vip.own and (problem := via_problem(draft, one)) is not None:
            report.add(draft.location_of(one.via_vip), *problem)
        if one.location is None or any(value.bad for value in one.type_values.values()):
            continue
        first = seen.setdefault(_identity(one), one.location)
        if first is not one.location:
            report.add(
                one.location,
                "this check appears twice",
                f"it is {first.path} already: remove one",
            )


def flush(draft: ServiceDraft, report: ProblemReport) -> None:
    """Report `flush` together with `on-failure: quiesce`."""
    if draft.flush.own and draft.flush.value and draft.on_failure.value is OnFailure.QUIESCE:
        report.add(
            draft.location_of(draft.flush),
            "flush has no meaning with on-failure: quiesce, which keeps connections",
            "remove it, or use on-failure: remove",
        )


def needs_port(check: CheckDraft) -> bool:
    """Whether the check needs a port: icmp has none, and exec may have none."""
    return check.probe_class() not in {Icmp, Exec}


def via_problem(draft: ServiceDraft, check: CheckDraft) -> tuple[str, str] | None:
    """The problem and hint of a check that cannot use the service address; None if it can."""
    if not check.via_vip.value or draft.forwarding.bad:
        return None
    if check.type.value != "tcp" or check.given_type_values():
        what = "send and expect" if check.type.value == "tcp" else f"type {check.type.value}"
        return (
            f"via vip is for a connection only, without {what}",
            "add a check {type: tcp, via: vip}",
        )
    if draft.fwmark.given:
        return "a fwmark service has no address to use with via: vip", "write via: server"
    match draft.forwarding.value:
        case Forwarding.GATEWAYING:
            return None
        case Forwarding.TUNNEL:
            if draft.tunnel.type.value is TunnelType.IPIP or draft.tunnel.type.bad:
                return None
            kind = draft.tunnel.type.value
            return f"via vip goes through ipip tunnels only, not {kind}", "write via: server"
        case forwarding:
            return (
                f"with {forwarding.value} no server has the service address",
                "write via: server, or use forwarding: gatewaying",
            )


def _times(draft: ServiceDraft, check: CheckDraft, report: ProblemReport) -> None:
    if check.interval.bad or check.timeout.value is None:
        return
    timeout, interval = check.timeout.value, check.interval.value
    if timeout >= interval:
        report.add(
            draft.location_of(check.timeout, check.interval),
            f"timeout {duration_text(timeout)} is not shorter than "
            f"interval {duration_text(interval)}",
            "a check ends before the next begins",
        )


def _type(draft: ServiceDraft, check: CheckDraft, report: ProblemReport) -> None:
    given = {name: value for name, value in check.type_values.items() if value.value is not None}
    location = draft.location_of(check.type) if check.location is None else check.location
    if check.type.value == "exec" and "command" not in check.type_values:
        report.add(
            location,
            "a check of type exec needs a command",
            "add command: [/PATH/PROGRAM, ARGUMENT]",
        )
    if check.type.value == "dns" and "query" not in given:
        for name in ("record", "expect"):
            if name in given:
                report.add(
                    draft.location_of(given[name]),
                    f"{name} has no meaning without query",
                    "add query: NAME, or remove it: without query any answer passes",
                )
    if "tls" in given and "starttls" in given:
        report.add(
            draft.location_of(given["starttls"], given["tls"]),
            "tls and starttls exclude each other",
            "tls is from the beginning, starttls by that command: remove one",
        )
    if "body" in given and "method" in given and given["method"].value == "HEAD":
        report.add(
            draft.location_of(given["body"], given["method"]),
            "the answer to HEAD has no body",
            "remove body, or use method: GET",
        )
    if check.probe_class() is Icmp and check.port.own:
        report.add(draft.location_of(check.port), "icmp has no port", "remove it")


def _port(draft: ServiceDraft, check: CheckDraft, report: ProblemReport) -> None:
    if (
        check.port.given
        or not needs_port(check)
        or draft.placed_ports.bad
        or not (draft.placed_ports.given or draft.fwmark.given)
        or (draft.address.given and draft.fwmark.given)  # reported already
    ):
        return
    protocols = protocols_of(check.probe_class())
    if draft.ports_of(protocols):
        return
    location = check.location or draft.location_of(draft.check.enabled)
    hint = f"add port: NUMBER to the check, {_NONE}"
    protocol = "udp" if Protocol.UDP in protocols else "tcp"
    if draft.fwmark.given:
        report.add(location, "a fwmark service has no port to check", hint)
    elif any(port.number == 0 for port in draft.ports):
        report.add(location, "port 0 is no port to check", hint)
    elif draft.check.enabled.own:
        report.add(
            location,
            f"a check of type {check.type.value} needs a {protocol} port, and there is none",
            hint,
        )


def _identity(check: CheckDraft) -> Any:
    """What two equal checks have in common."""
    values = tuple(sorted(check.given_type_values().items()))
    return check.type.value, values, check.port.value, check.via_vip.value
