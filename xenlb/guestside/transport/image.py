"""The files of a guest that is off: below a folder, or on a disk image by libguestfs.

The work is done by image_worker.py in a process of its own; why, it says. It refuses a guest that
runs: two systems that write to one file system destroy it. libvirt is asked right before each
reading and each writing; a guest that somebody starts in between is not held up.
"""

import base64
import json
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from xenlb.guestside.install.operations import (
    MISSING,
    Delete,
    File,
    Folder,
    MakeFolder,
    MakeSymlink,
    Node,
    Operation,
    Other,
    Present,
    RemoveFolder,
    Symlink,
    Write,
    as_bytes,
)
from xenlb.guestside.transport.channel import (
    DeliveryError,
    OutputTooLong,
    TransportTimeout,
    last_line,
    run_child,
)

CHILD = Path(__file__).with_name("image_worker.py")
# libguestfs's bindings are the distribution's; xenlb's own Python may be another.
SYSTEM_PYTHON = "/usr/bin/python3"
LIMIT = 60.0  # seconds
LIMIT_DISK = 300.0  # a small virtual machine starts for each call, emulated where there is no KVM
_INIT_SCRIPTS = ("etc/init.d/", "etc/rc.d/init.d/")


@dataclass(frozen=True, slots=True, kw_only=True)
class RootFolder:
    """A guest's root as a folder of this host."""

    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """`format` as libvirt has it. It is never guessed from the content: a guest that wrote the head
    of a qcow2 image onto its raw disk would choose which file of the host is read."""

    path: str
    format: str


Place = RootFolder | tuple[Disk, ...]


class ImageFiles:
    """An Executor. `still_off` raises DeliveryError where the guest is not off."""

    def __init__(
        self, place: Place, *, name: str, still_off: Callable[[], Awaitable[None]]
    ) -> None:
        self._place = place
        self._name = name
        self._still_off = still_off

    async def read(self, *, files: tuple[str, ...], folders: tuple[str, ...]) -> Present:
        answer = await self._ask(files=files, folders=folders)
        found = answer.get("found")
        if "error" in answer or not isinstance(found, list):
            raise DeliveryError(
                f"the files of {self._name} cannot be read: {self._why(answer)}", hint=_hint(answer)
            )
        present: dict[str, Node] = {}
        for path, value in zip((*files, *folders), found, strict=True):
            node = MISSING if value is None else _node(value)
            if present.get(path, MISSING) == MISSING:
                present[path] = node
        return present

    async def perform(self, operations: tuple[Operation, ...]) -> None:
        if not operations:
            return
        if any(_is_init(each) for each in operations):
            raise DeliveryError(
                f"{self._name} starts its services by init scripts; only its own update-rc.d or "
                f"chkconfig can enable or disable xenlb's",
                hint="do it while the guest runs, by ssh or the guest agent",
            )
        answer = await self._ask(operations=[_request(each) for each in operations])
        if "error" in answer:
            done = answer.get("done")
            number = done if isinstance(done, int) else len(operations)
            what = str(operations[number]) if number < len(operations) else "close its disk"
            raise DeliveryError(
                f"{self._name}: cannot {what}: {self._why(answer)}", hint=_hint(answer)
            )

    async def _ask(
        self,
        *,
        files: Sequence[str] = (),
        folders: Sequence[str] = (),
        operations: Sequence[object] = (),
    ) -> dict[str, object]:
        request: dict[str, object] = {"files": files, "folders": folders, "operations": operations}
        match self._place:
            case RootFolder(path=path):
                _check_root(path)
                request["root"] = path
                command, limit = [sys.executable, "-I", "-S", str(CHILD)], LIMIT
            case disks:
                request["disks"] = [{"path": each.path, "format": each.format} for each in disks]
                command, limit = [SYSTEM_PYTHON, "-I", str(CHILD)], LIMIT_DISK
        await self._still_off()
        try:
            output = await run_child(command, stdin=json.dumps(request).encode(), limit=limit)
        except OSError as error:
            raise DeliveryError(f"{command[0]} cannot be started: {error.strerror}") from None
        except TransportTimeout:
            raise DeliveryError(
                f"the files of {self._name} could not be read or written within {limit:.0f} s"
            ) from None
        except OutputTooLong:
            raise DeliveryError(f"there is more in {self._name} than xenlb reads") from None
        try:
            answer = json.loads(output.out)
        except ValueError:
            answer = {"error": last_line(output.err) or f"status {output.status}"}
        return answer if isinstance(answer, dict) else {"error": "it gives no answer"}

    def _why(self, answer: dict[str, object]) -> str:
        return last_line(str(answer.get("error")).encode("utf-8", "replace"))


def _check_root(path: str) -> None:
    try:
        if os.path.samefile(path, "/"):
            raise DeliveryError(f"{path} is the root of this host, not of a guest")
        is_root = os.path.isdir(os.path.join(path, "etc"))
    except OSError as error:
        raise DeliveryError(f"{path} cannot be used: {error.strerror}") from None
    if not is_root:
        raise DeliveryError(
            f"there is no /etc in {path}", hint="is the guest's file system mounted there?"
        )


def _is_init(operation: Operation) -> bool:
    match operation:
        case Write(path=path) | Delete(path=path):
            return path.startswith(_INIT_SCRIPTS)
        case _:
            return False


def _hint(answer: dict[str, object]) -> str:
    why = str(answer.get("error"))
    match why:
        case _ if "python3-guestfs" in why:
            return "apt install python3-guestfs; or mount the disk and name its folder"
        case _ if "supermin" in why or "LIBGUESTFS_DEBUG" in why:
            return "libguestfs needs a readable kernel in /boot; try libguestfs-test-tool"
        case _ if "not permitted" in why:
            return "this takes root"
        case _:
            return ""


def _request(operation: Operation) -> dict[str, object]:
    match operation:
        case Write(path=path, file=file):
            owner = list(file.owner) if file.owner is not None else None
            return {
                "do": "write",
                "path": path,
                "content": base64.b64encode(file.content).decode(),
                "mode": file.mode,
                "owner": owner,
            }
        case MakeSymlink(path=path, target=target):
            return {
                "do": "link",
                "path": path,
                "target": base64.b64encode(as_bytes(target)).decode(),
            }
        case Delete(path=path):
            return {"do": "delete", "path": path}
        case MakeFolder(path=path, mode=mode):
            return {"do": "make-folder", "path": path, "mode": mode}
        case RemoveFolder(path=path):
            return {"do": "remove-folder", "path": path}
        case _:
            assert_never(operation)


def _node(value: dict[str, object]) -> Node:
    """As our own child wrote it; only what is in the contents is the guest's."""
    match value:
        case {"kind": "file", "content": str(content), "mode": int(mode), "owner": owner}:
            data = base64.b64decode(content)
            match owner:
                case [int(uid), int(gid)]:
                    return File(content=data, mode=mode, owner=(uid, gid))
                case _:
                    return File(content=data, mode=mode)
        case {"kind": "link", "target": str(target)}:
            return Symlink(target=base64.b64decode(target).decode("utf-8", "surrogateescape"))
        case {"kind": "folder", "empty": bool(empty)}:
            return Folder(empty=empty)
        case _:
            return Other(what=str(value.get("what")))
