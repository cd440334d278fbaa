"""Which configuration is taken up: refused ones, half-written ones, and the last good one."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.kernel import FakeKernel
from tests.unit.agent.test_loop import agent_at_work, until
from xenlb import config
from xenlb.agent import configuration
from xenlb.agent.configuration import ConfigurationFile, first_configuration, removals
from xenlb.agent.loop import Agent
from xenlb.agent.sources import Sources
from xenlb.config import ConfigError
from xenlb.store import last_good

HOST = "director: {interface: lo}\n"
MAIL = """\
services:
  mail: {address: 192.0.2.10, ports: [25], check: none, servers: [{host: 10.0.0.5}]}
"""
WEB = """\
  web: {address: 192.0.2.11, ports: [80], check: none, servers: [{host: 10.0.0.6}]}
"""
BOTH = HOST + MAIL + WEB


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "xenlb.yaml"
    path.write_text(BOTH)
    return path


class Sleeps:
    """What happens while the agent waits, in place of the waiting."""

    def __init__(self, *meanwhile: Callable[[], object]) -> None:
        self.meanwhile = list(meanwhile)

    async def __call__(self, seconds: float) -> None:
        assert seconds == configuration.CALM
        self.meanwhile.pop(0)()


def nothing() -> None:
    pass


def write(file: Path, text: str) -> None:
    file.write_text(text)


def taken(file: Path, sleeps: Sleeps, change: str, *, before: str = BOTH) -> str:
    """The text that is taken up, after the file has changed to that."""

    async def story() -> str:
        write(file, before)
        one = ConfigurationFile(file, sleep=sleeps)
        await one.use(await one.read())
        write(file, change)
        text = (await one.read_calmly()).data.decode()
        assert sleeps.meanwhile == []
        return text

    return asyncio.run(story())


def test_a_file_that_removes_a_service_must_stay_the_same(file: Path) -> None:
    half = HOST + MAIL
    more = half + "    # the writer goes on\n"
    assert taken(file, Sleeps(nothing), half) == half
    assert taken(file, Sleeps(lambda: file.write_text(BOTH)), half) == BOTH
    assert taken(file, Sleeps(lambda: file.write_text(more), nothing), half) == more


def test_other_changes_are_taken_up_at_once(file: Path) -> None:
    assert taken(file, Sleeps(), BOTH + "# nothing else\n")
    assert taken(file, Sleeps(), BOTH, before=HOST + MAIL) == BOTH


def test_a_file_that_is_damaged_while_it_is_waited_for_is_refused(file: Path) -> None:
    with pytest.raises(ConfigError):
        taken(file, Sleeps(lambda: file.write_text("services: [")), HOST + MAIL)


@pytest.mark.parametrize(
    ("hosts", "left", "expected"),
    [
        ("5, 6, 7", "5, 6", ""),
        ("5, 6, 7, 8", "5, 9", "3 of 4 servers"),
        ("5, 6", "5, 7", ""),
        ("5, 6", "7, 8", "2 of 2 servers"),
    ],
)
def test_what_counts_as_much(hosts: str, left: str, expected: str) -> None:
    def settings(which: str) -> config.LoadedConfig:
        servers = ", ".join(f"{{host: 10.0.0.{number}}}" for number in which.split(", "))
        text = HOST + MAIL.replace("{host: 10.0.0.5}", servers)
        return config.load_bytes(text.encode(), "x")

    assert removals(settings(hosts).settings, settings(left).settings) == expected


def test_removed_services_are_named() -> None:
    both, one = (config.parse(text, "x") for text in (BOTH, HOST + MAIL))
    assert removals(both, one) == "service web"
    assert removals(both, config.parse(BOTH.replace("[80]", "[81]"), "x")) == "service web"
    assert removals(one, both) == ""


def test_a_reload_is_refused_for_what_the_host_has_not(tmp_path: Path, file: Path) -> None:
    """And not for what the configuration in use lacks already."""

    async def story() -> None:
        async with agent_at_work(tmp_path, FakeKernel()) as desk:
            agent = desk.agent
            assert await agent.reload() == ()
            await until(lambda: len(agent.state.settings.services) == 2)
            services = agent.state.settings.services
            write(file, BOTH.replace("interface: lo", "interface: loo"))
            for ordered in (True, False):
                (problem,) = await agent.reload(ordered=ordered)
                assert problem == (
                    f"{file}:1:23: director.interface: this host has no interface loo"
                    " (did you mean lo?)"
                )
            await until(lambda: bool(agent.state.observed.problems))
            assert agent.state.settings.services == services
            assert agent.state.settings.director.interface == "lo"
            assert desk.told().count("configuration refused") == 1
            # It was there when it was taken up, and has gone: that must not stop other changes.
            await agent.configuration.use(config.load_config(file))
            assert await agent.reload() == ()

    asyncio.run(story())


def test_what_goes_later_is_a_warning(tmp_path: Path, file: Path) -> None:
    program = tmp_path / "plugin"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    check = f"{{type: exec, command: [{program}]}}"
    file.write_text(BOTH.replace("check: none", f"check: {check}", 1))

    async def story() -> None:
        agent = Agent(
            config=file,
            state_file=tmp_path / "state.json",
            socket=tmp_path / "control.sock",
            kernel=FakeKernel(),
            reader=FakeKernel(),
        )
        await agent.configuration.use(await agent.configuration.read())
        assert agent.configuration.lacking() == ()
        program.unlink()
        sources = Sources(agent)
        task = asyncio.create_task(sources._check_needs())
        await until(lambda: bool(sources.director_problems()))
        task.cancel()
        await asyncio.wait({task})
        (line,) = agent.event_log.lines()
        assert line["level"] == "warning"
        assert f"there is no program {program}: no such file or directory" in line["text"]
        assert [line["text"]] == sources.director_problems()

    asyncio.run(story())


# --- the last good one ---------------------------------------------------------------------------


def in_use(file: Path, place: Path) -> None:
    async def story() -> None:
        one = ConfigurationFile(file, place)
        await one.use(await one.read())

    asyncio.run(story())


def test_the_last_good_one_is_used_where_the_file_is_wrong(
    tmp_path: Path, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "lib" / "last-good.yaml"
    in_use(file, place)
    file.write_text("services: [")
    with caplog.at_level(logging.WARNING):
        begun = first_configuration(file, place)
    assert begun.loaded.data.decode() == BOTH
    assert begun.since
    (problem,) = begun.problems
    (record,) = caplog.records
    assert str(problem) in record.getMessage()
    assert f"in use since {begun.since} (sha256 {last_good.checksum_of(BOTH.encode())[:12]})" in (
        record.getMessage()
    )
    file.unlink()
    assert first_configuration(file, place).loaded.data.decode() == BOTH


def test_an_agent_that_uses_it_keeps_it_and_takes_the_right_file(
    tmp_path: Path, file: Path
) -> None:
    place = tmp_path / "last-good.yaml"
    in_use(file, place)
    kept = place.read_bytes()
    file.write_text("services: [")
    begun = first_configuration(file, place)

    async def story() -> None:
        one = ConfigurationFile(file, place)
        await one.use(begun.loaded, since=begun.since)
        assert one.last_good_since == begun.since
        assert place.read_bytes() == kept
        write(file, HOST + MAIL)
        await one.use(await one.read())
        assert one.last_good_since == ""
        known = last_good.read_last_good(place, of=file)
        assert known is not None
        assert known.data.decode() == HOST + MAIL

    asyncio.run(story())


def test_the_time_is_that_of_its_first_use(tmp_path: Path, file: Path) -> None:
    place = tmp_path / "last-good.yaml"
    last_good.write_last_good(place, BOTH.encode(), of=file, since="2026-01-01T00:00:00.000Z")
    in_use(file, place)
    known = last_good.read_last_good(place, of=file)
    assert known is not None
    assert known.since == "2026-01-01T00:00:00.000Z"
    assert oct(place.stat().st_mode & 0o777) == "0o600"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda place: place.write_bytes(place.read_bytes()[:-1]), "checksum"),
        (lambda place: place.write_bytes(b"services: {}\n"), "first line"),
        (lambda place: place.chmod(0o666), "users other than root may write it"),
    ],
)
def test_a_damaged_copy_is_not_used(
    tmp_path: Path,
    file: Path,
    damage: Callable[[Path], object],
    said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    place = tmp_path / "last-good.yaml"
    in_use(file, place)
    damage(place)
    file.write_text("services: [")
    with caplog.at_level(logging.WARNING), pytest.raises(ConfigError) as caught:
        first_configuration(file, place)
    assert "services: [" not in str(caught.value)
    assert said in caplog.text


def test_a_copy_of_another_file_is_not_used(tmp_path: Path, file: Path) -> None:
    place = tmp_path / "last-good.yaml"
    in_use(file, place)
    with pytest.raises(ConfigError):
        first_configuration(tmp_path / "other.yaml", place)


def test_a_disk_that_is_full_is_said_once(
    tmp_path: Path, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = file / "below-a-file"

    async def story() -> None:
        one = ConfigurationFile(file, place)
        loaded = await one.read()
        await one.use(loaded)
        await one.use(loaded)
        assert one.in_use is loaded

    with caplog.at_level(logging.WARNING):
        asyncio.run(story())
    (record,) = caplog.records
    assert "the last good configuration cannot be kept" in record.getMessage()
