"""The files of a powered-off guest: below a folder, or on a disk image by libguestfs.

image_worker.py does the work in a process of its own. Two systems that write to one file system
destroy it, so libvirt is asked for the guest's state before each read and each write. A guest that
starts in between is not detected.
"""

import base64
import json
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never

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
from xenlb.guestside.transport.channel import DeliveryError, last_line, run_child

WORKER = Path(__file__).with_name("image_worker.py")
# The bindings of libguestfs are the distribution's; xenlb may run in another Python.
SYSTEM_PYTHON = "/usr/bin/python3"
LIMIT = 60.0  # seconds
LIMIT_DISK = 300.0  # a small virtual machine starts for each call, emulated without KVM
_INIT_SCRIPTS = ("etc/init.d/", "etc/rc.d/init.d/")


@dataclass(frozen=True, slots=True, kw_only=True)
class RootFolder:
    """The root of a guest as a folder of this host."""

    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A disk image; `format` as in libvirt.

    The format is never guessed from the content: a guest that writes a qcow2 header onto its raw
    disk would choose a file of the host to read.
    """

    path: str
    format: str


GuestStorage = RootFolder | tuple[Disk, ...]


class ImageFiles:
    """An Executor. `still_off` raises DeliveryError where the guest is not off."""

    def __init__(
        self, storage: GuestStorage, *, name: str, still_off: Callable[[], Awaitable[None]]
    ) -> None:
        self._storage = storage
        self._name = name
        self._still_off = still_off

    async def read(self, *, files: tuple[str, ...], folders: tuple[str, ...]) -> Present:
        """Read the nodes at these paths by one child process. Raises DeliveryError."""
        reply = await self._call(files=files, folders=folders)
        if "error" in reply:
            raise _error(f"the files of {self._name} cannot be read", reply)
        present: dict[str, Node] = {}
        for path, value in zip((*files, *folders), reply["nodes"], strict=True):
            if present.get(path, MISSING) == MISSING:
                present[path] = _node(value)
        return present

    async def perform(self, operations: tuple[Operation, ...]) -> None:
        """Perform operations by one child process. Raises DeliveryError, also for init scripts."""
        if not operations:
            return
        if any(
            isinstance(operation, Write | Delete) and operation.path.startswith(_INIT_SCRIPTS)
            for operation in operations
        ):
            raise DeliveryError(
                f"{self._name} starts its services by init scripts; only its own update-rc.d or "
                f"chkconfig can enable or disable xenlb's",
                hint="do it while the guest runs, by ssh or the guest agent",
            )
        reply = await self._call(operations=[_request(operation) for operation in operations])
        if "error" in reply:
            number = reply.get("done", len(operations))
            failed = str(operations[number]) if number < len(operations) else "close its disk"
            raise _error(f"{self._name}: cannot {failed}", reply)

    async def _call(
        self,
        *,
        files: Sequence[str] = (),
        folders: Sequence[str] = (),
        operations: Sequence[object] = (),
    ) -> dict[str, Any]:
        request: dict[str, object] = {"files": files, "folders": folders, "operations": operations}
        match self._storage:
            case RootFolder(path=path):
                _check_root(path)
                request["root"] = path
                command, limit = [sys.executable, "-I", "-S", str(WORKER)], LIMIT
            case disks:
                request["disks"] = [{"path": disk.path, "format": disk.format} for disk in disks]
                command, limit = [SYSTEM_PYTHON, "-I", str(WORKER)], LIMIT_DISK
        await self._still_off()
        output = await run_child(
            command,
            stdin=json.dumps(request).encode(),
            limit=limit,
            task=f"the work on the files of {self._name}",
            package="python3-guestfs",
        )
        try:
            reply: dict[str, Any] = json.loads(output.out)
        except ValueError:
            return {"error": last_line(output.err) or f"status {output.status}"}
        return reply


def _error(problem: str, reply: dict[str, Any]) -> DeliveryError:
    why = last_line(str(reply["error"]).encode("utf-8", "replace"))
    return DeliveryError(f"{problem}: {why}", hint=_hint(why))


def _check_root(path: str) -> None:
    try:
        if os.path.samefile(path, "/"):
            raise DeliveryError(f"{path} is the root of this host, not of a guest")
        is_root = os.path.isdir(os.path.join(path, "etc"))
    except OSError as error:
        raise DeliveryError(f"{path} cannot be used: {error.strerror}") from None
    if not is_root:
        raise DeliveryError(
            f"there is no /etc in {path}",
            hint="check that the guest's file system is mounted there",
        )


def _hint(why: str) -> str:
    match why:
        case _ if "python3-guestfs" in why:
            return "apt install python3-guestfs; or mount the disk and give --root DIR"
        case _ if "supermin" in why or "LIBGUESTFS_DEBUG" in why:
            return "libguestfs needs a readable kernel in /boot; try libguestfs-test-tool"
        case _ if "not permitted" in why:
            return "run it as root"
        case _:
            return ""


def _request(operation: Operation) -> list[object]:
    """A method of the worker's trees, and its arguments."""
    match operation:
        case Write(path=path, file=file):
            content = base64.b64encode(file.content).decode()
            return ["write", path, content, file.mode, file.owner]
        case MakeSymlink(path=path, target=target):
            return ["link", path, base64.b64encode(as_bytes(target)).decode()]
        case Delete(path=path):
            return ["delete", path]
        case MakeFolder(path=path, mode=mode):
            return ["make_folder", path, mode]
        case RemoveFolder(path=path):
            return ["remove_folder", path]
        case _:
            assert_never(operation)


def _node(value: Any) -> Node:
    """The node of a reply: the worker's own form, with untrusted contents."""
    match value:
        case None:
            return MISSING
        case ["file", content, mode, owner]:
            data = base64.b64decode(content)
            return File(content=data, mode=mode, owner=owner and (owner[0], owner[1]))
        case ["link", target]:
            return Symlink(target=base64.b64decode(target).decode("utf-8", "surrogateescape"))
        case ["folder", empty]:
            return Folder(empty=empty)
        case _:
            return Other(what=str(value[1]))
