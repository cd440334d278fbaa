"""How `status` looks: the agent's answer as lines of styled text, the same for terminal and pipe.

Pure: the time, the width and whether there are colours are arguments (status_terminal.py,
status.py).
"""

import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from xenlb.cli.format import Answer, age, count, host, until

HEADER = ("guest", "address", "phase", "weight", "act", "inact", "health", "since")
NUMBERS = {3, 4, 5}
# The columns that a narrow terminal goes without, in this order; the address always stays.
DISPENSABLE = (5, 7, 6, 4, 3)
GUEST_WIDTH = 18  # of a terminal; a pipe gets whole names
LEAST_GUEST_WIDTH = 8
MOST = 5  # operations that are shown
PHASES = ("serving", "starting", "draining", "paused", "failed", "absent")

ALARM = "alarm"
STYLES: dict[str, dict[str, Any]] = {  # as click.style() takes them
    ALARM: {"fg": "red", "bold": True},
    "trouble": {"fg": "red"},
    "title": {"bold": True},
    "dim": {"dim": True},
    "note": {"fg": "yellow"},
    "serving": {"fg": "green"},
    "starting": {"fg": "cyan"},
    "draining": {"fg": "yellow"},
    "paused": {"fg": "yellow"},
    "failed": {"fg": "red"},
    "absent": {"dim": True},
    "up": {"fg": "green"},
    "down": {"fg": "red"},
    "unknown": {"dim": True},
}

Line = tuple[tuple[str, str], ...]  # texts, each with its style or ""


def lines(
    answer: Answer, now: float, *, width: int | None = None, only_trouble: bool = False
) -> list[Line]:
    """The whole status. `now` is the wall clock in seconds. `width` None: as wide as it gets.
    `only_trouble`: of the services and servers, those that need attention."""
    page = _Page(width=width)
    _head(page, answer, now)
    page.add(totals(answer))
    shown = []
    for service in answer["services"]:
        servers = [s for s in service["servers"] if not only_trouble or note(s, now)]
        remarks = _remarks(service, now)
        if servers or remarks or not only_trouble:
            rows = [(server, _row(server, service, now)) for server in servers]
            shown.append((service, remarks, rows))
    cells = [row for _, _, rows in shown for _, row in rows]
    columns, widths = _columns(cells, width)
    for service, remarks, rows in shown:
        page.add("")
        page.add(title(service), "title")
        for text, style in remarks:
            page.add(text, style, indent=2)
        if (names := service.get("unverified")) and not only_trouble:
            page.add(_unverified(names), "dim", indent=2)
        if rows:
            page.lines.append(_line(HEADER, columns, widths, "dim"))
        for server, row in rows:
            page.lines.append(_line(row, columns, widths))
            if text := note(server, now):
                page.add(text, "note", indent=4)
    return page.lines


def plain(page: Iterable[Line]) -> str:
    return "\n".join("".join(text for text, _ in line).rstrip() for line in page)


@dataclass(slots=True, kw_only=True)
class _Page:
    width: int | None
    lines: list[Line] = field(default_factory=list)

    def add(self, text: str, style: str = "", *, indent: int = 0) -> None:
        """A text; what does not fit goes on in the next line, further in."""
        for part in fold(text, self.width, indent=indent):
            self.lines.append(((part, style),))


def fold(text: str, width: int | None, *, indent: int = 0) -> list[str]:
    if width is None or len(text) + indent <= width or not text:
        return [" " * indent + text]
    return textwrap.wrap(
        text,
        max(width, indent + 20),
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent + 2),
        break_on_hyphens=False,
    )


# --- the agent itself ----------------------------------------------------------------------------


def _head(page: _Page, answer: Answer, now: float) -> None:
    page.add(
        f"xenlb {answer['version']}, pid {answer['pid']},"
        f" up {age(answer['started'], now)}: {state(answer)}"
    )
    for alarm in answer.get("alarms", ()):
        since = f" for {age(alarm['since'], now)}" if alarm.get("since") else ""
        page.add(f"ALARM {alarm['service']} {alarm['address']}{since}: {alarm['text']}", ALARM)
    if answer.get("kernel"):
        page.add(f"THE KERNEL'S TABLE IS OUT OF REACH: {answer['kernel']}", "trouble")
    differences = answer.get("differences", ())
    for operation in differences[:MOST]:
        page.add(f"REPAIRED NOW: {operation}", "trouble")
    if len(differences) > MOST:
        page.add(f"REPAIRED NOW: {len(differences) - MOST} more", "trouble")
    for no in answer.get("refused", ())[:MOST]:
        page.add(f"REFUSED BY THE KERNEL: {no['operation']}: {no['reason']}", "trouble")
    for libvirt in answer["libvirt"]:
        connected = libvirt["connected"]
        why = f": {libvirt['reason']}" if libvirt.get("reason") else ""
        since = f" for {age(libvirt['since'], now)}" if libvirt.get("since") else ""
        page.add(
            f"libvirt {libvirt['uri'] or '(default)'}"
            f" {'connected' if connected else 'NOT CONNECTED'}{since}{why}",
            "" if connected else "trouble",
        )
    config = answer["config"]
    if config["problems"]:
        since = config.get("last_good_since")  # it was read from disk, after a restart
        of = f" (in use since {since})" if since else ""
        page.add(f"{config['file']} HAS PROBLEMS, the last good one{of} is in use:", "trouble")
        for problem in config["problems"]:
            page.add(problem, "trouble", indent=2)
    for text in answer.get("warnings", ()):
        page.add(f"warning: {text}", "note")
    for text in answer.get("director", {}).get("problems", ()):
        page.add(f"DIRECTOR: {text}", "trouble")


def state(answer: Answer) -> str:
    """`in step`, or what is not."""
    if answer.get("kernel"):
        return "the table cannot be read"
    if not answer["synced"]:
        return (
            "starting: waiting for the first list of guests; until then nothing is removed from"
            " the table"
        )
    found, refused = len(answer.get("differences", ())), len(answer.get("refused", ()))
    parts = []
    if refused:
        parts.append(f"NOT IN STEP: {count(refused, 'operation')} refused by the kernel")
    if found:
        was = "" if refused else "WAS NOT IN STEP: "
        parts.append(f"{was}{count(found, 'difference')} found and repaired")
    parts = parts or ["in step"]
    if alarms := len(answer.get("alarms", ())):
        parts.append(count(alarms, "ALARM"))
    if foreign := sum(service["foreign_servers"] for service in answer["services"]):
        parts.append(count(foreign, "foreign server"))
    return ", ".join(parts)


def totals(answer: Answer) -> str:
    """`2 services, 12 servers: 10 serving, 1 draining, 1 failed; 120 active connections`"""
    servers = [server for service in answer["services"] for server in service["servers"]]
    phases = Counter(server["phase"] for server in servers)
    parts = [f"{phases[phase]} {phase}" for phase in PHASES if phases[phase]]
    active = sum(server["active_connections"] for server in servers)
    by_phase = f": {', '.join(parts)}; {count(active, 'active connection')}" if servers else ""
    services = len(answer["services"])
    return f"{count(services, 'service')}, {count(len(servers), 'server')}{by_phase}"


# --- a service -----------------------------------------------------------------------------------


def title(service: Answer) -> str:
    """`mail  192.0.2.10:25/tcp  lblc  gatewaying  1 foreign server`"""
    parts = [service["name"], place(service), service["scheduler"], service["forwarding"]]
    if foreign := service["foreign_servers"]:
        parts.append(count(foreign, "foreign server"))
    if not service.get("in_table", True):
        parts.append("NOT IN THE TABLE")
    if not service["servers"]:
        parts.append("no servers")
    return "  ".join(parts)


def place(service: Answer) -> str:
    """`192.0.2.10:25/tcp`, `fwmark 7 inet6`"""
    if service["fwmark"] is None:
        return f"{host(service['address'])}:{service['port']}/{service['protocol']}"
    family = " inet6" if service.get("family") == "inet6" else ""
    return f"fwmark {service['fwmark']}{family}"


def _remarks(service: Answer, now: float) -> list[tuple[str, str]]:
    """What is said of a service above its servers, each with its style."""
    said = []
    if service.get("alarm"):
        since = service.get("alarm_since")
        lasts = f" for {age(since, now)}" if since else ""
        said.append((f"ALARM{lasts}: {service['alarm']}", ALARM))
    if service.get("reason"):
        said.append((service["reason"], "trouble"))
    if (sorry := service.get("sorry_server")) and (said_of := _sorry(sorry)):
        said.append(said_of)
    for server in service.get("foreign", ()):
        where = f"{host(server['address'])}:{server['port']}"
        held = count(server["active_connections"], "connection")
        said.append(
            (
                f"foreign server {where}, weight {server['weight']}, {held};"
                f" to remove it: {server['remove']}",
                "note",
            )
        )
    return said


def _unverified(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return (
        f"not known to have the service address inside: {', '.join(names[:MOST])}{more}"
        " (check: {via: vip} or guest-side: {on-boot: verify} shows it)"
    )


def _sorry(server: Answer) -> tuple[str, str] | None:
    """None where it stands by, and nothing is wrong with it."""
    name = f"sorry server {host(server['address'])}:{server['port']}"
    if server["in_table"]:
        held = count(server["active_connections"], "connection")
        name += f", weight {server['weight']}, {held}"
    if server["health"] == "down":
        return f"{name}: its check fails: {server['detail']}", "trouble"
    if server["in_table"]:
        work = "takes new connections" if server["weight"] else "has connections left"
        return f"{name}: {work}; health {server['health']}", "note"
    return None


# --- servers -------------------------------------------------------------------------------------


def _columns(rows: Sequence[Sequence[str]], width: int | None) -> tuple[list[int], list[int]]:
    """Which columns are shown, and how wide each is."""
    columns = list(range(len(HEADER)))
    widths = [max(len(cells[n]) for cells in (HEADER, *rows)) for n in columns]
    if width is None:
        return columns, widths

    def excess() -> int:
        return 2 + sum(widths[n] for n in columns) + 2 * (len(columns) - 1) - width

    if width < 120:
        widths[0] = min(widths[0], GUEST_WIDTH)
    for column in DISPENSABLE:
        if excess() > 0:
            columns.remove(column)
    widths[0] = max(min(widths[0], LEAST_GUEST_WIDTH), widths[0] - max(0, excess()))
    return columns, widths


def _line(
    cells: Sequence[str], columns: Sequence[int], widths: Sequence[int], style: str = ""
) -> Line:
    """One line of the table. A cell that is a word of STYLES has its style."""
    parts = [("  ", "")]
    for n in columns:
        cell, width = cells[n], widths[n]
        shown = cell if len(cell) <= width else cell[: width - 1] + "…"
        styled = (shown, style or (cell if cell in STYLES else ""))
        gap = " " * (width - len(shown))
        parts += [(gap, ""), styled, ("  ", "")] if n in NUMBERS else [styled, (gap + "  ", "")]
    while not parts[-1][0].strip():
        parts.pop()
    return tuple(parts)


def _row(server: Answer, service: Answer, now: float) -> tuple[str, ...]:
    """The cells of one server, in the order of HEADER."""
    address = host(server["address"]) if server["address"] else "-"
    if server["address"] and server["port"] != service["port"]:
        address += f":{server['port']}"
    weight, configured = server["weight"], server["configured_weight"]
    there = server["in_table"]
    shown = str(weight) if weight == configured else f"{weight}/{configured}"
    return (
        str(server["guest"] or "(host)"),
        address,
        server["phase"],
        shown if there else "-",
        str(server["active_connections"]) if there else "-",
        str(server["inactive_connections"]) if there else "-",
        server["health"],
        age(server["since"], now),
    )


def note(server: Answer, now: float) -> str:
    """Why a server is not simply serving, "" where there is nothing to say."""
    if server["phase"] == "serving" and server["health"] == "up":
        plain = 0 < server["weight"] == server["configured_weight"]
    else:
        plain = server["phase"] == "absent" and server["reason"] == "not running"
    if plain:
        return ""
    return reason(server, now)


def reason(server: Answer, now: float) -> str:
    """Its reason, and what comes when its time is up."""
    if not server["deadline"]:
        return str(server["reason"])
    left = until(server["deadline"], now)
    then: Any = server.get("deadline_means")
    return f"{server['reason']}; " + (f"{then} in {left}" if then else f"{left} left")
