"""Problems of the configuration, each with its place and its remedy."""

from dataclasses import dataclass

from xenlb.untrusted.printable import printable


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Line and column count from 1; `path` is like `services.mail.ports[1]`.

    As text it is printable, whatever the file contains.
    """

    file: str
    line: int
    column: int
    path: str
    message: str
    hint: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}: "
        path = f"{self.path}: " if self.path else ""
        hint = f" ({self.hint})" if self.hint else ""
        return printable(f"{where}{path}{self.message}{hint}")


class ConfigError(Exception):
    """The configuration cannot be used; `problems` has all of them, in file order."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems
