"""Rules about the keys of `check`: with each other, and with the service around them.

Those of a check that stands under `defaults` are about what the service makes of it.
"""

from typing import Any, Final

from xenlb.config.check_parser import CheckDraft
from xenlb.config.cursor import Location, Report
from xenlb.config.draft import Draft
from xenlb.config.quantities import show_duration
from xenlb.ipvs.table import Forwarding, Protocol, TunnelType
from xenlb.model.checks import Exec, Icmp, protocols_of
from xenlb.model.settings import OnFailure

_NONE: Final = "or check: none"


def check(draft: Draft, report: Report) -> None:
    part = draft.check
    if not part.section.value or part.section.bad:
        return
    seen: dict[Any, Location] = {}
    for each in part.checks:
        _times(draft, each, report)
        if each.type.bad:
            continue
        _type(draft, each, report)
        _port(draft, each, report)
        if each.via_vip.own and (problem := via_problem(draft, each)) is not None:
            report.add(draft.place_of(each.via_vip), *problem)
        if each.place is None or any(value.bad for value in each.told.values()):
            continue
        first = seen.setdefault(_what(each), each.place)
        if first is not each.place:
            report.add(
                each.place,
                "this check stands here twice",
                f"it is {first.path} already: remove one",
            )


def flush(draft: Draft, report: Report) -> None:
    if draft.flush.own and draft.flush.value and draft.on_failure.value is OnFailure.QUIESCE:
        report.add(
            draft.place_of(draft.flush),
            "flush has no meaning with on-failure: quiesce, which lets connections live on",
            "remove it, or use on-failure: remove",
        )


def needs_port(check: CheckDraft) -> bool:
    """Icmp has none, and a program may do without."""
    return check.asks_class() not in {Icmp, Exec}


def via_problem(draft: Draft, check: CheckDraft) -> tuple[str, str] | None:
    """Why a check cannot go to the service address through the server, and what to do."""
    if not check.via_vip.value or draft.forwarding.bad:
        return None
    if check.type.value != "tcp" or any(value.given for value in check.told.values()):
        what = "send and expect" if check.type.value == "tcp" else f"type {check.type.value}"
        return (
            f"via vip is for a connection only, without {what}",
            "add a check {type: tcp, via: vip}",
        )
    if draft.fwmark.given:
        return "a fwmark service does not say which address to ask via", "write via: server"
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
                f"with {forwarding.value} no server has the service address to ask via",
                "write via: server, or use forwarding: gatewaying",
            )


def _times(draft: Draft, check: CheckDraft, report: Report) -> None:
    if check.interval.bad or check.timeout.value is None:
        return
    timeout, interval = check.timeout.value, check.interval.value
    if timeout >= interval:
        report.add(
            draft.place_of(check.timeout, check.interval),
            f"timeout {show_duration(timeout)} is not shorter than "
            f"interval {show_duration(interval)}",
            "a check ends before the next begins",
        )


def _type(draft: Draft, check: CheckDraft, report: Report) -> None:
    told = {key: value for key, value in check.told.items() if value.value is not None}
    where = draft.place_of(check.type) if check.place is None else check.place
    if check.type.value == "exec" and "command" not in check.told:
        report.add(
            where, "a check of type exec needs a command", "add command: [/PATH/PROGRAM, ARGUMENT]"
        )
    if check.type.value == "dns" and "query" not in told:
        for name in ("record", "expect"):
            if name in told:
                report.add(
                    draft.place_of(told[name]),
                    f"{name} has no meaning without query",
                    "add query: NAME, or remove it: without query any answer passes",
                )
    if "tls" in told and "starttls" in told:
        report.add(
            draft.place_of(told["starttls"], told["tls"]),
            "tls and starttls exclude each other",
            "tls is from the beginning, starttls by that command: remove one",
        )
    if "body" in told and "method" in told and told["method"].value == "HEAD":
        report.add(
            draft.place_of(told["body"], told["method"]),
            "the answer to HEAD has no body",
            "remove body, or use method: GET",
        )
    if check.asks_class() is Icmp and check.port.own:
        report.add(draft.place_of(check.port), "icmp has no port", "remove it")


def _port(draft: Draft, check: CheckDraft, report: Report) -> None:
    if (
        check.port.given
        or not needs_port(check)
        or draft.placed_ports.bad
        or not (draft.placed_ports.given or draft.fwmark.given)
        or (draft.address.given and draft.fwmark.given)  # which it is must be said first
    ):
        return
    protocols = protocols_of(check.asks_class())
    if draft.ports_of(protocols):
        return
    place = draft.place_of(draft.check.section) if check.place is None else check.place
    hint = f"add port: NUMBER to the check, {_NONE}"
    protocol = "udp" if Protocol.UDP in protocols else "tcp"
    if draft.fwmark.given:
        report.add(place, "a fwmark service does not say which port to check", hint)
    elif any(port.number == 0 for port in draft.ports):
        report.add(place, "port 0 does not say which port to check", hint)
    elif draft.check.section.own:
        report.add(
            place,
            f"a check of type {check.type.value} needs a {protocol} port, and there is none",
            hint,
        )


def _what(check: CheckDraft) -> Any:
    told = {key: value.value for key, value in check.told.items() if value.given}
    return check.type.value, tuple(sorted(told.items())), check.port.value, check.via_vip.value
