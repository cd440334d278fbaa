"""User-mode Linux on any machine: register sets larger than its own (tests/lab/uml/tracing.py), and
the processor it stays on (tests/lab/uml/supervise.py)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.host import CHECKOUT
from tests.lab.uml import tracing
from tests.lab.uml.supervise import processor

# Sets the first 576 bytes (the registers of SSE, and the header) of a stopped process, as User-mode
# Linux sets its 2,696 of 11,008; prints what became of the call, of these and of those behind.
SET_A_PART = """
import ctypes, os, sys
sys.path.insert(0, sys.argv[1])
from tests.lab.uml import tracing
from tests.lab.uml.supervise import processor
from tests.lab.uml.tracing import NT_X86_XSTATE, Iovec

libc = ctypes.CDLL(None, use_errno=True)
pid = tracing._stopped_child(libc)

def registers(request, data):
    vector = Iovec(ctypes.addressof(data), len(data))
    tracing._ptrace(libc, request, pid, NT_X86_XSTATE, ctypes.byref(vector))
    return data.raw[:vector.length]

before = registers(tracing.PTRACE_GETREGSET, ctypes.create_string_buffer(1 << 16))
part = bytearray(before[:576])
part[160:176] = b"\\x5a" * 16  # XMM0, and the bit of the header that says it is in use
part[512] |= 2
try:
    registers(tracing.PTRACE_SETREGSET, ctypes.create_string_buffer(bytes(part), 576))
except OSError as error:
    print(error.strerror)
    os.kill(pid, 9)
    sys.exit()
after = registers(tracing.PTRACE_GETREGSET, ctypes.create_string_buffer(1 << 16))
os.kill(pid, 9)
print(len(after) == len(before), after[160:176].hex(), after[576:] == before[576:])
"""


@pytest.mark.parametrize(
    ("size", "forced", "merged"),
    [
        (11_008, "", True),  # a Xeon with AMX
        (2_696, "", False),  # with AVX-512 and protection keys
        (2_432, "", False),  # an AMD EPYC
        (832, "", False),  # with AVX alone
        (11_008, "plain", False),
        (2_432, "merge", True),
    ],
)
def test_only_a_set_that_is_larger_than_its_own_is_merged(
    size: int, forced: str, merged: bool
) -> None:
    assert tracing.needs_merge(size, forced) is merged


def test_this_machine_tells_the_size_of_its_set() -> None:
    assert tracing.host_size() >= 576
    assert tracing.lacking(temporary=Path("/tmp"), isolated=True) == ()


def set_a_part(preload: str) -> str:
    command = [sys.executable, "-c", SET_A_PART, str(CHECKOUT)]
    return subprocess.run(
        command, env={"LD_PRELOAD": preload}, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_a_part_is_refused_by_the_kernel_and_set_by_the_library(tmp_path: Path) -> None:
    assert set_a_part("") == "Bad address"
    library = tmp_path / "registers.so"
    tracing.compile_library(library)
    assert set_a_part(str(library)) == f"True {'5a' * 16} True"


def test_the_process_that_has_the_xen_lab_has_a_processor_for_itself() -> None:
    workers = ("", "gw0", "gw1", "gw2", "gw3")
    assert [processor({0, 1}, worker) for worker in workers] == [0, 0, 1, 1, 1]
    assert [processor({5, 3, 9}, worker) for worker in workers] == [3, 3, 5, 9, 9]
    assert {processor({4}, worker) for worker in workers} == {4}
