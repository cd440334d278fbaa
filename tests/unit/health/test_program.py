"""The exec check with real programs."""

import asyncio
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.health.datagrams import target
from xenlb.health.registry import run_probe
from xenlb.health.runner import HealthRunner
from xenlb.health.transport.result import Answer, answer_budget
from xenlb.model.checks import Exec, Share
from xenlb.model.events import ProbeFinished
from xenlb.model.health import Health

ROOT = os.geteuid() == 0
USER = "nobody" if ROOT else os.environ.get("USER", "nobody")


def sh(script: str, share: Share | None = None) -> Exec:
    return Exec(command=("/bin/sh", "-c", script), user=USER, share=share)


def told(asks: Exec) -> Answer:
    return asyncio.run(
        asyncio.wait_for(run_probe(target(asks, 25, "10.0.0.11"), answer_budget()), 30)
    )


@pytest.mark.parametrize(
    ("script", "up", "detail"),
    [
        ("echo 'OK - 12 ms | time=12ms'; exit 0", True, "/bin/sh says OK"),
        ("echo 'WARNING - slow | t=9s'; exit 1", True, "/bin/sh says WARNING: WARNING - slow"),
        ("echo; echo 'queue full'; echo more; exit 2", False, "/bin/sh says CRITICAL: queue full"),
        ("exit 2", False, "/bin/sh says CRITICAL"),
        ("echo words >&2; exit 2", False, "/bin/sh says CRITICAL: words"),
        ("echo one; echo two >&2; exit 2", False, "/bin/sh says CRITICAL: one"),
        ("printf '\\033[31mred\\377'; exit 2", False, "/bin/sh says CRITICAL: \\x1b[31mred\ufffd"),
        ("echo 'no host'; exit 3", None, "/bin/sh cannot tell (UNKNOWN): no host"),
        (
            "echo usage; exit 64",
            None,
            "this host cannot check by /bin/sh: its exit status 64 is none of a plugin's (0-3):"
            " usage",
        ),
        (
            "kill -SEGV $$",
            None,
            "this host cannot check by /bin/sh: it was ended by SIGSEGV",
        ),
    ],
)
def test_exit_status_and_output(script: str, up: bool | None, detail: str) -> None:
    assert told(sh(script)) == Answer(up=up, detail=detail)


def test_a_missing_program() -> None:
    answer = told(Exec(command=("/nowhere/check",), user=USER))
    assert answer.up is None
    assert answer.detail.startswith("this host cannot check by /nowhere/check: ")
    assert "no such file" in answer.detail.lower() or "not found" in answer.detail


def test_a_missing_user() -> None:
    answer = told(Exec(command=("/bin/true",), user="no-such-user"))
    assert answer == Answer(
        up=None,
        detail="this host cannot check by /bin/true: there is no user no-such-user here",
    )


@pytest.mark.parametrize(
    ("said", "share"),
    [
        ("OK|weight=40%", 0.4),
        ("OK | 'load'=3;5;9 weight=40%;;;0;100 x=1", 0.4),
        ("OK | 'weight'=40%", 0.4),
        ("OK\n 75% \n| weight=40%", 0.75),
        ("OK | weight=400%", 4.0),
        ("OK | overweight=40%", None),
        ("OK weight=40%", None),
        ("75% of something", None),
        ("", None),
    ],
)
def test_a_share_of_the_weight(said: str, share: float | None) -> None:
    asks = Exec(command=("/usr/bin/printf", "%s", said), user=USER, share=Share(least=0.25))
    answer = told(asks)
    assert answer.up
    assert answer.share == share
    if share is not None:
        assert f"{share:.0%} of its weight" in answer.detail, "a new share is news"


def test_a_share_is_ignored_without_the_setting() -> None:
    assert told(sh("echo 75%")).share is None


def test_environment_of_a_program(tmp_path: Path) -> None:
    script = """
    [ "$PWD" = / ] || exit 10
    [ -z "$(cat)" ] || exit 11
    [ "$(env | sort | tr '\\n' ' ')" = "$1" ] || { env; exit 12; }
    [ "$(ps -o sid= -p $$ | tr -d ' ')" = $$ ] || exit 13
    """
    given = (
        "LANG=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin PWD=/"
        " XENLB_ADDRESS=10.0.0.11 XENLB_PORT=25 XENLB_TYPE=exec "
    )
    command = ("/bin/sh", "-c", script, "sh", given)
    answer = told(Exec(command=command, user=USER))
    assert answer.up, answer


@pytest.mark.skipif(not ROOT, reason="only root can become another user")
def test_privileges_are_dropped() -> None:
    script = """
    grep -Eq '^Uid:\t65534\t65534\t65534\t65534$' /proc/self/status || exit 10
    grep -Eq '^Gid:\t65534\t65534\t65534\t65534$' /proc/self/status || exit 11
    grep -Eq '^Groups:\\s*$' /proc/self/status || exit 12
    grep -Eq '^CapEff:\\s*0+$' /proc/self/status || exit 13
    """
    answer = told(sh(script))
    assert answer.up, answer


@pytest.mark.skipif(not ROOT, reason="only root can be favoured")
def test_niceness_and_oom_score_are_reset() -> None:
    """Run in a child process, so that this one keeps its niceness and score."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            os.setpriority(os.PRIO_PROCESS, 0, -10)
            Path("/proc/self/oom_score_adj").write_text("-500")
            script = "echo $(nice) $(cat /proc/self/oom_score_adj); exit 2"
            answer = told(sh(script))
            said = f"{answer.detail}, {os.getpriority(os.PRIO_PROCESS, 0)}"
            os.write(writer, said.encode())
        except PermissionError:
            os.write(writer, b"refused")
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as report:
        said = report.read()
    os.waitpid(child, 0)
    if said == "refused":
        pytest.skip("root may not favour itself here; tests/lab/test_probes_uml.py does it too")
    assert said == "/bin/sh says CRITICAL: 0 0, -10"


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in which the program's user may write."""
    with tempfile.TemporaryDirectory(prefix="xenlb-", dir="/tmp") as made:
        Path(made).chmod(0o777)
        yield Path(made)


def test_a_program_that_hangs_is_killed_with_its_descendants(folder: Path) -> None:
    script = f"sleep 600 & echo $! $$ >{folder}/pids; mv {folder}/pids {folder}/all; wait"

    async def main() -> ProbeFinished:
        results: asyncio.Queue[ProbeFinished] = asyncio.Queue()
        runner = HealthRunner(results.put_nowait, asyncio.get_running_loop().time)
        runner.set_targets({target(sh(script), 25, timeout=3.0): Health(valid_from=0.0)})
        task = asyncio.create_task(runner.run())
        result = await asyncio.wait_for(results.get(), 20)
        task.cancel()
        await asyncio.wait([task])
        return result

    result = asyncio.run(main())
    assert not result.up
    assert result.detail == "/bin/sh did not end within 3 s"
    pids = list(map(int, (folder / "all").read_text().split()))
    assert len(pids) == 2
    wait_until(lambda: not any(map(alive, pids)))


def test_descendants_in_other_sessions_are_killed(folder: Path) -> None:
    """Two nested sessions; the probe is cancelled once they exist."""
    inner = f"setsid sleep 600 & echo $! $$ >{folder}/pids; mv {folder}/pids {folder}/all; wait"

    async def main() -> None:
        task = asyncio.create_task(
            run_probe(target(sh(f"setsid sh -c '{inner}' & wait"), 25), answer_budget())
        )
        async with asyncio.timeout(60):
            while not (folder / "all").exists():
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(main())
    pids = list(map(int, (folder / "all").read_text().split()))
    assert len(pids) == 2
    wait_until(lambda: not any(map(alive, pids)))


def test_processes_that_a_program_leaves_behind_are_killed(folder: Path) -> None:
    """A child keeps the program's output open; the probe does not wait for its end."""
    answer = told(sh(f"sleep 600 & echo $! >{folder}/pid; echo busy; exit 2"))
    assert answer.detail == "/bin/sh says CRITICAL: busy"
    pid = int((folder / "pid").read_text())
    wait_until(lambda: not alive(pid))


@pytest.mark.parametrize("wait", [0.0, 0.001, 0.005, 0.02, 0.3])
def test_a_cancelled_probe_leaves_nothing(wait: float) -> None:
    """Cancelled at any time: the fixture no_leaks checks processes, threads and files."""

    async def main() -> None:
        task = asyncio.create_task(run_probe(target(sh("exec sleep 600"), 25), answer_budget()))
        await asyncio.sleep(wait)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    asyncio.run(main())


def test_endless_output_is_not_kept() -> None:
    answer = told(sh("yes words | head -c 3000000; echo wrong >&2; exit 2"))
    assert answer.detail == "/bin/sh says CRITICAL: words"


def test_the_signal_of_an_unknown_number_is_named() -> None:
    assert told(sh("kill -40 $$")).detail.endswith("it was ended by signal 40")
