"""Who besides root may write a file, or put another one in its place.

A configuration names programs and as whom they run. So whoever may write it, or rename a folder on
the way to it, may run programs as root; and whoever may write a program runs as its user.
"""

import grp
import os
import pwd
import stat
from collections.abc import Collection
from typing import NamedTuple

from xenlb.config.path_resolution import path_steps


class Writer(NamedTuple):
    """`path`: the file, or the folder on the way to it, that `who` may write."""

    path: str
    who: str
    cure: str

    def __str__(self) -> str:
        return f"{self.who} may write {self.path}"


def other_writer(path: str | os.PathLike[str], trusted: Collection[int] = ()) -> Writer | None:
    """The first that is found; None: there is none, or no such file. `trusted`: users who may write
    it, beside root and the user of this process."""
    users = {0, os.geteuid(), *trusted}
    groups = {0} if os.geteuid() == 0 else {0, os.getegid()}
    if (writer := _writer("/", os.lstat("/"), users, groups)) is not None:
        return writer
    for step, is_link in path_steps(os.path.abspath(path)):
        if is_link:
            continue  # its folder says who may replace it
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
    # In a sticky folder everybody may write, but replace only what is his own.
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


def unreadable(path: str | os.PathLike[str]) -> str:
    """What root, who may not read the file all the same, can do about it: a unit without
    CAP_DAC_OVERRIDE reads what is root's, or everybody's."""
    blocking = os.path.abspath(path)
    for step, _ in path_steps(blocking):
        if not os.access(step, os.X_OK if step.is_dir() else os.R_OK):
            blocking = str(step)
            break
    return f"chown root {blocking}, as xenlb.service has no power over other users' files"
