"""How `status` and `why` look: the agent's answer as lines of text, within 80 columns.

Pure: no terminal, no colours (terminal.py), the time is an argument.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

Answer = Mapping[str, Any]

HEADER = ("guest", "address", "phase", "weight", "act", "inact", "health", "since")
NUMBERS = {3, 4, 5}
GUEST_WIDTH = 18


def text(answer: Answer, now: float) -> str:
    """The whole table; `now` is the wall clock, in seconds."""
    lines = head(answer, now)
    services = answer["services"]
    tables = [[row(server, service, now) for server in service["servers"]] for service in services]
    rows = [HEADER, *(cells for table in tables for cells in table)]
    widths = [max(len(cells[n]) for cells in rows) for n in range(len(HEADER))]
    for service, table in zip(services, tables, strict=True):
        lines += ["", title(service)]
        if service.get("alarm"):
            lines.append(f"  ALARM: {service['alarm']}")
        if table:
            lines.append("  " + _line(HEADER, widths))
        for server, cells in zip(service["servers"], table, strict=True):
            lines.append("  " + _line(cells, widths))
            if said := note(server, now):
                lines.append(f"    {said}")
    return "\n".join(lines)


def head(answer: Answer, now: float) -> list[str]:
    """The agent itself: is it in step, what does it hear, does it like its configuration?"""
    synced = "in step" if answer["synced"] else "not everything was listed yet: nothing is removed"
    lines = [
        f"xenlb {answer['version']}, pid {answer['pid']},"
        f" up {age(answer['started'], now)}: {synced}"
    ]
    if answer.get("kernel"):
        lines.append(f"THE KERNEL'S TABLE IS OUT OF REACH: {answer['kernel']}")
    for libvirt in answer["libvirt"]:
        state = "connected" if libvirt["connected"] else "NOT CONNECTED"
        why = f": {libvirt['reason']}" if libvirt.get("reason") else ""
        since = f" for {age(libvirt['since'], now)}" if libvirt.get("since") else ""
        lines.append(f"libvirt {libvirt['uri'] or '(default)'} {state}{since}{why}")
    config = answer["config"]
    if config["problems"]:
        since = config.get("last_good_since")  # it was read from disk, after a restart
        of = f" (in use since {since})" if since else ""
        lines.append(f"{config['file']} HAS PROBLEMS, the last good one{of} is in use:")
        lines += [f"  {problem}" for problem in config["problems"]]
    lines += [f"ADDRESSES: {said}" for said in answer.get("director", {}).get("problems", ())]
    return lines


def title(service: Answer) -> str:
    """`mail  192.0.2.10:25/tcp  lblc  gatewaying  1 foreign server`"""
    if service["fwmark"] is None:
        address = f"{_host(service['address'])}:{service['port']}/{service['protocol']}"
    else:
        address = f"fwmark {service['fwmark']}"
        if service.get("family") == "inet6":
            address += " inet6"
    parts = [service["name"], address, service["scheduler"], service["forwarding"]]
    if count := service["foreign_servers"]:
        parts.append(f"{count} foreign server{'s' * (count != 1)}")
    if not service.get("in_table", True):
        parts.append("NOT IN THE TABLE")
    if service.get("reason"):
        parts.append(service["reason"])
    if not service["servers"]:
        parts.append("no servers")
    return "  ".join(parts)


def row(server: Answer, service: Answer, now: float) -> tuple[str, ...]:
    """The cells of one server, in the order of HEADER."""
    guest = str(server["guest"] or "(host)")
    address = _host(server["address"]) if server["address"] else "-"
    if server["address"] and server["port"] != service["port"]:
        address += f":{server['port']}"
    weight, configured = server["weight"], server["configured_weight"]
    return (
        guest if len(guest) <= GUEST_WIDTH else guest[: GUEST_WIDTH - 1] + "…",
        address,
        server["phase"],
        "-"
        if not server["in_table"]
        else str(weight)
        if weight == configured
        else f"{weight}/{configured}",
        str(server["active_connections"]) if server["in_table"] else "-",
        str(server["inactive_connections"]) if server["in_table"] else "-",
        server["health"],
        age(server["since"], now),
    )


def note(server: Answer, now: float) -> str:
    """Why a server is not simply serving, "" where there is nothing to say."""
    if server["phase"] == "serving" and server["health"] == "up":
        plain = server["weight"] == server["configured_weight"]
    else:
        plain = server["phase"] == "absent" and server["reason"] == "not running"
    if plain:
        return ""
    left = f", {until(server['deadline'], now)} left" if server["deadline"] else ""
    return f"{server['reason']}{left}"


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
        place = f"{_host(server['address'])}:{server['port']}" if server["address"] else "-"
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


def connections(count: int) -> str:
    """`1 connection`, `2 connections`"""
    return f"{count} connection{'s' * (count != 1)}"


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


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(
        f"{cell:>{width}}" if n in NUMBERS else f"{cell:<{width}}"
        for n, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ).rstrip()
