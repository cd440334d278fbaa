"""Split one line in ipvsadm's syntax into options with their long names. Pure.

Accepts what popt, and so ipvsadm(8), accepts: long options, `--option=value`, `-At`, `-p300`,
options in any order, a leading `ipvsadm`. `#` comments are accepted too, although
ipvsadm 1.31 fails on them.
"""

import shlex
from collections.abc import Iterator


class ParseError(Exception):
    """A line that ipvsadm would refuse; `line` counts from 1, `reason` is a sentence."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")
        self.line = line
        self.reason = reason


_COMMANDS = {
    "A": "add-service",
    "E": "edit-service",
    "D": "delete-service",
    "a": "add-server",
    "e": "edit-server",
    "d": "delete-server",
    "C": "clear",
}
_LETTERS = {name: letter for letter, name in _COMMANDS.items()}
# Options with a value, then those without; short name: long name.
_VALUED = {
    "t": "tcp-service",
    "u": "udp-service",
    "f": "fwmark-service",
    "s": "scheduler",
    "M": "netmask",
    "b": "sched-flags",
    "r": "real-server",
    "w": "weight",
    "x": "u-threshold",
    "y": "l-threshold",
}
_LONG_VALUED = {*_VALUED.values(), "sctp-service", "pe", "tun-type", "tun-port"}
_PLAIN = {"6": "ipv6", "o": "ops", "g": "gatewaying", "i": "ipip", "m": "masquerading"}
_LONG_PLAIN = {*_PLAIN.values(), "tun-nocsum", "tun-csum", "tun-remcsum"}
_SHORT = _VALUED | _PLAIN | {"p": "persistent"}
_TYPED = {long: f"-{short}" for short, long in (_SHORT | _COMMANDS).items()}

IDENTITY = {"tcp-service", "udp-service", "sctp-service", "fwmark-service", "ipv6"}
_SERVICE = {"scheduler", "persistent", "netmask", "sched-flags", "pe", "ops"}
_SERVER = {
    *("gatewaying", "ipip", "masquerading", "weight", "u-threshold", "l-threshold"),
    *("tun-type", "tun-port", "tun-nocsum", "tun-csum", "tun-remcsum"),
}
_ALLOWED = {
    "A": IDENTITY | _SERVICE,
    "E": IDENTITY | _SERVICE,
    "D": IDENTITY,
    "a": IDENTITY | _SERVER | {"real-server"},
    "e": IDENTITY | _SERVER | {"real-server"},
    "d": IDENTITY | {"real-server"},
    "C": set[str](),
}


def parse_line(line: str, number: int) -> tuple[str, dict[str, str]]:
    """The command's letter and its options; the letter is empty for a line without words."""
    command = ""
    options: dict[str, str] = {}
    for name, value in _split(_words(line, number), number):
        letter = _LETTERS.get(name)
        if letter is not None:
            if command:
                raise ParseError(number, f"there are two commands, -{command} and -{letter}")
            command = letter
        elif not command:
            raise ParseError(number, "a line begins with its command: -A, -E, -D, -a, -e or -d")
        elif name in options:
            raise ParseError(number, f"{option_name(name)} appears twice")
        elif name not in _ALLOWED[command]:
            raise ParseError(number, f"{option_name(name)} does not go with -{command}")
        else:
            options[name] = value
    return command, options


def _words(line: str, number: int) -> list[str]:
    if "#" in line or '"' in line or "'" in line or "\\" in line:
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise ParseError(number, f"the quotes do not match ({error})") from None
    else:
        words = line.split()
    return words[1:] if words and words[0].rpartition("/")[2] == "ipvsadm" else words


def _split(words: list[str], number: int) -> Iterator[tuple[str, str]]:
    """Pairs of long name and value, from popt's spellings of options."""
    position = 0

    def required_value(name: str) -> str:
        nonlocal position
        if position == len(words):
            raise ParseError(number, f"{option_name(name)} needs a value")
        position += 1
        return words[position - 1]

    def optional_value() -> str:
        nonlocal position
        if position == len(words) or words[position].startswith("-"):
            return ""
        position += 1
        return words[position - 1]

    while position < len(words):
        word = words[position]
        position += 1
        if word.startswith("--") and len(word) > 2:
            name, has_value, value = word[2:].partition("=")
            if name == "persistent":
                yield name, value if has_value else optional_value()
            elif name in _LONG_VALUED:
                yield name, value if has_value else required_value(name)
            elif name not in _LONG_PLAIN and name not in _LETTERS:
                raise ParseError(number, f"--{name} is not an option of a service or a server")
            elif has_value:
                raise ParseError(number, f"--{name} takes no value")
            else:
                yield name, ""
        elif word.startswith("-") and len(word) > 1:
            letters = word[1:]
            while letters:
                letter, letters = letters[0], letters[1:]
                if letter == "p" or letter in _VALUED:
                    name, attached, letters = _SHORT[letter], letters.removeprefix("="), ""
                    yield (
                        name,
                        attached or (optional_value() if letter == "p" else required_value(name)),
                    )
                elif letter in _PLAIN or letter in _COMMANDS:
                    yield _PLAIN.get(letter) or _COMMANDS[letter], ""
                else:
                    raise ParseError(number, f"-{letter} is not an option of a service or a server")
        else:
            raise ParseError(number, f"{word} belongs to no option")


def option_name(name: str) -> str:
    """An option as it is typed: the short form if there is one."""
    return _TYPED.get(name, f"--{name}")
