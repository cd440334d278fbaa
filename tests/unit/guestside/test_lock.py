"""One at a time in a guest: real processes, and a real folder as the guest's root."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import UUID

import pytest

from xenlb.guestside.lock import guest_lock, lock_folder
from xenlb.guestside.transport.channel import DeliveryError

ONE, OTHER = UUID(int=1), UUID(int=2)
# Between its look and its work it waits for a line.
WORKER = """\
import asyncio, sys
from pathlib import Path
from uuid import UUID
from tests.unit.guestside.transport.deliveries import LocalChannel
from xenlb.guestside.transport.remote_files import RemoteFiles
from xenlb.guestside.transport.survey import survey_files
from xenlb.guestside.install.operations import GuestFile
from xenlb.guestside.lock import guest_lock

def say(sentence):
    print(sentence, flush=True)

async def main(folder, uuid, root, path):
    guest = RemoteFiles(LocalChannel("dash"), name="g1", root=root)
    async with guest_lock(Path(folder), UUID(uuid), name="g1", patience=60, on_wait=say):
        found = await survey_files(guest, (GuestFile(path=path, text="mine"),))
        say("looked")
        sys.stdin.readline()
        await guest.perform(found.plan.operations)
    say("done")

asyncio.run(main(*sys.argv[1:]))
"""
Process = subprocess.Popen[str]


class Bench:
    def __init__(self, folder: Path, ends: ExitStack) -> None:
        self.folder, self.root, self._ends = folder / "guests", folder / "root", ends
        (self.root / "etc").mkdir(parents=True)
        (self.root / "var/lib").mkdir(parents=True)

    def start(self, path: str, uuid: UUID = ONE) -> Process:
        process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(self.folder), str(uuid), str(self.root), path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._ends.enter_context(process)
        self._ends.callback(process.kill)
        return process

    def files(self) -> list[str]:
        return sorted(each.name for each in (self.root / "etc").iterdir())


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with ExitStack() as ends:
        yield Bench(tmp_path, ends)


def line(process: Process) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def go_on(process: Process) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    assert line(process) == "done"


def test_the_second_sees_what_the_first_has_done(bench: Bench) -> None:
    """Both at once would leave the file of one, and books that do not know it."""
    first = bench.start("etc/first")
    assert line(first) == "looked"
    second = bench.start("etc/second")
    assert line(second) == f"g1 is locked by xenlb (pid {first.pid}); waiting"
    go_on(first)
    assert bench.files() == ["first"]
    assert line(second) == "looked"
    go_on(second)
    assert bench.files() == ["second"]


def test_one_that_was_killed_holds_up_nobody(bench: Bench) -> None:
    first = bench.start("etc/first")
    assert line(first) == "looked"
    second = bench.start("etc/second")
    assert "waiting" in line(second)
    first.kill()
    assert line(second) == "looked"
    go_on(second)
    assert bench.files() == ["second"]


def test_guests_do_not_wait_for_each_other(bench: Bench) -> None:
    first, second = bench.start("etc/first", ONE), bench.start("etc/second", OTHER)
    assert (line(first), line(second)) == ("looked", "looked")


def test_patience_ends(tmp_path: Path) -> None:
    """Within one process, too: the agent has a task for each guest."""
    folder = lock_folder(tmp_path / "control.sock")

    async def both() -> None:
        async with (
            guest_lock(folder, ONE, name="g1", patience=0),
            guest_lock(folder, ONE, name="g1", patience=0),
        ):
            pass

    with pytest.raises(DeliveryError) as failed:
        asyncio.run(both())
    said = f"g1 is locked by xenlb (pid {os.getpid()}) for more than 0 s"
    assert (failed.value.message, failed.value.permitted) == (said, True)
    assert (folder / f"{ONE}.lock").stat().st_mode & 0o777 == 0o600


def test_what_lies_in_the_way(tmp_path: Path) -> None:
    async def once(folder: Path) -> None:
        async with guest_lock(folder, ONE, name="g1", patience=0):
            pass

    (tmp_path / "file").write_text("")
    (tmp_path / f"{ONE}.lock").symlink_to(tmp_path / "file")
    for folder in (tmp_path, tmp_path / "file"):
        with pytest.raises(DeliveryError, match=f"{tmp_path}.*: "):
            asyncio.run(once(folder))
