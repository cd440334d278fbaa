"""What a configuration requires of this host: interfaces, programs, users, files.

Parsing only records requirements: the text may be meant for another host, and an interface may
appear later. The host is examined in a second step.
"""

import os
import pwd
import socket
import stat
from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

from xenlb.untrusted.suggestions import did_you_mean


class RequirementKind(StrEnum):
    """The kind of thing a requirement names; programs and files are named by path."""

    INTERFACE = "interface"
    PROGRAM = "program"
    USER = "user"
    FILE = "file"


class Requirement(NamedTuple):
    """One thing that this host must have for the configuration to work."""

    kind: RequirementKind
    name: str


class MissingRequirement(NamedTuple):
    """Why a requirement is not met, and what to do about it."""

    message: str
    hint: str


def missing_requirements(
    requirements: Iterable[Requirement],
) -> dict[Requirement, MissingRequirement]:
    """The requirements that this host does not meet now."""
    results = {
        requirement: _CHECKS[requirement.kind](requirement.name) for requirement in requirements
    }
    return {requirement: missing for requirement, missing in results.items() if missing}


def _no_interface(name: str) -> MissingRequirement | None:
    try:  # /sys/class/net may show another network namespace
        socket.if_nametoindex(name)
    except OSError:
        names = [known for _, known in socket.if_nameindex()]
        hint = did_you_mean(name, names) or "ip link shows the interfaces"
        return MissingRequirement(f"this host has no interface {name}", hint)
    return None


def _no_program(path: str) -> MissingRequirement | None:
    try:
        status = os.stat(path)
    except OSError as error:
        return MissingRequirement(
            f"there is no program {path}: {_reason(error)}", "install it, or correct the path"
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
    """The uid of the user; empty if this host has no such user."""
    try:
        return (pwd.getpwnam(name).pw_uid,)
    except KeyError:
        return ()


def _no_file(path: str) -> MissingRequirement | None:
    try:
        os.stat(path)
    except OSError as error:
        return MissingRequirement(
            f"there is no file {path}: {_reason(error)}", "put it there, or correct the path"
        )
    return None


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


_CHECKS = {
    RequirementKind.INTERFACE: _no_interface,
    RequirementKind.PROGRAM: _no_program,
    RequirementKind.USER: _no_user,
    RequirementKind.FILE: _no_file,
}
