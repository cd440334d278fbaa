"""The files of a running guest, read and changed by scripts over a channel.

The scripts need a POSIX shell (dash, bash, busybox), ls, od, readlink, chmod, chown, mv, ln, rm,
mkdir and rmdir. Contents are hexadecimal digits in the output and printf's octal escapes in the
script, so no content can end a frame or a command. The output is untrusted.
"""

import asyncio
import re
import shlex
from collections.abc import Iterator
from typing import assert_never

from xenlb.guestside.install.operations import (
    LARGEST,
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
from xenlb.guestside.transport.channel import Channel, DeliveryError, Output

_HEAD = """\
LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin
export LC_ALL PATH
umask 077
set -f +e
"""

# A frame is a line `=NUMBER KIND …`, followed by lines of hexadecimal digits.
_READ = """\
for tool in od ls readlink; do
    command -v "$tool" >/dev/null || { printf '=lacks %s\\n' "$tool"; exit 1; }
done
fail() { printf '=failed %s\\n' "$1"; exit 1; }
file() {
    p=$r/$2
    if [ -h "$p" ]; then
        printf '=%s link\\n' "$1"
        readlink "$p" | od -A n -v -t x1
    elif [ -f "$p" ]; then
        set -- "$1" $(ls -ldn "$p")
        printf '=%s file %s %s %s\\n' "$1" "$2" "$4" "$5"
        od -A n -v -t x1 -N "$most" "$p" || fail "$1"
    elif [ -d "$p" ]; then
        printf '=%s folder\\n' "$1"
    elif [ -e "$p" ]; then
        printf '=%s other\\n' "$1"
    fi
}
folder() {
    p=$r/$2
    if [ -d "$p" ]; then
        if [ -n "$(ls -A "$p" 2>/dev/null)" ]; then
            printf '=%s full\\n' "$1"
        else
            printf '=%s empty\\n' "$1"
        fi
    elif [ -e "$p" ] || [ -h "$p" ]; then
        printf '=%s other\\n' "$1"
    fi
}
"""

# A new file is made beside the old one, gets its rights, and replaces it in one step. printf is no
# special builtin, so a write error does not end the shell.
_WRITE = """\
t=
labels=$(command -v restorecon) || labels=
fail() { [ -z "$t" ] || rm -f "$t" 2>/dev/null; printf '=failed %s\\n' "$n"; exit 1; }
at() { n=$1 p=$r/$2 t=; }
free() {
    if [ -d "$p" ] && [ ! -h "$p" ]; then printf '%s\\n' 'it is a folder' >&2; fail; fi
}
label() { [ -z "$labels" ] || "$labels" "$p" >/dev/null 2>&1 || :; }
begin() {
    free
    t=${p%/*}/.${p##*/}.xenlb
    rm -f "$t" || fail
    set -C
    printf '' >"$t" || fail
    set +C
}
finish() {
    [ -z "$2" ] || chown "$2" "$t" || fail
    chmod "$1" "$t" || fail
    if [ -h "$p" ]; then rm -f "$p" || fail; fi
    mv -f "$t" "$p" || fail
    t=
    label
}
link() { free; rm -f "$p" || fail; ln -s -- "$1" "$p" || fail; label; }
folder() { [ -d "$p" ] || mkdir -m "$1" "$p" || fail; label; }
"""

OD_LINE = 16  # bytes in a line of od(1)
_CHUNK = 1024  # bytes of content a line
# No dash: printf would read it as an option.
_PLAIN = re.compile(rb"[A-Za-z0-9 ._/:=,;@#+]")
_FRAME = re.compile(
    rb"=(\d{1,4}) "
    rb"(?:(link|folder|other|full|empty)|file ([-a-zA-Z]{10})[.+@]? (\d{1,10}) (\d{1,10}))"
)
_OWNER = re.compile(rb"=owner (\d{1,10}) (\d{1,10})")
_HEX = re.compile(rb"[0-9a-f ]*")


class RemoteFiles:
    """An Executor. `name`: of the guest, for messages. `root`: another root, for tests."""

    def __init__(self, channel: Channel, *, name: str, root: str = "") -> None:
        self._channel = channel
        self._name = name
        self._root = root

    async def read(self, *, files: tuple[str, ...], folders: tuple[str, ...]) -> Present:
        """Read the nodes at these paths by one script. Raises DeliveryError."""
        script = "".join(_read_script(files, folders, root=self._root))
        output = await self._channel.run(script)
        if output.status != 0 or not output.out.endswith(b"=end\n"):
            raise DeliveryError(f"the files of {self._name} cannot be read: {_why(output)}")
        try:
            return await asyncio.to_thread(parse_frames, output.out, files, folders)
        except ValueError:
            raise DeliveryError(
                f"the files of {self._name} cannot be read: the guest's output is invalid"
            ) from None

    async def perform(self, operations: tuple[Operation, ...]) -> None:
        """Perform operations by one script, until one fails. Raises DeliveryError."""
        if not operations:
            return
        output = await self._channel.run("".join(write_script(operations, root=self._root)))
        if output.status == 0 and output.out.endswith(b"=end\n"):
            return
        match = re.search(rb"=failed (\d{1,5})\n\Z", output.out)
        number = int(match[1]) if match else len(operations)
        failed = str(operations[number]) if number < len(operations) else "change its files"
        raise DeliveryError(
            f"{self._name} could not {failed}: {_why(output)}",
            hint="earlier changes stay; the next apply goes on from there",
        )


def _why(output: Output) -> str:
    if match := re.search(rb"=lacks ([a-z]{1,20})\n\Z", output.out):
        return f"the guest has no {match[1].decode()}"
    return output.complaint or f"the script ended with status {output.status}"


def _read_script(files: tuple[str, ...], folders: tuple[str, ...], *, root: str) -> Iterator[str]:
    yield _HEAD
    yield f"r={shlex.quote(root)} most={LARGEST + 1}\n"
    yield _READ
    yield 'set -- $(ls -ldn "$r/")\nprintf \'=owner %s %s\\n\' "$3" "$4"\n'
    for number, path in enumerate((*files, *folders)):
        function = "file" if number < len(files) else "folder"
        yield f"{function} {number} {shlex.quote(path)}\n"
    yield "printf '=end\\n'\n"


def write_script(operations: tuple[Operation, ...], *, root: str) -> Iterator[str]:
    """Yield the pieces of a shell script; it prints `=failed N` for operation N, or `=end`."""
    yield _HEAD
    yield f"r={shlex.quote(root)}\n"
    yield _WRITE
    for number, operation in enumerate(operations):
        yield f"at {number} {shlex.quote(operation.path)}\n"
        match operation:
            case Write(file=file):
                yield "begin\n"
                for start in range(0, len(file.content), _CHUNK):
                    chunk = octal(file.content[start : start + _CHUNK])
                    yield f"printf '{chunk}' >>\"$t\" || fail\n"
                owner = "" if file.owner is None else f"{file.owner[0]}:{file.owner[1]}"
                yield f"finish {file.mode:04o} '{owner}'\n"
            case MakeSymlink(target=target):
                # Octal as well: a target may be no text. The dot protects line ends at its end.
                yield f"link=$(printf '{octal(as_bytes(target))}.')\nlink \"${{link%.}}\"\n"
            case Delete():
                yield 'rm -f "$p" || fail\n'
            case MakeFolder(mode=mode):
                yield f"folder {mode:04o}\n"
            case RemoveFolder():
                yield 'rmdir "$p" 2>/dev/null || :\n'
            case _:
                assert_never(operation)
    yield "sync\nprintf '=end\\n'\n"


def octal(data: bytes) -> str:
    """The data as printf's first argument in quotes: plain characters and \\NNN only."""
    return "".join(chr(byte) if _PLAIN.match(bytes((byte,))) else f"\\{byte:03o}" for byte in data)


def parse_frames(out: bytes, files: tuple[str, ...], folders: tuple[str, ...]) -> Present:
    """The nodes at the paths that were read. Raises ValueError.

    Four files of LARGEST take some 0.1 s: run it in a thread.
    """
    paths = (*files, *folders)
    if out.count(b"\n") > len(paths) * (LARGEST // OD_LINE + 3) + 2:
        raise ValueError("more lines than there can be")
    present: dict[str, Node] = dict.fromkeys(paths, MISSING)
    answered: set[int] = set()
    first, _, out = out.partition(b"\n")
    if (root := _OWNER.fullmatch(first)) is None:
        raise ValueError("no owner of the root")
    for head, body in _frames(out):
        match = _FRAME.fullmatch(head)
        if match is None or (number := int(match[1])) in answered or number >= len(paths):
            raise ValueError("not a requested frame")
        answered.add(number)
        node = _node(match, body, (int(root[1]), int(root[2])))
        if isinstance(node, Folder) is not (number >= len(files)) and not isinstance(node, Other):
            raise ValueError("a frame of the wrong kind")
        if present[paths[number]] == MISSING:  # also requested as a file, which tells more
            present[paths[number]] = node
    return present


def _frames(out: bytes) -> Iterator[tuple[bytes, bytes]]:
    head, body = b"", [b""]
    for line in out.removesuffix(b"=end\n").split(b"\n"):
        if line.startswith(b"="):
            if head:
                yield head, b"".join(body)
            head, body = line, []
        elif _HEX.fullmatch(line):
            body.append(line)
        else:
            raise ValueError("neither a frame nor digits")
    if head:
        yield head, b"".join(body)


def _node(frame: re.Match[bytes], body: bytes, root: tuple[int, int]) -> Node:
    data = bytes.fromhex(body.decode())
    match frame[2]:
        case None:
            if len(data) > LARGEST:
                return Other(what=f"a file larger than {LARGEST} bytes")
            owner = int(frame[4]), int(frame[5])
            return File(
                content=data,
                mode=mode_of(frame[3].decode()),
                owner=owner if owner != root else None,
            )
        case b"link":
            target = data.removesuffix(b"\n").decode("utf-8", "surrogateescape")
            if not target or "\0" in target or len(target) > 4096:
                raise ValueError("not a link's target")
            return Symlink(target=target)
        case b"full" | b"empty":
            return Folder(empty=frame[2] == b"empty")
        case b"folder":
            return Other(what="a folder")
        case _:
            return Other(what="neither a file nor a folder nor a link")


def mode_of(shown: str) -> int:
    """The mode that `ls -l` shows: -rwsr-xr-t is 05755."""
    mode = 0
    for n, (letter, plain) in enumerate(zip(shown[1:], "rwxrwxrwx", strict=True)):
        bit = 0o400 >> n
        special = {2: 0o4000, 5: 0o2000, 8: 0o1000}.get(n, 0)
        match letter:
            case "-":
                pass
            case _ if letter == plain:
                mode |= bit
            case "s" | "t" if special:
                mode |= bit | special
            case "S" | "T" | "l" if special:
                mode |= special
            case _:
                raise ValueError("not what ls shows")
    return mode
