"""The table of `status`: lines of styled text, the same for a terminal and a pipe.

Pure: `now` is the wall clock in seconds, `width` the columns of the terminal.
"""

import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from xenlb.cli.format import age, count, endpoint, host, lasting, until
from xenlb.cli.options import Answer

HEADER = ("guest", "address", "phase", "weight", "act", "inact", "health", "since")
NUMBERS = {3, 4, 5}
# The columns that a narrow terminal goes without, in this order; the address always stays.
DISPENSABLE = (5, 7, 6, 4, 3)
GUEST_WIDTH = 18  # on a terminal; a pipe gets whole names
LEAST_GUEST_WIDTH = 8
MOST = 5  # operations or names that are listed
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


def status_page(
    answer: Answer, now: float, *, width: int | None = None, only_trouble: bool = False
) -> list[Line]:
    """Return the whole status; with width None no line is folded or cut.

    `only_trouble`: only those services and servers that need attention.
    """
    page: list[Line] = []

    def add(text: str, style: str = "", indent: int = 0) -> None:
        page.extend(((part, style),) for part in fold(text, width, indent=indent))

    for text, style, indent in _header(answer, now):
        add(text, style, indent)
    services = []
    for service in answer["services"]:
        servers = [s for s in service["servers"] if not only_trouble or server_note(s, now)]
        notes = _service_notes(service, now)
        if servers or notes or not only_trouble:
            services.append((service, notes, [(s, _cells(s, service, now)) for s in servers]))
    columns, widths = _fit_columns([cells for _, _, rows in services for _, cells in rows], width)
    for service, notes, rows in services:
        add("")
        add(service_title(service), "title")
        for text, style in notes:
            add(text, style, indent=2)
        if (names := service.get("unverified")) and not only_trouble:
            add(_unverified(names), "dim", indent=2)
        if rows:
            page.append(_table_line(HEADER, columns, widths, "dim"))
        for server, cells in rows:
            page.append(_table_line(cells, columns, widths))
            if text := server_note(server, now):
                add(text, "note", indent=4)
    return page


def plain_text(page: Iterable[Line]) -> str:
    """Return a page without styles."""
    return "\n".join("".join(text for text, _ in line).rstrip() for line in page)


def fold(text: str, width: int | None, *, indent: int = 0) -> list[str]:
    """Return an indented text as lines of at most `width` columns."""
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


def _header(answer: Answer, now: float) -> Iterator[tuple[str, str, int]]:
    """Yield the texts above the services, each with its style and indent."""
    yield (
        f"xenlb {answer['version']}, pid {answer['pid']},"
        f" up {age(answer['started'], now)}: {agent_state(answer)}",
        "",
        0,
    )
    for alarm in answer.get("alarms", ()):
        since = lasting(alarm.get("since"), now)
        yield f"ALARM {alarm['service']} {alarm['address']}{since}: {alarm['text']}", ALARM, 0
    trouble = []
    if answer.get("kernel"):
        trouble.append(f"KERNEL TABLE UNREADABLE: {answer['kernel']}")
    differences = answer.get("differences", ())
    trouble += [f"REPAIRED NOW: {operation}" for operation in differences[:MOST]]
    if len(differences) > MOST:
        trouble.append(f"REPAIRED NOW: {len(differences) - MOST} more")
    trouble += [
        f"REFUSED BY THE KERNEL: {refused['operation']}: {refused['reason']}"
        for refused in answer.get("refused", ())[:MOST]
    ]
    for text in trouble:
        yield text, "trouble", 0
    for libvirt in answer["libvirt"]:
        connected = "connected" if libvirt["connected"] else "NOT CONNECTED"
        since = lasting(libvirt.get("since"), now)
        reason = f": {libvirt['reason']}" if libvirt.get("reason") else ""
        yield (
            f"libvirt {libvirt['uri'] or '(default URI)'} {connected}{since}{reason}",
            "" if libvirt["connected"] else "trouble",
            0,
        )
    config = answer["config"]
    if config["problems"]:
        since = config.get("last_good_since")  # after a restart, the copy on disk is in use
        used = f" (in use since {since})" if since else ""
        yield f"{config['file']} HAS PROBLEMS, the last good one{used} is in use:", "trouble", 0
    for problem in config["problems"]:
        yield problem, "trouble", 2
    for warning in answer.get("warnings", ()):
        yield f"warning: {warning}", "note", 0
    for problem in answer.get("director", {}).get("problems", ()):
        yield f"DIRECTOR: {problem}", "trouble", 0
    yield totals(answer), "", 0


def agent_state(answer: Answer) -> str:
    """Return `in step`, or how the kernel's table differed; with alarms and foreign servers."""
    if answer.get("kernel"):
        return "the table cannot be read"
    if not answer["synced"]:
        return (
            "starting: waiting for the first list of guests; until then nothing is removed from"
            " the table"
        )
    repaired, refused = len(answer.get("differences", ())), len(answer.get("refused", ()))
    parts = []
    if refused:
        parts.append(f"NOT IN STEP: {count(refused, 'operation')} refused by the kernel")
    if repaired:
        prefix = "" if refused else "WAS NOT IN STEP: "
        parts.append(f"{prefix}{count(repaired, 'difference')} found and repaired")
    parts = parts or ["in step"]
    if alarms := len(answer.get("alarms", ())):
        parts.append(count(alarms, "ALARM"))
    if foreign := sum(service["foreign_servers"] for service in answer["services"]):
        parts.append(count(foreign, "foreign server"))
    return ", ".join(parts)


def totals(answer: Answer) -> str:
    """Return `2 services, 12 servers: 10 serving, 1 draining, …; 120 active connections`."""
    servers = [server for service in answer["services"] for server in service["servers"]]
    phases = Counter(server["phase"] for server in servers)
    parts = [f"{phases[phase]} {phase}" for phase in PHASES if phases[phase]]
    active = sum(server["active_connections"] for server in servers)
    by_phase = f": {', '.join(parts)}; {count(active, 'active connection')}" if servers else ""
    return f"{count(len(answer['services']), 'service')}, {count(len(servers), 'server')}{by_phase}"


# --- a service -----------------------------------------------------------------------------------


def service_title(service: Answer) -> str:
    """Return `mail  192.0.2.10:25/tcp  lblc  gatewaying  1 foreign server`."""
    if service["fwmark"] is None:
        address = f"{endpoint(service)}/{service['protocol']}"
    else:
        family = " inet6" if service.get("family") == "inet6" else ""
        address = f"fwmark {service['fwmark']}{family}"
    parts = [service["name"], address, service["scheduler"], service["forwarding"]]
    if foreign := service["foreign_servers"]:
        parts.append(count(foreign, "foreign server"))
    if not service.get("in_table", True):
        parts.append("NOT IN THE TABLE")
    if not service["servers"]:
        parts.append("no servers")
    return "  ".join(parts)


def _service_notes(service: Answer, now: float) -> list[tuple[str, str]]:
    """Return the texts between a service's title and its servers, each with its style."""
    notes = []
    if service.get("alarm"):
        since = lasting(service.get("alarm_since"), now)
        notes.append((f"ALARM{since}: {service['alarm']}", ALARM))
    if service.get("reason"):
        notes.append((service["reason"], "trouble"))
    if sorry := service.get("sorry_server"):
        notes += _sorry_server_notes(sorry)
    notes += [
        (f"foreign server {_usage(server)}; to remove it: {server['remove']}", "note")
        for server in service.get("foreign", ())
    ]
    return notes


def _usage(server: Answer) -> str:
    """Return `10.0.0.99:25, weight 1, 3 connections`."""
    connections = count(server["active_connections"], "connection")
    return f"{endpoint(server)}, weight {server['weight']}, {connections}"


def _sorry_server_notes(server: Answer) -> list[tuple[str, str]]:
    """Return nothing for a sorry server that is not needed and whose check does not fail."""
    name = f"sorry server {_usage(server) if server['in_table'] else endpoint(server)}"
    if server["health"] == "down":
        return [(f"{name}: its check fails: {server['detail']}", "trouble")]
    if server["in_table"]:
        use = "takes new connections" if server["weight"] else "has connections left"
        return [(f"{name}: {use}; health {server['health']}", "note")]
    return []


def _unverified(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return (
        f"not verified that these have the service address: {', '.join(names[:MOST])}{more}"
        " (check: {via: vip} or guest-side: {on-boot: verify} does)"
    )


# --- servers -------------------------------------------------------------------------------------


def _fit_columns(rows: Sequence[Sequence[str]], width: int | None) -> tuple[list[int], list[int]]:
    """Return the columns that fit into `width`, and the width of every column."""
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


def _table_line(
    cells: Sequence[str], columns: Sequence[int], widths: Sequence[int], style: str = ""
) -> Line:
    """Return one line of the table. A cell that names a style of STYLES has it."""
    parts = [("  ", "")]
    for n in columns:
        cell, width = cells[n], widths[n]
        text = cell if len(cell) <= width else cell[: width - 1] + "…"
        styled = (text, style or (cell if cell in STYLES else ""))
        gap = " " * (width - len(text))
        parts += [(gap, ""), styled, ("  ", "")] if n in NUMBERS else [styled, (gap + "  ", "")]
    while not parts[-1][0].strip():
        parts.pop()
    return tuple(parts)


def _cells(server: Answer, service: Answer, now: float) -> tuple[str, ...]:
    """Return the cells of one server, in the order of HEADER."""
    address = host(server["address"]) if server["address"] else "-"
    if server["address"] and server["port"] != service["port"]:
        address = endpoint(server)
    weight, configured = server["weight"], server["configured_weight"]
    numbers = (
        str(weight) if weight == configured else f"{weight}/{configured}",
        str(server["active_connections"]),
        str(server["inactive_connections"]),
    )
    return (
        str(server["guest"] or "(host)"),
        address,
        server["phase"],
        *(numbers if server["in_table"] else ("-", "-", "-")),
        server["health"],
        age(server["since"], now),
    )


def server_note(server: Answer, now: float) -> str:
    """Return why a server is not simply serving, and what follows when; "" if it is.

    A guest that does not run has no note either.
    """
    if server["phase"] == "serving" and server["health"] == "up":
        plain = 0 < server["weight"] == server["configured_weight"]
    else:
        plain = server["phase"] == "absent" and server["reason"] == "not running"
    if plain:
        return ""
    if not server["deadline"]:
        return str(server["reason"])
    left = until(server["deadline"], now)
    follows = server.get("deadline_means")
    return f"{server['reason']}; " + (f"{follows} in {left}" if follows else f"{left} left")
