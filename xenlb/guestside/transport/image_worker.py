"""Program that reads and changes the files of a powered-off guest; a child process of image.py.

It reads a request on standard input and writes a reply to standard output, both JSON. It is not
imported and imports nothing of xenlb: libguestfs needs the distribution's Python. Symbolic links in
a guest's folder may lead to any place of the host. So the program makes that folder its own root by
chroot(2), and loads no modules afterwards: they would be the guest's. libguestfs opens a disk image
in a small virtual machine, where the same holds.
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
MOST_FILE_SYSTEMS = 64  # of a disk
ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
Info = tuple[int, int, int, int]  # mode, owner, group, size


class _Folder:
    """A folder of this host, as the root of this process."""

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

    def stat(self, path: str, *, follow: bool = False) -> Info | None:
        try:
            info = os.stat(path, follow_symlinks=follow)
        except OSError as error:
            if error.errno in ABSENT:
                return None
            raise
        return info.st_mode, info.st_uid, info.st_gid, info.st_size

    def content(self, path: str) -> bytes:
        # It may have become a FIFO or a device since the stat: never wait for those.
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
        self.delete(new)
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
        """Set SELinux's label of the former file or of the folder, as the guest would do."""
        for source in (path, os.path.dirname(path)):
            with contextlib.suppress(OSError):
                label = os.getxattr(source, "security.selinux", follow_symlinks=False)
                os.setxattr(new, "security.selinux", label, follow_symlinks=False)
                return

    def link(self, path: str, target: bytes) -> None:
        new = _beside(path)
        self.delete(new)
        os.symlink(target, os.fsencode(new))
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


class _Disk:
    """A disk image, opened by libguestfs."""

    def __init__(self, disks: list[dict[str, str]], *, writing: bool) -> None:
        import guestfs  # noqa: PLC0415 - only the distribution's Python has it

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
                with contextlib.suppress(*([RuntimeError] if point != "/" else [])):
                    mount(points[point], point)
            return
        for device in list(g.list_filesystems())[:MOST_FILE_SYSTEMS]:
            with contextlib.suppress(RuntimeError):
                mount(device, "/")
                if g.is_dir("/etc"):
                    return
                g.umount_all()
        raise OSError(errno.ENOENT, "there is no system on it")

    def stat(self, path: str, *, follow: bool = False) -> Info | None:
        try:
            info = self._g.statns(path) if follow else self._g.lstatns(path)
        except RuntimeError as error:
            # The bindings keep no number; libguestfs's messages are not translated.
            if str(error).endswith(tuple(map(os.strerror, ABSENT))):
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
        self._g.shutdown()  # reports errors of writing
        self._g.close()


def _beside(path: str) -> str:
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.xenlb")


def _read_file(tree: "_Folder | _Disk", path: str) -> list[Any] | None:
    if (info := tree.stat(path)) is None:
        return None
    mode, uid, gid, size = info
    if stat.S_ISLNK(mode):
        return ["link", _text(tree.target(path))]
    if stat.S_ISDIR(mode):
        return ["other", "a folder"]
    if not stat.S_ISREG(mode):
        return ["other", "neither a file nor a folder nor a link"]
    content = tree.content(path) if size <= LARGEST else b""
    if size > LARGEST or len(content) > LARGEST:
        return ["other", f"a file larger than {LARGEST} bytes"]
    owner = [uid, gid] if (uid, gid) != tree.owner else None
    return ["file", _text(content), stat.S_IMODE(mode), owner]


def _read_folder(tree: "_Folder | _Disk", path: str) -> list[Any] | None:
    info = tree.stat(path, follow=True)
    if info is not None and stat.S_ISDIR(info[0]):
        return ["folder", tree.is_empty(path)]
    return None if info is None and tree.stat(path) is None else ["other", "no folder"]


def _perform(tree: "_Folder | _Disk", method: str, path: str, *arguments: Any) -> None:
    if method in ("write", "link"):
        info = tree.stat(path)
        if info is not None and stat.S_ISDIR(info[0]):
            raise OSError(errno.EISDIR, "it is a folder")
        arguments = (base64.b64decode(arguments[0]), *arguments[1:])
    if method != "make_folder" or tree.stat(path, follow=True) is None:
        getattr(tree, method)(path, *arguments)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _reply(request: dict[str, Any]) -> dict[str, Any]:
    done = 0
    try:
        operations = request["operations"]
        tree: _Folder | _Disk = (
            _Folder(request["root"])
            if "root" in request
            else _Disk(request["disks"], writing=bool(operations))
        )
        nodes = [_read_file(tree, "/" + path) for path in request["files"]]
        nodes += [_read_folder(tree, "/" + path) for path in request["folders"]]
        for method, path, *arguments in operations:
            _perform(tree, method, "/" + path, *arguments)
            done += 1
        tree.close()
    except OSError as error:
        return {"error": error.strerror or str(error), "done": done}
    except ImportError:
        return {"error": "python3-guestfs is not installed", "done": done}
    except RuntimeError as error:  # libguestfs's
        return {"error": str(error), "done": done}
    return {"nodes": nodes, "done": done}


if __name__ == "__main__":
    os.umask(0o077)
    json.dump(_reply(json.load(sys.stdin)), sys.stdout)
