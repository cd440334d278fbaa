"""The problems, warnings and host requirements found in one configuration, with their places."""

from dataclasses import dataclass, field
from typing import NamedTuple

from xenlb.config.host_requirements import Requirement
from xenlb.model.problem import Problem


class Location(NamedTuple):
    """Line and column count from 1; `path` is like `services.mail.ports[1]`."""

    line: int
    column: int
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemReport:
    """What was found in one file.

    `found` holds a problem once, even if several services inherit it from `defaults`.
    `requirements`: what the host must have, and where the file first names it.
    """

    file: str
    found: dict[Problem, None] = field(default_factory=dict)
    requirements: dict[Requirement, Location] = field(default_factory=dict)
    warnings: list[Problem] = field(default_factory=list)

    def add(self, location: Location, message: str, hint: str) -> None:
        """Record an error; the same error at the same location counts once."""
        self.found[self.problem(location, message, hint)] = None

    def warn(self, location: Location, message: str, hint: str) -> None:
        """Record something that is allowed but probably a mistake."""
        self.warnings.append(self.problem(location, message, hint))

    def problem(self, location: Location, message: str, hint: str) -> Problem:
        """A problem of this file, not recorded."""
        line, column, path = location
        return Problem(
            file=self.file, line=line, column=column, path=path, message=message, hint=hint
        )

    def problems(self) -> tuple[Problem, ...]:
        """All problems in file order."""
        return tuple(sorted(self.found, key=lambda p: (p.line, p.column, p.path, p.message)))
