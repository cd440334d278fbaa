"""What a configuration needs of this host besides itself: interfaces, programs, users, files.

A text is right or wrong wherever it is read. What this host lacks may come later, or be there on
the host that the text is for. So these are two steps: parse() notes needs, lacking() looks.
"""

import os
import pwd
import socket
import stat
from collections.abc import Iterable
from difflib import get_close_matches
from enum import StrEnum
from typing import NamedTuple


class RequirementKind(StrEnum):
    INTERFACE = "interface"
    PROGRAM = "program"
    USER = "user"
    FILE = "file"


class Requirement(NamedTuple):
    kind: RequirementKind
    name: str


class MissingRequirement(NamedTuple):
    """Why a need is not met, and what to do about it."""

    message: str
    hint: str


def missing_requirements(needs: Iterable[Requirement]) -> dict[Requirement, MissingRequirement]:
    """The needs that this host does not meet now."""
    found = {need: _lack(need) for need in needs}
    return {need: lack for need, lack in found.items() if lack is not None}


def _lack(need: Requirement) -> MissingRequirement | None:
    match need.kind:
        case RequirementKind.INTERFACE:
            return _no_interface(need.name)
        case RequirementKind.PROGRAM:
            return _no_program(need.name)
        case RequirementKind.USER:
            return _no_user(need.name)
        case RequirementKind.FILE:
            return _no_file(need.name)


def _no_interface(name: str) -> MissingRequirement | None:
    try:  # not /sys/class/net, which may be of another network name space
        socket.if_nametoindex(name)
    except OSError:
        near = get_close_matches(name, [known for _, known in socket.if_nameindex()], n=1)
        hint = f"did you mean {near[0]}?" if near else "ip link shows the interfaces"
        return MissingRequirement(f"this host has no interface {name}", hint)
    return None


def _no_program(path: str) -> MissingRequirement | None:
    try:
        status = os.stat(path)
    except OSError as error:
        return MissingRequirement(
            f"there is no program {path}: {_why(error)}", "install it, or correct the path"
        )
    if not stat.S_ISREG(status.st_mode) or not status.st_mode & 0o111:
        return MissingRequirement(f"{path} is no program", f"chmod +x {path}, or correct the path")
    return None


def _no_user(name: str) -> MissingRequirement | None:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return MissingRequirement(f"this host has no user {name}", "getent passwd shows the users")
    return None


def uids(name: str) -> tuple[int, ...]:
    """Of the user, none where this host has no such one."""
    try:
        return (pwd.getpwnam(name).pw_uid,)
    except KeyError:
        return ()


def _no_file(path: str) -> MissingRequirement | None:
    try:
        os.stat(path)
    except OSError as error:
        return MissingRequirement(
            f"there is no file {path}: {_why(error)}", "put it there, or correct the path"
        )
    return None


def _why(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
