"""`status --check`: one line and the exit status of a Nagios plugin, from the agent's answer.

Pure. CRITICAL: clients may get no answer. WARNING: an operator is needed. UNKNOWN: the state could
not be read.
"""

from collections import Counter

from xenlb.cli.format import count
from xenlb.cli.options import Answer
from xenlb.cli.status_lines import MOST, PHASES, totals
from xenlb.control.protocol import UNREACHABLE, ControlError

OK, WARNING, CRITICAL, UNKNOWN = range(4)
LEVELS = ("OK", "WARNING", "CRITICAL", "UNKNOWN")


def evaluate(answer: Answer) -> tuple[int, str]:
    """Return the exit status and the line."""
    critical: list[str] = []
    warnings: list[str] = []
    for alarm in answer["alarms"]:
        text = f"{alarm['service']} {alarm['address']}: {alarm['text']}"
        (critical if alarm["kind"] == "down" else warnings).append(text)
    if answer["kernel"]:
        critical.append(str(answer["kernel"]))
    warnings += [
        f"{service['name']}: {server['guest'] or server['address']} failed: {server['reason']}"
        for service in answer["services"]
        for server in service["servers"]
        if server["phase"] == "failed"
    ]
    warnings += [
        f"libvirt {libvirt['uri'] or '(default URI)'} is not connected"
        for libvirt in answer["libvirt"]
        if not libvirt["connected"]
    ]
    foreign = sum(len(service["foreign"]) for service in answer["services"])
    for number, noun, where in (
        (len(answer["refused"]), "operation", " refused by the kernel"),
        (len(answer["differences"]), "difference", " in the table"),
        (foreign, "foreign server", ""),
        (len(answer["config"]["problems"]), "problem", " in the configuration"),
        (len(answer["director"]["problems"]), "problem", " of the director"),
    ):
        if number:
            warnings.append(f"{count(number, noun)}{where}")
    level = CRITICAL if critical else WARNING if warnings else OK
    problems = critical + warnings
    more = [f"{len(problems) - MOST} more"] if len(problems) > MOST else []
    text = "; ".join(problems[:MOST] + more) or totals(answer)
    return level, _line(level, text) + _performance_data(answer)


def evaluate_error(error: ControlError) -> tuple[int, str]:
    """Return the same for a request that failed. An agent that cannot be reached is critical."""
    level = CRITICAL if error.status == UNREACHABLE else UNKNOWN
    return level, _line(level, error.message)


def _line(level: int, text: str) -> str:
    return f"XENLB {LEVELS[level]} - {text.replace('|', '/')}"


def _performance_data(answer: Answer) -> str:
    servers = [server for service in answer["services"] for server in service["servers"]]
    phases = Counter(server["phase"] for server in servers)
    active = sum(server["active_connections"] for server in servers)
    numbers = [f"{phase}={phases[phase]}" for phase in PHASES]
    return f" | {' '.join(numbers)} active_connections={active}"
