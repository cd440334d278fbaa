"""Text of `why` and `events`, and formats of times, counts and addresses.

Pure. `now` is the wall clock in seconds; times in an answer are ISO 8601 texts.
"""

from datetime import datetime

from xenlb.cli.options import Answer


def guest_report(answer: Answer, now: float) -> str:
    """Return the text of `why`: a guest, its servers and its events."""
    lines = [
        f"{answer['guest']}  {answer['uuid']}  {answer['uri']}",
        f"  {answer['phase']} for {age(answer['since'], now)}"
        + (f", domain id {answer['domain_id']}" if answer.get("domain_id") is not None else ""),
    ]
    if request := answer.get("request"):
        lines.append(
            f"  {request['asked_for']} requested {age(request['at'], now)} ago;"
            f" back in service in {until(request['until'], now)} unless it goes"
        )
    if drain := answer.get("drain"):
        lines.append(f"  out of service for {age(drain['since'], now)}: {_drain(drain, now)}")
        lines += [f"  {warning}" for warning in drain["warnings"]]
    if drain := answer.get("last_drain"):
        lines.append(f"  last out of service {age(drain['since'], now)} ago: {_drain(drain, now)}")
    lines += [f"  address {a['address']}: {a['source']}" for a in answer.get("addresses", ())]
    lines += [
        f"  address {refused['address']} refused: {refused['reason']} ({refused['source']})"
        for refused in answer.get("refused_addresses", ())
    ]
    lines += [f"  metadata: {problem}" for problem in answer.get("metadata_problems", ())]
    lines += [
        f"  inside, for service {verdict['service']}: {verdict['problem']}"
        for verdict in answer.get("inside", ())
        if verdict["problem"]
    ]
    servers = answer.get("servers", ())
    lines += ["", "servers" if servers else "in no service"]
    for server in servers:
        place = endpoint(server) if server["address"] else "-"
        weight = f"weight {server['weight']} of {server['configured_weight']}"
        left = f", {until(server['deadline'], now)} left" if server["deadline"] else ""
        lines.append(
            f"  {server['service']}  {place}  {server['phase']}"
            f"  {weight if server['in_table'] else 'not in the table'}: {server['reason']}{left}"
        )
        for check in server.get("checks", ()):
            lines += _check(check, now)
    if events := answer.get("events"):
        lines += ["", "events", *(f"  {event(entry)}" for entry in events)]
    return "\n".join(lines)


def _check(check: Answer, now: float) -> list[str]:
    """Return `check http 10.0.0.11:80  up for 3m: status 200`, and below it the changes."""
    parts = [
        f"{check['health']}{lasting(check['since'], now)}: {check['detail'] or 'no result yet'}"
    ]
    if check["share"] is not None:
        parts.append(f"{check['share'] * 100:.3g}% of the weight")
    if check["deadline"]:
        left = until(check["deadline"], now)
        parts.append(f"failed {check['failures']} times in a row, damped for {left}")
    return [
        f"    check {check['check']}  {'; '.join(parts)}",
        *(
            f"      {clock(change['at'])} {change['health']}: {change['detail']}"
            for change in check["changes"]
        ),
    ]


def _drain(drain: Answer, now: float) -> str:
    """Return `drained by root, empty after 12s, then undrained`."""
    parts = [f"{drain['reason']} by {drain['by']}" if drain["by"] else drain["reason"]]
    if drain["over"]:
        duration = datetime.fromisoformat(drain["over"]) - datetime.fromisoformat(drain["since"])
        outcome = "timed out" if drain["outcome"] == "deadline" else drain["outcome"]
        parts.append(f"{outcome} after {_rounded(duration.total_seconds())}")
    elif drain["deadline"]:
        parts.append(f"{until(drain['deadline'], now)} left")
    if left := drain["connections_left"]:
        parts.append(f"{count(left, 'connection')} left")
    if drain["failure"]:
        parts.append(f"libvirt refuses: {drain['failure']}")
    if drain["end"] not in {None, drain["outcome"]}:
        parts.append(f"then {drain['end']}")
    return ", ".join(parts)


def count(number: int, noun: str) -> str:
    """Return `1 server`, `2 servers`."""
    return f"{number} {noun}{'s' * (number != 1)}"


def event(entry: Answer) -> str:
    """Return one line of the agent's journal, in local time."""
    guest = f"{entry['guest']}: " if entry.get("guest") else ""
    return f"{clock(entry['time'])} {guest}{entry['text']}"


def clock(time: str) -> str:
    """Return `01-31 23:59:59.123`, in local time."""
    at = datetime.fromisoformat(time).astimezone()
    return f"{at:%m-%d %H:%M:%S}.{at.microsecond // 1000:03}"


def age(since: str | None, now: float) -> str:
    """Return the time since then, roughly: 12s, 3m, 5h, 4d; `-` for None."""
    if since is None:
        return "-"
    return _rounded(now - datetime.fromisoformat(since).timestamp())


def lasting(since: str | None, now: float) -> str:
    """Return ` for 3m`, or "" for None."""
    return f" for {age(since, now)}" if since else ""


def until(then: str, now: float) -> str:
    """Return the time from now to then, roughly."""
    return _rounded(datetime.fromisoformat(then).timestamp() - now)


def _rounded(seconds: float) -> str:
    whole = max(0, round(seconds))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if whole >= 2 * size:
            return f"{whole // size}{unit}"
    return f"{whole}s"


def endpoint(server: Answer) -> str:
    """Return `10.0.0.11:80`, `[2001:db8::5]:80`."""
    return f"{host(server['address'])}:{server['port']}"


def host(address: str) -> str:
    """Return an address as it stands before a port: IPv6 in brackets."""
    return f"[{address}]" if ":" in address else address
