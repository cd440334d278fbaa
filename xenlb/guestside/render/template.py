"""Templates of files in a guest, rendered by Jinja in its sandbox.

No value can bring a new line, a quote or a command into a file: values and outputs of expressions
are numbers, addresses and words of [A-Za-z0-9._:/@-]. An operator's template in the folder
`templates` beside the configuration replaces the shipped one of the same name, with the same rules.

Comments are between <#-- and --#>: in a shell script, {# is the length of a variable.
"""

import re
from collections.abc import Mapping
from importlib import resources
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from types import TracebackType
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from xenlb.untrusted.printable import printable

OVERRIDES = Path("/etc/xenlb/templates")
LONGEST = 128  # characters of a value; a sysctl of an interface is the longest there is
_WORD = re.compile(r"(?!-)[A-Za-z0-9._:/@-]{1,128}")


class TemplateError(Exception):
    """A template, or a value for it, cannot be used."""


class UnsafeValue(Exception):
    """A value that no file may contain."""


def safe(value: object) -> str:
    """The text of a value that any file may contain. Raises UnsafeValue."""
    # The text of an address is checked, too: Python accepts any text as a zone of IPv6.
    if isinstance(value, int | str | IPv4Address | IPv6Address) and not isinstance(value, bool):
        text = str(value)
        if _WORD.fullmatch(text):
            return text
    raise UnsafeValue(
        f"{quoted(value)} is not allowed, only numbers, addresses and words of at most "
        f"{LONGEST} letters, digits and ._:/@-"
    )


def quoted(value: object) -> str:
    """The value as one short line for a message."""
    text = printable(str(value), 60)
    return f"'{text}'" if isinstance(value, str) else text


def render(name: str, values: Mapping[str, object], *, overrides: Path) -> str:
    """Render a template; `name` is its path below templates/. Raises TemplateError."""
    source, origin = _source(name, overrides=overrides)
    try:
        for value in values.values():
            _check(value)
        code = _ENVIRONMENT.compile(source, name=name, filename=origin)
        template = jinja2.Template.from_code(_ENVIRONMENT, code, dict(_ENVIRONMENT.globals))
        return template.render(values)
    except jinja2.TemplateSyntaxError as error:
        message = f"the template {origin}, line {error.lineno}: {error.message}"
        raise TemplateError(message) from None
    except Exception as error:
        # An expression may raise any exception, such as a division by zero.
        line = _line(error.__traceback__, origin)
        where = f", line {line}" if line is not None else ""
        problem = str(error) or type(error).__name__
        raise TemplateError(f"the template {origin}{where}: {problem}") from None


def _source(name: str, *, overrides: Path) -> tuple[str, str]:
    """The operator's template or the shipped one, and its name for messages."""
    own = overrides / name
    try:
        return own.read_text(), str(own)
    except FileNotFoundError:
        shipped = resources.files("xenlb.guestside.render").joinpath("templates", *name.split("/"))
        return shipped.read_text(), name
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(f"the template {own} cannot be read: {error}") from None


def _check(value: object) -> None:
    """Check the values that go in, too: a filter or block of Jinja may bypass the output check."""
    match value:
        case None | bool():
            pass
        case Mapping():
            _check([*value.values()])
        case list() | tuple():
            for element in value:
                _check(element)
        case _:
            safe(value)


def _finalize(value: object) -> object:
    if isinstance(value, jinja2.Undefined):
        return value  # StrictUndefined raises an error with its name when it is written
    return safe(value)


def _environment() -> ImmutableSandboxedEnvironment:
    environment: Any = ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        comment_start_string="<#--",
        comment_end_string="--#>",
        finalize=_finalize,
        autoescape=False,
    )
    environment.globals.clear()  # range() could make an endless file
    return environment  # type: ignore[no-any-return]


_ENVIRONMENT = _environment()


def _line(trace: TracebackType | None, origin: str) -> int | None:
    """The line of the template that failed, which the traceback has like one of a Python file."""
    line = None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == origin:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
