"""The program that touches the files of a guest that is off: image.py starts it, in a process of
its own, and tells it on standard input what to read or to do.

It is not imported, and imports nothing of xenlb: it runs alone, by the distribution's Python where
libguestfs is needed. A guest's folders may be links to anywhere, /../../etc of the host among it.
So for a folder it first makes that its own root, chroot(2), after which no path leads out, and no
module is loaded any more: it would be the guest's. A disk image is opened by libguestfs in a small
virtual machine, where the same holds.
"""

import base64
import contextlib
import errno
import json
import os
import stat
import sys
from typing import Any

LARGEST = 256 * 1024
PARTITION_TABLES = 64  # file systems of a disk that are looked at


class Folder:
    """The process's own root."""

    def __init__(self, path: str) -> None:
        root = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        os.fchdir(root)
        os.chroot(".")
        os.close(root)
        os.chdir("/")
        sys.meta_path.clear()
        sys.path.clear()
        info = os.stat("/")
        self.owner = info.st_uid, info.st_gid

    def lstat(self, path: str) -> tuple[int, int, int, int] | None:
        """Mode, owner, group, size."""
        return self._stat(path, os.lstat)

    def stat(self, path: str) -> tuple[int, int, int, int] | None:
        return self._stat(path, os.stat)

    def _stat(self, path: str, call: Any) -> tuple[int, int, int, int] | None:
        try:
            info = call(path)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return None
            raise
        return info.st_mode, info.st_uid, info.st_gid, info.st_size

    def content(self, path: str) -> bytes:
        # Between lstat and here it may have become a FIFO or a device: no waiting for those.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY)
        with os.fdopen(fd, "rb") as stream:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, "it is not a file", path)
            return stream.read(LARGEST + 1)

    def target(self, path: str) -> bytes:
        return os.readlink(os.fsencode(path))

    def is_empty(self, path: str) -> bool:
        with os.scandir(path) as entries:
            return next(entries, None) is None

    def write(self, path: str, content: bytes, mode: int, owner: list[int] | None) -> None:
        new = _beside(path)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(fd, "wb") as stream:
                stream.write(content)
                os.fchown(fd, *(owner or self.owner))
                os.fchmod(fd, mode)
                self._label(new, path)
                stream.flush()
                os.fsync(fd)
            os.rename(new, path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(new)
            raise

    def _label(self, new: str, path: str) -> None:
        """SELinux's, of the file before or of its folder: that is what the guest would give it."""
        for source in (path, os.path.dirname(path)):
            with contextlib.suppress(OSError):
                label = os.getxattr(source, "security.selinux", follow_symlinks=False)
                os.setxattr(new, "security.selinux", label, follow_symlinks=False)
                return

    def link(self, path: str, target: bytes) -> None:
        new = os.fsencode(_beside(path))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
        os.symlink(target, new)
        os.lchown(new, *self.owner)
        os.rename(new, path)

    def delete(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def make_folder(self, path: str, mode: int) -> None:
        os.mkdir(path, 0o700)
        os.chown(path, *self.owner, follow_symlinks=False)
        os.chmod(path, mode)
        self._label(path, os.path.dirname(path))

    def remove_folder(self, path: str) -> None:
        with contextlib.suppress(OSError):
            os.rmdir(path)

    def close(self) -> None:
        pass


class Disk:
    """A disk image, by libguestfs."""

    def __init__(self, disks: list[dict[str, str]], *, writing: bool) -> None:
        import guestfs  # noqa: PLC0415 - only here, and only the distribution's Python has it

        self.owner = 0, 0
        self._g = g = guestfs.GuestFS(python_return_dict=True)
        for disk in disks:
            g.add_drive_opts(disk["path"], format=disk["format"], readonly=not writing)
        g.launch()
        self._mount(writing)

    def _mount(self, writing: bool) -> None:
        g = self._g
        mount = g.mount if writing else g.mount_ro
        roots = g.inspect_os()
        if len(roots) > 1:
            raise OSError(errno.EINVAL, "there is more than one system on it")
        if roots:
            points = g.inspect_get_mountpoints(roots[0])
            for point in sorted(points, key=len):
                if point == "/":
                    mount(points[point], point)
                else:
                    with contextlib.suppress(RuntimeError):
                        mount(points[point], point)
            return
        for device in list(g.list_filesystems())[:PARTITION_TABLES]:
            with contextlib.suppress(RuntimeError):
                mount(device, "/")
                if g.is_dir("/etc"):
                    return
                g.umount_all()
        raise OSError(errno.ENOENT, "there is no system on it")

    def lstat(self, path: str) -> tuple[int, int, int, int] | None:
        return self._stat(path, self._g.lstatns)

    def stat(self, path: str) -> tuple[int, int, int, int] | None:
        return self._stat(path, self._g.statns)

    def _stat(self, path: str, call: Any) -> tuple[int, int, int, int] | None:
        try:
            info = call(path)
        except RuntimeError as error:
            # The bindings keep no number; libguestfs's messages are not translated.
            absent = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
            if str(error).endswith(tuple(os.strerror(each) for each in absent)):
                return None
            raise
        return info["st_mode"], info["st_uid"], info["st_gid"], info["st_size"]

    def content(self, path: str) -> bytes:
        data = self._g.pread(path, LARGEST + 1, 0)
        return data if isinstance(data, bytes) else os.fsencode(data)

    def target(self, path: str) -> bytes:
        return os.fsencode(self._g.readlink(path))

    def is_empty(self, path: str) -> bool:
        return not self._g.ls(path)

    def write(self, path: str, content: bytes, mode: int, owner: list[int] | None) -> None:
        g, new = self._g, _beside(path)
        g.rm_f(new)
        g.write(new, content)
        g.chown(*(owner or [0, 0]), new)
        g.chmod(mode, new)
        self._label(new, path)
        g.mv(new, path)

    def _label(self, new: str, path: str) -> None:
        g = self._g
        for source in (path, os.path.dirname(path)):
            with contextlib.suppress(RuntimeError):
                label = g.lgetxattr(source, "security.selinux")
                g.lsetxattr("security.selinux", label, len(label), new)
                return

    def link(self, path: str, target: bytes) -> None:
        self._g.rm_f(path)
        self._g.ln_s(os.fsdecode(target), path)

    def delete(self, path: str) -> None:
        self._g.rm_f(path)

    def make_folder(self, path: str, mode: int) -> None:
        self._g.mkdir_mode(path, mode)
        self._label(path, os.path.dirname(path))

    def remove_folder(self, path: str) -> None:
        with contextlib.suppress(RuntimeError):
            self._g.rmdir(path)

    def close(self) -> None:
        self._g.umount_all()
        self._g.shutdown()  # here errors of writing come to light
        self._g.close()


def _beside(path: str) -> str:
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.xenlb")


def read_file(tree: "Folder | Disk", path: str) -> dict[str, Any] | None:
    if (info := tree.lstat(path)) is None:
        return None
    mode, uid, gid, size = info
    if stat.S_ISLNK(mode):
        return {"kind": "link", "target": _text(tree.target(path))}
    if stat.S_ISDIR(mode):
        return {"kind": "other", "what": "a folder"}
    if not stat.S_ISREG(mode):
        return {"kind": "other", "what": "neither a file nor a folder nor a link"}
    content = tree.content(path) if size <= LARGEST else b""
    if size > LARGEST or len(content) > LARGEST:
        return {"kind": "other", "what": f"a file larger than {LARGEST} bytes"}
    owner = [uid, gid] if (uid, gid) != tree.owner else None
    mode = stat.S_IMODE(mode)
    return {"kind": "file", "mode": mode, "owner": owner, "content": _text(content)}


def read_folder(tree: "Folder | Disk", path: str) -> dict[str, Any] | None:
    if (info := tree.stat(path)) is None:
        return None if tree.lstat(path) is None else {"kind": "other", "what": "no folder"}
    if not stat.S_ISDIR(info[0]):
        return {"kind": "other", "what": "no folder"}
    return {"kind": "folder", "empty": tree.is_empty(path)}


def perform(tree: "Folder | Disk", operation: dict[str, Any]) -> None:
    path = "/" + operation["path"]
    if operation["do"] in ("write", "link"):
        info = tree.lstat(path)
        if info is not None and stat.S_ISDIR(info[0]):
            raise OSError(errno.EISDIR, "it is a folder")
    match operation["do"]:
        case "write":
            content = base64.b64decode(operation["content"])
            tree.write(path, content, operation["mode"], operation["owner"])
        case "link":
            tree.link(path, base64.b64decode(operation["target"]))
        case "delete":
            tree.delete(path)
        case "make-folder":
            if tree.stat(path) is None:
                tree.make_folder(path, operation["mode"])
        case "remove-folder":
            tree.remove_folder(path)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def answer(request: dict[str, Any]) -> dict[str, Any]:
    done = 0
    try:
        operations = request["operations"]
        tree: Folder | Disk = (
            Folder(request["root"])
            if "root" in request
            else Disk(request["disks"], writing=bool(operations))
        )
        found = [read_file(tree, "/" + path) for path in request["files"]]
        found += [read_folder(tree, "/" + path) for path in request["folders"]]
        for operation in operations:
            perform(tree, operation)
            done += 1
        tree.close()
    except OSError as error:
        return {"error": error.strerror or str(error), "done": done}
    except ImportError:
        return {"error": "python3-guestfs is not installed", "done": done}
    except RuntimeError as error:  # libguestfs's
        return {"error": str(error), "done": done}
    return {"found": found, "done": done}


if __name__ == "__main__":
    os.umask(0o077)
    json.dump(answer(json.load(sys.stdin)), sys.stdout)
