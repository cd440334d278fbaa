"""Find users besides root who may write or replace a file.

A configuration names programs and their users. A user who may write it, or rename a folder on the
way to it, may run programs as root. A user who may write a program may act as the program's user.
"""

import grp
import os
import pwd
import stat
from collections.abc import Collection
from typing import NamedTuple

from xenlb.config.path_resolution import path_steps


class Writer(NamedTuple):
    """A user or group that may write `path`: the file, or a folder on the way to it."""

    path: str
    name: str
    hint: str

    def __str__(self) -> str:
        return f"{self.name} may write {self.path}"


def other_writer(path: str | os.PathLike[str], trusted: Collection[int] = ()) -> Writer | None:
    """The first such writer; None if there is none, or no such file.

    `trusted`: uids that may write it, besides root and the user of this process.
    """
    users = {0, os.geteuid(), *trusted}
    groups = {0} if os.geteuid() == 0 else {0, os.getegid()}
    if (writer := _writer("/", os.lstat("/"), users, groups)) is not None:
        return writer
    for step, is_link in path_steps(os.path.abspath(path)):
        if is_link:
            continue  # the rights of its folder count
        try:
            status = os.lstat(step)
        except OSError:
            return None
        if (writer := _writer(str(step), status, users, groups)) is not None:
            return writer
    return None


def _writer(
    path: str, status: os.stat_result, users: Collection[int], groups: Collection[int]
) -> Writer | None:
    mode = status.st_mode
    if status.st_uid not in users:
        return Writer(path, _user(status.st_uid), f"chown root {path}")
    # In a sticky folder, users replace only their own files.
    if stat.S_ISDIR(mode) and mode & stat.S_ISVTX:
        return None
    if mode & stat.S_IWOTH:
        return Writer(path, "every user", f"chmod o-w {path}")
    if mode & stat.S_IWGRP and status.st_gid not in groups:
        return Writer(path, _group(status.st_gid), f"chmod g-w {path}")
    return None


def _user(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user {uid}"


def _group(gid: int) -> str:
    try:
        return f"group {grp.getgrgid(gid).gr_name}"
    except KeyError:
        return f"group {gid}"


def unreadable_hint(path: str | os.PathLike[str]) -> str:
    """The hint for a file that root cannot read.

    A unit without CAP_DAC_OVERRIDE reads only files that belong to root or are readable by all.
    """
    blocking = os.path.abspath(path)
    for step, _ in path_steps(blocking):
        if not os.access(step, os.X_OK if step.is_dir() else os.R_OK):
            blocking = str(step)
            break
    return f"chown root {blocking}: xenlb.service has no access to other users' files"
