"""Parse numbers of the configuration: durations, persistence, whole numbers, percentages.

Pure functions of one text. Each raises InvalidValue.
"""

import re
from decimal import Decimal
from typing import Final

from xenlb.config.invalid_value import InvalidValue
from xenlb.untrusted.printable import quoted

HOUR: Final = 3600.0
DAY: Final = 24 * HOUR
# The limit of ipvsadm, too (31 days). The kernel multiplies the seconds by HZ in 32 bits: with
# HZ=1000, a few weeks more would wrap around.
LONGEST_PERSISTENCE: Final = 31 * DAY

_UNITS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000}
_DURATION = re.compile(r"(0|[1-9][0-9]{0,11})(ms|s|m|h)")
_NUMBER = re.compile(r"[0-9]+")
_PERCENT = re.compile(r"(0|[1-9][0-9]{0,3})%")


def duration_text(seconds: float) -> str:
    """Seconds in the notation of the configuration, in the largest exact unit."""
    ms = round(seconds * 1000)
    for unit, size in (("h", 3_600_000), ("m", 60_000), ("s", 1_000)):
        if ms and ms % size == 0:
            return f"{ms // size}{unit}"
    return f"{ms}ms" if ms else "0s"


def duration(text: str, *, least: float, most: float) -> float:
    """A duration such as 500ms, 30s, 5m or 2h, in seconds."""
    match = _DURATION.fullmatch(text)
    if match is None:
        if _NUMBER.fullmatch(text):
            shown = (text.lstrip("0") or "0")[:12]
            raise InvalidValue(f"{shown} has no unit", hint=f"write {shown}s")
        if match := re.fullmatch(r"([0-9]{1,9}\.[0-9]{1,9})(ms|s|m|h)", text):
            exact = Decimal(match[1]) * _UNITS[match[2]]
            raise InvalidValue(
                f"{text} is not a whole number with a unit",
                hint=f"write {duration_text(round(exact) / 1000)}",
            )
        raise InvalidValue(f"{quoted(text)} is not a duration", hint="write 500ms, 30s, 5m or 2h")
    seconds = int(match[1]) * _UNITS[match[2]] / 1000
    if seconds < least:
        raise InvalidValue(f"{text} is too short", hint=f"at least {duration_text(least)}")
    if seconds > most:
        raise InvalidValue(f"{text} is too long", hint=f"at most {duration_text(most)}")
    return seconds


def persistence(text: str) -> int:
    """Seconds of persistence. The kernel accepts whole seconds only; 0 would mean none."""
    if re.fullmatch(r"0(ms|s|m|h)", text):
        raise InvalidValue("0 is not a persistence", hint="leave the key out for no persistence")
    seconds = duration(text, least=0, most=LONGEST_PERSISTENCE)
    if seconds != int(seconds) or seconds < 1:
        raise InvalidValue(
            f"{text}: the kernel counts persistence in whole seconds", hint="write 300s"
        )
    return int(seconds)


def whole_number(text: str, *, least: int, most: int) -> int:
    """A decimal number; notations that YAML reads in another base are refused."""
    if re.fullmatch(r"[-+]?0[0-9_]+", text):
        digits = text.replace("_", "").lstrip("+-0") or "0"
        raise InvalidValue(
            f"{quoted(text)} begins with 0, which YAML reads as octal",
            hint=f"write {digits[:20]}",
        )
    if match := re.fullmatch(r"0([xob])([0-9A-Fa-f]{1,16})", text):
        base = {"x": 16, "o": 8, "b": 2}[match[1]]
        try:
            hint = f"write {int(match[2], base)}"
        except ValueError:
            hint = "write it in decimal digits"
        raise InvalidValue(f"{quoted(text)} is not a decimal number", hint=hint)
    if re.fullmatch(r"[-+]?[0-9][0-9_]*(:[0-9]{1,2})+", text):
        raise InvalidValue(
            f"{quoted(text)} is one number of base 60 to YAML", hint="write one plain number"
        )
    if re.fullmatch(r"[-+]?[0-9][0-9_,]*", text) and not re.fullmatch(r"-?[0-9]+", text):
        digits = re.sub(r"[^0-9-]", "", text)[:20]
        raise InvalidValue(f"{quoted(text)} is not written in digits alone", hint=f"write {digits}")
    if re.fullmatch(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9.]+[eE][-+]?[0-9]+)", text):
        raise InvalidValue(f"{quoted(text)} is not a whole number", hint=f"write {least} … {most}")
    if not re.fullmatch(r"-?[0-9]+", text, re.ASCII):
        raise InvalidValue(f"{quoted(text)} is not a number", hint=f"write {least} … {most}")
    # int() of thousands of digits would raise an error of its own.
    if len(text) > 20 or not least <= int(text) <= most:
        raise InvalidValue(f"{text[:24]} is out of range", hint=f"{least} … {most}")
    return int(text)


def percent(text: str) -> float:
    """0% … 100%, as a fraction of 1."""
    match = _PERCENT.fullmatch(text)
    if match is None:
        if _NUMBER.fullmatch(text):
            shown = text[:4]
            raise InvalidValue(f"{shown} has no percent sign", hint=f"write {shown}%")
        raise InvalidValue(
            f"{quoted(text)} is not a share", hint="write 0% … 100% in whole numbers"
        )
    if int(match[1]) > 100:
        raise InvalidValue(f"{text} is more than 100%", hint="write 0% … 100%")
    return int(match[1]) / 100
