"""How `why` and `events` look, and what all answers have in common: times, counts, addresses.

Pure: no terminal, no colours, the time is an argument. `status` is in status_lines.py.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

Answer = Mapping[str, Any]


def why(answer: Answer, now: float) -> str:
    """The answer of `why`: the guest, its servers, its journal."""
    lines = [
        f"{answer['guest']}  {answer['uuid']}  {answer['uri']}",
        f"  {answer['phase']} for {age(answer['since'], now)}"
        + (f", domain id {answer['domain_id']}" if answer.get("domain_id") is not None else ""),
    ]
    if request := answer.get("request"):
        lines.append(
            f"  asked for {request['asked_for']} {age(request['at'], now)} ago;"
            f" back into service in {until(request['until'], now)} if it stays"
        )
    if drain := answer.get("drain"):
        lines.append(f"  out of service for {age(drain['since'], now)}: {_drain(drain, now)}")
        lines += [f"  {warning}" for warning in drain["warnings"]]
    if last := answer.get("last_drain"):
        lines.append(f"  last out of service {age(last['since'], now)} ago: {_drain(last, now)}")
    lines += [f"  address {a['address']}: {a['source']}" for a in answer.get("addresses", ())]
    lines += [
        f"  address {no['address']} refused: {no['reason']} ({no['source']})"
        for no in answer.get("refused_addresses", ())
    ]
    lines += [f"  metadata: {problem}" for problem in answer.get("metadata_problems", ())]
    lines += [
        f"  inside, for {found['service']}: {found['problem']}"
        for found in answer.get("inside", ())
        if found["problem"]
    ]
    servers = answer.get("servers", ())
    lines += ["", "servers" if servers else "in no service"]
    for server in servers:
        place = f"{host(server['address'])}:{server['port']}" if server["address"] else "-"
        weight = (
            f"weight {server['weight']} of {server['configured_weight']}"
            if server["in_table"]
            else "not in the table"
        )
        left = f", {until(server['deadline'], now)} left" if server["deadline"] else ""
        lines.append(
            f"  {server['service']}  {place}  {server['phase']}  {weight}: {server['reason']}{left}"
        )
        for each in server.get("checks", ()):
            lines += check(each, now)
    if events := answer.get("events"):
        lines += ["", "what happened", *(f"  {event(entry)}" for entry in events)]
    return "\n".join(lines)


def check(said: Answer, now: float) -> list[str]:
    """`check http 10.0.0.11:80  up for 3m: status 200`, and below it how it came to that."""
    since = f" for {age(said['since'], now)}" if said["since"] else ""
    parts = [f"{said['health']}{since}: {said['detail'] or 'has not answered yet'}"]
    if said["share"] is not None:
        parts.append(f"{said['share'] * 100:.3g}% of the weight")
    if said["deadline"]:
        times = f"down {said['failures']} times in a row"
        parts.append(f"{times}, held back for {until(said['deadline'], now)}")
    return [
        f"    check {said['check']}  {'; '.join(parts)}",
        *(
            f"      {clock(change['at'])} {change['health']}: {change['detail']}"
            for change in said["changes"]
        ),
    ]


def _drain(drain: Answer, now: float) -> str:
    """`drained by root, empty after 12s, then undrained`"""
    parts = [f"{drain['reason']} by {drain['by']}" if drain["by"] else drain["reason"]]
    if drain["over"]:
        took = datetime.fromisoformat(drain["over"]) - datetime.fromisoformat(drain["since"])
        parts.append(f"{drain['outcome']} after {_length(took.total_seconds())}")
    elif drain["deadline"]:
        parts.append(f"{until(drain['deadline'], now)} left")
    if left := drain["connections_left"]:
        parts.append(f"{connections(left)} left")
    if drain["failure"]:
        parts.append(f"libvirt refuses: {drain['failure']}")
    if drain["end"] not in {None, drain["outcome"]}:
        parts.append(f"then {drain['end']}")
    return ", ".join(parts)


def connections(number: int) -> str:
    """`1 connection`, `2 connections`"""
    return count(number, "connection")


def count(number: int, thing: str) -> str:
    """`1 server`, `2 servers`"""
    return f"{number} {thing}{'s' * (number != 1)}"


def event(entry: Answer) -> str:
    """One line of the agent's journal, in local time."""
    guest = f"{entry['guest']}: " if entry.get("guest") else ""
    return f"{clock(entry['time'])} {guest}{entry['text']}"


def clock(time: str) -> str:
    at = datetime.fromisoformat(time).astimezone()
    return f"{at:%m-%d %H:%M:%S}.{at.microsecond // 1000:03}"


def age(since: str | None, now: float) -> str:
    """How long ago, roughly: 12s, 3m, 5h, 4d."""
    if since is None:
        return "-"
    return _length(now - datetime.fromisoformat(since).timestamp())


def until(then: str, now: float) -> str:
    return _length(datetime.fromisoformat(then).timestamp() - now)


def _length(seconds: float) -> str:
    whole = max(0, round(seconds))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if whole >= 2 * size:
            return f"{whole // size}{unit}"
    return f"{whole}s"


def host(address: str) -> str:
    return f"[{address}]" if ":" in address else address
