"""What a lab says where it cannot run; tests/lab/preflight.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.lab import preflight
from tests.lab.host import LabError
from tests.lab.preflight import Machine, Needs, problems
from tests.lab.uml import tracing

NEEDS = Needs(
    lab="The lab", missing_packages=(), memory_mib=1000, cache_mib=2000, temporary_mib=300
)
GOOD = Machine(
    architecture="x86_64",
    memory_mib=1000,
    cache=Path("/cache"),
    cache_mib=2000,
    temporary=Path("/tmp"),
    temporary_mib=300,
)


def test_nothing_is_said_of_a_machine_that_has_all() -> None:
    assert problems(NEEDS, GOOD) == []


@pytest.mark.parametrize(
    ("machine", "sentence"),
    [
        ({"architecture": "aarch64"}, "It runs on x86_64 only; this machine is aarch64."),
        ({"memory_mib": 999}, "It needs 1000 MiB of memory, and 999 MiB are available: end "),
        ({"cache_mib": 1999}, "It needs 2000 MiB of disk in /cache, and 1999 MiB are free: remove"),
        ({"temporary_mib": 299}, "It needs 300 MiB of disk in /tmp, and 299 MiB are free: remove"),
    ],
)
def test_each_lack_is_one_sentence_with_its_cure(machine: dict[str, object], sentence: str) -> None:
    (found,) = problems(NEEDS, replace(GOOD, **machine))  # type: ignore[arg-type]
    assert found.startswith(sentence)


def test_packages_are_named_as_apt_takes_them() -> None:
    (found,) = problems(replace(NEEDS, missing_packages=("kmod", "gcc")), GOOD)
    assert found == "Debian packages are missing: apt-get install kmod gcc"


@pytest.mark.parametrize(
    ("scope", "filtered", "cure"),
    [
        (3, False, "sysctl -w kernel.yama.ptrace_scope=1 (it is 3)"),
        (1, True, "a seccomp filter is in force; start the container with --cap-add SYS_PTRACE"),
        (0, False, "find out which security module"),
    ],
)
def test_a_ptrace_that_fails_has_its_cure(scope: int, filtered: bool, cure: str) -> None:
    said = tracing.trace_problem("Not permitted", yama_scope=scope, filtered=filtered)
    assert said.startswith(f"ptrace does not work (Not permitted): {cure}")


def test_all_is_told_at_once() -> None:
    needs = replace(NEEDS, memory_mib=10**9, lacking=("One thing: do this", "Another: do that"))
    with pytest.raises(LabError) as told:
        preflight.require(needs)
    first, *rest = str(told.value).splitlines()
    assert first == "The lab cannot run here."
    assert [line.partition(":")[0] for line in rest][:2] == ["  One thing", "  Another"]
    assert "of memory" in rest[2]


def test_this_machine_is_described() -> None:
    machine = preflight.look()
    assert machine.memory_mib > 0
    assert machine.cache_mib > 0
    assert machine.temporary_mib > 0
