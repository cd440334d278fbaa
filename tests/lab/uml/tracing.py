#!/usr/bin/python3
"""ptrace on this machine, by which User-mode Linux controls its processes.

    tracing.py              prints how many bytes of extended registers a process has here

**Register sets.** User-mode Linux 6.1 and 6.12 have room for 2,696 bytes of extended registers
(NT_X86_XSTATE, a constant of theirs). With AMX (Xeons since Sapphire Rapids) there are 11,008; the
host's kernel refuses to set a part of them, and the lab's first process dies: "Attempted to kill
init! exitcode=0x0000000b". registers.c, preloaded, cures that. The kernel is asked for the size,
not the processor for its name: what counts is what ptrace does here. Where it is not needed it is
left out: with it, a fork in the lab takes a third longer.

**Memory.** The memory of User-mode Linux is a file in $TMPDIR, from which it also runs programs.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("registers.c")
UML_SIZE = 2696
# Decides in place of the size: "merge" or "plain". For trying both on one machine.
FORCED = "XENLB_UML_REGISTERS"

PTRACE_TRACEME = 0
PTRACE_GETREGSET = 0x4204
PTRACE_SETREGSET = 0x4205
NT_X86_XSTATE = 0x202


class Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class TracingError(Exception):
    """ptrace does not work here; the message says which call failed and why."""


@functools.cache
def host_size() -> int:
    """Bytes of extended registers that ptrace shows of a process on this machine.

    In a process of its own: a traced child cannot be forked safely beside other threads. Raises
    TracingError.
    """
    command = [sys.executable, "-IS", str(Path(__file__))]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    if result.returncode != 0:
        raise TracingError(result.stderr.strip() or f"status {result.returncode}")
    return int(result.stdout)


def needs_merge(size: int, forced: str = "") -> bool:
    """Whether linux.uml has to be given registers.c on a host with register sets of `size` bytes.

    `forced`: what the environment says of it (see FORCED).
    """
    return forced == "merge" or (forced != "plain" and size > UML_SIZE)


def compile_library(target: Path) -> None:
    """Compiles registers.c to the shared library `target`; raises CalledProcessError."""
    flags = ["-shared", "-fPIC", "-O2", "-Wall", "-Werror"]
    command = ["cc", *flags, "-o", str(target), str(SOURCE), "-ldl"]
    subprocess.run(command, capture_output=True, text=True, check=True)


def lacking(*, temporary: Path, isolated: bool) -> tuple[str, ...]:
    """What keeps User-mode Linux from running here, one sentence and its cure each.

    `isolated`: the lab mounts a tmpfs of its own below `temporary`.
    """
    found = []
    try:
        host_size()
    except TracingError as error:
        found.append(trace_problem(str(error), yama_scope=_yama_scope(), filtered=_is_filtered()))
    if not isolated and not _maps_programs(temporary):
        found.append(
            f"Programs cannot be mapped from {temporary} (mounted with noexec?): "
            "set TMPDIR to a folder on another file system."
        )
    return tuple(found)


def trace_problem(error: str, *, yama_scope: int, filtered: bool) -> str:
    """The sentence for a machine on which ptrace fails with `error`."""
    if yama_scope >= 2:
        cure = f"sysctl -w kernel.yama.ptrace_scope=1 (it is {yama_scope})"
    elif filtered:
        cure = (
            "a seccomp filter is in force; start the container with "
            "--cap-add SYS_PTRACE --security-opt seccomp=unconfined"
        )
    else:
        cure = "find out which security module of this machine forbids it"
    return f"ptrace does not work ({error}): {cure}"


def _yama_scope() -> int:
    path = Path("/proc/sys/kernel/yama/ptrace_scope")
    return int(path.read_text()) if path.exists() else 0


def _is_filtered() -> bool:
    return "Seccomp:\t2" in Path("/proc/self/status").read_text()


def _maps_programs(directory: Path) -> bool:
    with tempfile.TemporaryFile(dir=directory) as file:
        os.ftruncate(file.fileno(), mmap.PAGESIZE)
        try:
            mmap.mmap(file.fileno(), mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_EXEC).close()
        except PermissionError:
            return False
    return True


# In the process of its own ----------------------------------------------------------------


def _ptrace(libc: ctypes.CDLL, request: int, pid: int, address: int, data: object) -> None:
    if libc.ptrace(request, pid, ctypes.c_void_p(address), data) == -1:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def _stopped_child(libc: ctypes.CDLL) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            _ptrace(libc, PTRACE_TRACEME, 0, 0, None)
        except OSError as error:
            os._exit(error.errno or 1)
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if os.WIFEXITED(status):
        number = os.waitstatus_to_exitcode(status)
        raise OSError(number, os.strerror(number))
    return pid


def main() -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    call = "PTRACE_TRACEME"
    pid = 0
    try:
        pid = _stopped_child(libc)
        call = "PTRACE_GETREGSET"
        room = ctypes.create_string_buffer(1 << 16)
        registers = Iovec(ctypes.addressof(room), len(room))
        _ptrace(libc, PTRACE_GETREGSET, pid, NT_X86_XSTATE, ctypes.byref(registers))
    except OSError as error:
        print(f"{call}: {error.strerror}", file=sys.stderr)
        return 1
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    print(registers.length)
    return 0


if __name__ == "__main__":
    sys.exit(main())
