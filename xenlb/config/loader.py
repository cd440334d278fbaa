"""The whole file: its sections, and the ways in, load(), read() and parse().

Either the whole configuration is right and becomes Settings, or every problem of it is raised in
one ConfigError; nothing is half taken.
"""

import os
import stat
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, TypeVar

from xenlb.config import file_permissions, host_requirements, quantities, scalars, service_parser
from xenlb.config.advice import advice
from xenlb.config.build_settings import settings_of, without_idle_defaults
from xenlb.config.cursor import Cursor, Fields, Location, Report, keys_of
from xenlb.config.draft import Draft
from xenlb.config.host_requirements import Requirement, RequirementKind
from xenlb.config.invalid_value import InvalidValue
from xenlb.config.service_rules import RULES, servers_are_no_vips, unique_keys
from xenlb.config.yaml_nodes import LARGEST_FILE, compose, decode
from xenlb.model.checks import Exec
from xenlb.model.problem import ConfigError, Problem
from xenlb.model.settings import (
    KEEPALIVE,
    AddressPolicy,
    Director,
    IPNetwork,
    Settings,
    SysctlPolicy,
)

T = TypeVar("T")

ROOT_KEYS: Final = ("libvirt", "guests", "director", "defaults", "services")
LIBVIRT_KEYS: Final = ("uris", "keepalive")
GUESTS_KEYS: Final = ("networks", "listen")
DIRECTOR_KEYS: Final = ("interface", "addresses", "sysctls")


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A configuration and the bytes that it was made of. `needs`: what this host must have for it,
    and the problem's place where it has not."""

    settings: Settings
    data: bytes
    report: Report

    @property
    def needs(self) -> frozenset[Requirement]:
        return frozenset(self.report.needs)

    def lacking(self, *, but: Collection[Requirement] = ()) -> tuple[Problem, ...]:
        """What this host has not of what is needed, in file order, without the needs in `but`."""
        needs = self.report.needs
        lacks = host_requirements.missing_requirements(need for need in needs if need not in but)
        found = [self.report.problem(needs[need], *lack) for need, lack in lacks.items()]
        return tuple(sorted(found, key=lambda problem: (problem.line, problem.column)))


def load(path: str | os.PathLike[str]) -> Settings:
    """The settings of a file. Raises ConfigError, also where the file cannot be read."""
    return read(path).settings


def read(path: str | os.PathLike[str], *, anywhere: bool = False) -> Loaded:
    """As load(), with all that there is to know of the file. `anywhere`: whoever may write it, as
    it is for another host."""
    file = os.fspath(path)
    data = bytes_of(file)
    if anywhere:
        return loaded(data, file)
    report = Report(file=file)
    writer = file_permissions.other_writer(file)
    if writer is not None:
        report.warn(Location(1, 1, ""), f"{writer}, and with it change all of this", writer.cure)
    settings = _parsed(decode(data, file), report)
    if unsafe := _unsafe(settings, report, writer):
        raise ConfigError(unsafe)
    return Loaded(settings=settings, data=data, report=report)


def _unsafe(
    settings: Settings, report: Report, writer: file_permissions.Writer | None
) -> tuple[Problem, ...]:
    """Of each program that root starts: who else could have it replaced, in file order."""
    programs = {
        (check.asks.command[0], check.asks.user)
        for service in settings.services
        for check in service.checks
        if isinstance(check.asks, Exec)
    }
    found: dict[Problem, None] = {}
    for program, user in sorted(programs):
        other = writer or file_permissions.other_writer(program, host_requirements.uids(user))
        if other is not None:
            place = report.needs[Requirement(RequirementKind.PROGRAM, program)]
            message = f"exec is refused: {other}, and so run programs as root"
            if writer is None:
                message = f"exec is refused: {other}, and so run programs as {user}"
            found[report.problem(place, message, other.cure)] = None
    return tuple(sorted(found, key=lambda problem: (problem.line, problem.column)))


def bytes_of(path: str | os.PathLike[str]) -> bytes:
    """At most one byte more than a configuration may have. Raises ConfigError.

    Regular files only: to open or read a pipe or a device may take for ever.
    """
    file = os.fspath(path)
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):
            raise ConfigError((_unreadable(file, None),))
        with open(file, "rb", opener=_without_waiting) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise ConfigError((_unreadable(file, None),))
            return stream.read(LARGEST_FILE + 1)
    except (OSError, ValueError) as error:
        raise ConfigError((_unreadable(file, error),)) from None


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def parse(text: str, file: str) -> Settings:
    """The settings of a text; `file` is the name that its problems bear. Raises ConfigError."""
    return _parsed(text, Report(file=file))


def loaded(data: bytes, file: str) -> Loaded:
    """As parse(), of bytes. Raises ConfigError."""
    report = Report(file=file)
    return Loaded(settings=_parsed(decode(data, file), report), data=data, report=report)


def _parsed(text: str, report: Report) -> Settings:
    root = Cursor(node=compose(text, report.file), path="", report=report)
    settings = _settings(root, report)
    problems = report.problems()
    if settings is None or problems:
        raise ConfigError(problems)
    return settings


def _unreadable(file: str, error: OSError | ValueError | None) -> Problem:
    match error:
        case None if os.path.isdir(file):
            message, hint = "is a folder", "name the file in it"
        case None:
            message, hint = "is not a regular file", "write it to a file, and name that"
        case FileNotFoundError():
            message, hint = "there is no such file", "write it, or name another with --config"
        case PermissionError():
            message, hint = "the file may not be read", "run as root, or check its rights"
            if os.geteuid() == 0:
                hint = file_permissions.unreadable(file)
        case OSError():
            message = f"cannot be read: {error.strerror}"
            hint = "check the file and its disk"
        case _:
            message, hint = "is no file name", "name another with --config"
    return Problem(file=file, line=1, column=1, path="", message=message, hint=hint)


def _settings(root: Cursor, report: Report) -> Settings | None:
    try:
        top = root.keys(ROOT_KEYS)
    except InvalidValue as wrong:
        root.report_wrong(wrong)
        return None
    if "services" not in top:
        root.wrong("there is no services section", "add services: and a service below it")
    libvirt = Fields(own=keys_of(top.get("libvirt"), LIBVIRT_KEYS))
    uris = _uris(libvirt)
    keepalive = libvirt.read("keepalive", _keepalive, KEEPALIVE).value
    guests = Fields(own=keys_of(top.get("guests"), GUESTS_KEYS))
    networks = _networks(guests)
    listen = guests.read("listen", lambda c: c.parsed(scalars.listening), None).value
    drafts = _drafts(top)
    director = _director(top, drafts, root)
    for draft in drafts:
        for rule in RULES:
            rule(draft, report)
    unique_keys(drafts, report)
    servers_are_no_vips(drafts, report)
    if report.found:
        return None
    services = tuple(settings_of(draft) for draft in drafts)
    for draft, settings in zip(drafts, services, strict=True):
        for message, hint in advice(settings):
            report.warn(draft.place, message, hint)
    return Settings(
        uris=uris,
        keepalive=keepalive,
        networks=networks,
        listen=listen,
        director=director,
        services=services,
        warnings=tuple(report.warned),
    )


def _uris(libvirt: Fields) -> tuple[str, ...]:
    none: tuple[str, ...] = ()
    return libvirt.read("uris", lambda c: _set(c, _uri, "[xen:///system]"), none).value


def _networks(guests: Fields) -> tuple[IPNetwork, ...]:
    none: tuple[IPNetwork, ...] = ()
    return guests.read("networks", lambda c: _set(c, _network, "[10.0.0.0/24]"), none).value


def _keepalive(cursor: Cursor) -> float:
    return cursor.parsed(lambda text: quantities.duration(text, least=4, most=600))


def _uri(item: Cursor) -> str:
    return item.parsed(scalars.libvirt_uri)


def _network(item: Cursor) -> IPNetwork:
    return item.parsed(scalars.network)


def _set(cursor: Cursor, parse: Callable[[Cursor], T], example: str) -> tuple[T, ...]:
    """A list whose items differ."""
    first: dict[T, str] = {}

    def new(item: Cursor) -> T:
        value = parse(item)
        if value in first:
            raise InvalidValue(
                f"{value} stands here twice", hint=f"it is {first[value]} already: remove one"
            )
        first[value] = item.path
        return value

    return cursor.each(new, example)


def _drafts(top: dict[str, Cursor]) -> list[Draft]:
    inherited = service_parser.read_defaults(top.get("defaults"))
    cursor = top.get("services")
    if cursor is None:
        return []
    try:
        entries = cursor.entries()
    except InvalidValue as wrong:
        cursor.report_wrong(wrong)
        return []
    drafts = []
    for name, place, body in entries:
        try:
            scalars.service_name(name)
        except InvalidValue as wrong:
            body.report.add(place, wrong.message, wrong.hint)
        try:
            own = body.keys(service_parser.SERVICE_KEYS)
        except InvalidValue as wrong:
            body.report_wrong(wrong)
            continue
        draft = service_parser.read(name, place, Fields(own=own, inherited=inherited))
        drafts.append(without_idle_defaults(draft))
    return drafts


def _director(top: dict[str, Cursor], drafts: list[Draft], root: Cursor) -> Director:
    section = top.get("director")
    fields = Fields(own=keys_of(section, DIRECTOR_KEYS))
    interface = fields.read("interface", lambda c: c.name(scalars.interface), None)
    addresses = fields.read("addresses", lambda c: c.choice(AddressPolicy), AddressPolicy.MANAGE)
    sysctls = fields.read("sysctls", lambda c: c.choice(SysctlPolicy), SysctlPolicy.IPVS)
    if (
        not interface.given
        and addresses.value is AddressPolicy.MANAGE
        and not addresses.bad
        and any(draft.address.given and not draft.fwmark.given for draft in drafts)
    ):
        at = (section or root).place
        root.report.add(
            Location(line=at.line, column=at.column, path="director.interface"),
            "no interface for the service addresses",
            "add director: {interface: eth0}, or addresses: leave",
        )
    if interface.value is not None and addresses.value is AddressPolicy.MANAGE:
        fields.own["interface"].needed(RequirementKind.INTERFACE, interface.value)
    return Director(interface=interface.value, addresses=addresses.value, sysctls=sysctls.value)
