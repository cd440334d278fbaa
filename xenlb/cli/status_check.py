"""`status --check`: one line and the exit status of a Nagios plugin, made of the agent's answer.

Pure. CRITICAL: clients may get no answer. WARNING: something needs an operator. UNKNOWN: nothing
could be learnt.
"""

from collections import Counter

from xenlb.cli.format import Answer
from xenlb.cli.status_lines import MOST, PHASES, totals
from xenlb.control.protocol import UNREACHABLE, ControlError

OK, WARNING, CRITICAL, UNKNOWN = range(4)
WORDS = ("OK", "WARNING", "CRITICAL", "UNKNOWN")


def verdict(answer: Answer) -> tuple[int, str]:
    """The exit status, and the line."""
    critical = [
        f"{alarm['service']} {alarm['address']}: {alarm['text']}"
        for alarm in answer["alarms"]
        if alarm["kind"] == "down"
    ]
    if answer["kernel"]:
        critical.append(str(answer["kernel"]))
    warnings = [
        f"{alarm['service']} {alarm['address']}: {alarm['text']}"
        for alarm in answer["alarms"]
        if alarm["kind"] != "down"
    ]
    warnings += [
        f"{service['name']}: {server['guest'] or server['address']} failed: {server['reason']}"
        for service in answer["services"]
        for server in service["servers"]
        if server["phase"] == "failed"
    ]
    foreign = [server for service in answer["services"] for server in service["foreign"]]
    warnings += [
        f"libvirt {libvirt['uri']} is not connected"
        for libvirt in answer["libvirt"]
        if not libvirt["connected"]
    ]
    for items, one, many in (
        (answer["refused"], "operation is refused", "operations are refused"),
        (answer["differences"], "difference in the table", "differences in the table"),
        (foreign, "foreign server", "foreign servers"),
        (
            answer["config"]["problems"],
            "problem in the configuration",
            "problems in the configuration",
        ),
        (answer["director"]["problems"], "problem of the director", "problems of the director"),
    ):
        if items:
            warnings.append(f"{len(items)} {one if len(items) == 1 else many}")
    status = CRITICAL if critical else WARNING if warnings else OK
    found = critical + warnings
    more = [f"{len(found) - MOST} more"] if len(found) > MOST else []
    return status, _line(status, "; ".join(found[:MOST] + more) or totals(answer)) + _data(answer)


def failed(error: ControlError) -> tuple[int, str]:
    """An agent that is away is what is watched for; anything else is not known."""
    status = CRITICAL if error.status == UNREACHABLE else UNKNOWN
    return status, _line(status, error.message)


def _line(status: int, text: str) -> str:
    return f"XENLB {WORDS[status]} - {text.replace('|', '/')}"


def _data(answer: Answer) -> str:
    """Performance data, behind a bar."""
    servers = [server for service in answer["services"] for server in service["servers"]]
    phases = Counter(server["phase"] for server in servers)
    active = sum(server["active_connections"] for server in servers)
    numbers = [f"{phase}={phases[phase]}" for phase in PHASES]
    return f" | {' '.join(numbers)} active_connections={active}"
