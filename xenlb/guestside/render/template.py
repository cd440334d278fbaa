"""Templates: where they are found, and what may get out of them into a file.

Nothing that is written into a template can bring a new line, a quote or a command into a file of a
guest: what goes in and what comes out is a number, an address or a word of [A-Za-z0-9._:/@-]. That
holds for the operator's own templates, too, which take the place of the shipped ones of the same
name below `templates/`, beside the configuration.

They are Jinja's, in its sandbox, with one difference: comments are between <#-- and --#>, since {#
is the length of a variable in a shell script.
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
    """A template cannot be used; one sentence."""


class UnsafeValue(Exception):
    """A value that may stand in no file; one sentence."""


def safe(value: object) -> str:
    """The value as it may stand in any file, whatever reads it. Raises UnsafeValue."""
    # The text of an address is looked at, too: what Python takes for the zone of an IPv6 address
    # may be anything.
    if isinstance(value, int | str | IPv4Address | IPv6Address) and not isinstance(value, bool):
        text = str(value)
        if _WORD.fullmatch(text):
            return text
    raise UnsafeValue(
        f"{quoted(value)} may not stand in it, only numbers, addresses and words of at most "
        f"{LONGEST} letters, digits and ._:/@-"
    )


def quoted(value: object) -> str:
    """For a message: in one line, and not endless."""
    text = printable(str(value), 60)
    return f"'{text}'" if isinstance(value, str) else text


def render(name: str, values: Mapping[str, object], *, overrides: Path) -> str:
    """The template of that name (a path below templates/), filled in. Raises TemplateError."""
    source, place = _source(name, overrides=overrides)
    try:
        for value in values.values():
            _check(value)
        code = _ENVIRONMENT.compile(source, name=name, filename=place)
        made = jinja2.Template.from_code(_ENVIRONMENT, code, dict(_ENVIRONMENT.globals))
        return made.render(values)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"the template {place}, line {error.lineno}: {error.message}") from None
    except Exception as error:
        # An expression may fail as any of Python's may: a division by zero is its author's.
        line = _line(error.__traceback__, place)
        at = f", line {line}" if line is not None else ""
        said = str(error) or type(error).__name__
        raise TemplateError(f"the template {place}{at}: {said}") from None


def _source(name: str, *, overrides: Path) -> tuple[str, str]:
    """The operator's template of that name, or the shipped one; and what to call it."""
    own = overrides / name
    try:
        return own.read_text(), str(own)
    except FileNotFoundError:
        shipped = resources.files("xenlb.guestside.render").joinpath("templates", *name.split("/"))
        return shipped.read_text(), name
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(f"the template {own} cannot be read: {error}") from None


def _check(value: object) -> None:
    """What a template is given is as safe as what comes out of it, so that no filter or block of
    Jinja's is a way around."""
    match value:
        case None | bool():
            pass
        case Mapping():
            for each in value.values():
                _check(each)
        case list() | tuple():
            for each in value:
                _check(each)
        case _:
            safe(value)


def _finalize(value: object) -> object:
    if isinstance(value, jinja2.Undefined):
        return value  # says its name when it is written, which StrictUndefined does not survive
    return safe(value)


def _environment() -> ImmutableSandboxedEnvironment:
    made: Any = ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        comment_start_string="<#--",
        comment_end_string="--#>",
        finalize=_finalize,
        autoescape=False,
    )
    made.globals.clear()  # range() would make an endless file
    return made  # type: ignore[no-any-return]


_ENVIRONMENT = _environment()


def _line(trace: TracebackType | None, place: str) -> int | None:
    """Of the template, where it failed: Jinja puts it into the traceback as of a Python file."""
    found = None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == place:
            found = trace.tb_lineno
        trace = trace.tb_next
    return found
