"""Load the whole configuration from a file or a text.

A configuration without problems becomes Settings. Otherwise one ConfigError has all its problems,
and no part is used.
"""

import os
import stat
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from xenlb.config import file_permissions, host_requirements, scalars, service_parser
from xenlb.config.advice import advice
from xenlb.config.build_settings import build_service, without_idle_defaults
from xenlb.config.config_node import ConfigNode
from xenlb.config.draft import SERVICE_KEYS, ServiceDraft
from xenlb.config.file_permissions import Writer
from xenlb.config.host_requirements import Requirement, RequirementKind
from xenlb.config.invalid_value import InvalidValue
from xenlb.config.keys import KeyLayers, plain_values
from xenlb.config.problem_report import Location, ProblemReport
from xenlb.config.root_sections import DirectorDraft, GuestsDraft, LibvirtDraft
from xenlb.config.service_rules import RULES, report_shared_keys, report_vip_servers
from xenlb.config.yaml_nodes import LARGEST_FILE, compose, decode
from xenlb.model.checks import Exec
from xenlb.model.problem import ConfigError, Problem
from xenlb.model.settings import AddressPolicy, Director, Settings

ROOT_KEYS: Final = ("libvirt", "guests", "director", "defaults", "services")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedConfig:
    """A configuration and the bytes of its file."""

    settings: Settings
    data: bytes
    report: ProblemReport

    @property
    def requirements(self) -> frozenset[Requirement]:
        """What this host must have for the configuration."""
        return frozenset(self.report.requirements)

    def missing_requirements(
        self, *, except_for: Collection[Requirement] = ()
    ) -> tuple[Problem, ...]:
        """The requirements that this host does not meet now, in file order."""
        locations = self.report.requirements
        missing = host_requirements.missing_requirements(
            requirement for requirement in locations if requirement not in except_for
        )
        return _in_file_order(
            self.report.problem(locations[requirement], *problem)
            for requirement, problem in missing.items()
        )


def load(path: str | os.PathLike[str]) -> Settings:
    """The settings of a file. Raises ConfigError, also if the file cannot be read."""
    return load_config(path).settings


def load_config(path: str | os.PathLike[str], *, any_host: bool = False) -> LoadedConfig:
    """The configuration in a file. Raises ConfigError.

    Another user than root who may write the file is a warning, and with exec checks a problem;
    `any_host` skips this, for a file that is meant for another host.
    """
    file = os.fspath(path)
    data = read_file(file)
    if any_host:
        return load_bytes(data, file)
    report = ProblemReport(file=file)
    writer = file_permissions.other_writer(file)
    if writer is not None:
        report.warn(
            Location(1, 1, ""), f"{writer}, and so change the whole configuration", writer.hint
        )
    settings = _parse(decode(data, file), report)
    if unsafe := _unsafe_programs(settings, report, writer):
        raise ConfigError(unsafe)
    return LoadedConfig(settings=settings, data=data, report=report)


def load_bytes(data: bytes, file: str) -> LoadedConfig:
    """The configuration in the bytes of a file of that name. Raises ConfigError."""
    report = ProblemReport(file=file)
    return LoadedConfig(settings=_parse(decode(data, file), report), data=data, report=report)


def parse(text: str, file: str) -> Settings:
    """The settings of a text; problems name `file`. Raises ConfigError."""
    return _parse(text, ProblemReport(file=file))


def read_file(file: str) -> bytes:
    """The file's bytes, at most one more than a configuration may have. Raises ConfigError.

    Regular files only: to open or read a pipe or a device may block forever.
    """
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):
            raise ConfigError((_unreadable(file, None),))
        with open(file, "rb", opener=_open_nonblocking) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise ConfigError((_unreadable(file, None),))
            return stream.read(LARGEST_FILE + 1)
    except (OSError, ValueError) as error:
        raise ConfigError((_unreadable(file, error),)) from None


def _open_nonblocking(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


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
                hint = file_permissions.unreadable_hint(file)
        case OSError():
            message = f"cannot be read: {error.strerror}"
            hint = "check the file and its disk"
        case _:
            message, hint = "is no file name", "name another with --config"
    return Problem(file=file, line=1, column=1, path="", message=message, hint=hint)


def _unsafe_programs(
    settings: Settings, report: ProblemReport, writer: Writer | None
) -> tuple[Problem, ...]:
    """The programs of exec checks that an unprivileged user could replace, in file order."""
    programs = {
        (check.asks.command[0], check.asks.user)
        for service in settings.services
        for check in service.checks
        if isinstance(check.asks, Exec)
    }
    problems: dict[Problem, None] = {}
    for program, user in sorted(programs):
        program_writer = writer or file_permissions.other_writer(
            program, host_requirements.uids(user)
        )
        if program_writer is not None:
            location = report.requirements[Requirement(RequirementKind.PROGRAM, program)]
            run_as = user if writer is None else "root"
            message = f"exec is refused: {program_writer}, and so run programs as {run_as}"
            problems[report.problem(location, message, program_writer.hint)] = None
    return _in_file_order(problems)


def _in_file_order(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    return tuple(sorted(problems, key=lambda problem: (problem.line, problem.column)))


def _parse(text: str, report: ProblemReport) -> Settings:
    root = ConfigNode(compose(text, report.file), "", report)
    settings = _settings(root, report)
    if settings is None or report.found:
        raise ConfigError(report.problems())
    return settings


def _settings(root: ConfigNode, report: ProblemReport) -> Settings | None:
    """The settings; None if the report has problems."""
    try:
        sections = root.values_by_key(ROOT_KEYS)
    except InvalidValue as error:
        root.report_error(error)
        return None
    if "services" not in sections:
        root.add_problem("there is no services section", "add services: and a service below it")
    layers = KeyLayers(own=sections)
    libvirt = layers.nested("libvirt", LibvirtDraft).read_keys(LibvirtDraft)
    guests = layers.nested("guests", GuestsDraft).read_keys(GuestsDraft)
    drafts = _services(sections)
    director = _director(layers, drafts, root)
    for draft in drafts:
        for rule in RULES:
            rule(draft, report)
    report_shared_keys(drafts, report)
    report_vip_servers(drafts, report)
    if report.found:
        return None
    services = tuple(build_service(draft) for draft in drafts)
    for draft, service in zip(drafts, services, strict=True):
        for message, hint in advice(service):
            report.warn(draft.location, message, hint)
    return Settings(
        **plain_values(libvirt),
        **plain_values(guests),
        director=director,
        services=services,
        warnings=tuple(report.warnings),
    )


def _services(sections: dict[str, ConfigNode]) -> list[ServiceDraft]:
    defaults = service_parser.read_defaults(sections.get("defaults"))
    node = sections.get("services")
    if node is None:
        return []
    try:
        entries = node.entries()
    except InvalidValue as error:
        node.report_error(error)
        return []
    drafts = []
    for name, location, body in entries:
        try:
            scalars.service_name(name)
        except InvalidValue as error:
            body.report.add(location, error.message, error.hint)
        try:
            own = body.values_by_key(SERVICE_KEYS)
        except InvalidValue as error:
            body.report_error(error)
            continue
        layers = KeyLayers(own=own, inherited=defaults)
        draft = service_parser.read_service(name, location, layers)
        drafts.append(without_idle_defaults(draft))
    return drafts


def _director(layers: KeyLayers, drafts: list[ServiceDraft], root: ConfigNode) -> Director:
    own = layers.nested("director", DirectorDraft)
    director = own.read_keys(DirectorDraft)
    manages = director.addresses.value is AddressPolicy.MANAGE
    if (
        not director.interface.given
        and manages
        and not director.addresses.bad
        and any(draft.address.given and not draft.fwmark.given for draft in drafts)
    ):
        location = layers.own.get("director", root).location
        root.report.add(
            location._replace(path="director.interface"),
            "no interface for the service addresses",
            "add director: {interface: eth0}, or addresses: leave",
        )
    if director.interface.value is not None and manages:
        own.own["interface"].require(RequirementKind.INTERFACE, director.interface.value)
    return Director(**plain_values(director))
