"""Who else may write a configuration, or a program that root starts for it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from xenlb.config import ConfigError, load_config
from xenlb.config.file_permissions import other_writer, unreadable_hint

NOBODY = 65534
PLAIN = "services: {}\n"
EXEC = """\
services:
  a:
    address: 192.0.2.10
    ports: [25]
    check: {type: exec, command: [PROGRAM, -v]}
    servers: [{host: 10.0.0.5}]
director: {addresses: leave}
"""
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="chown takes root")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "etc" / "xenlb.yaml"
    file.parent.mkdir(mode=0o755)
    file.write_text(PLAIN)
    file.chmod(0o644)
    return file


def found(path: Path, *trusted: int) -> tuple[str, str] | None:
    writer = other_writer(path, trusted)
    return None if writer is None else (str(writer), writer.hint)


def test_no_other_writer(file: Path) -> None:
    assert found(file) is None
    assert found(Path("/etc/passwd")) is None
    assert found(Path("/bin/sh")) is None
    assert found(Path("/not/there")) is None


@pytest.mark.parametrize("mode", [0o646, 0o666])
def test_a_file_of_every_user(file: Path, mode: int) -> None:
    file.chmod(mode)
    assert found(file) == (f"every user may write {file}", f"chmod o-w {file}")


def test_a_folder_of_every_user(file: Path) -> None:
    file.parent.chmod(0o777)
    assert found(file) == (f"every user may write {file.parent}", f"chmod o-w {file.parent}")
    file.parent.chmod(0o1777)
    assert found(file) is None, "it is sticky: the file is not theirs"


@as_root
def test_users_and_groups(file: Path) -> None:
    os.chown(file.parent, NOBODY, 0)
    assert found(file) == (f"user nobody may write {file.parent}", f"chown root {file.parent}")
    assert found(file, NOBODY) is None
    os.chown(file.parent, 12345, 0)
    assert found(file) == (f"user 12345 may write {file.parent}", f"chown root {file.parent}")
    os.chown(file.parent, 0, 0)
    file.parent.chmod(0o775)
    assert found(file) is None, "the group root"
    os.chown(file.parent, 0, 54321)
    assert found(file) == (f"group 54321 may write {file.parent}", f"chmod g-w {file.parent}")
    file.parent.chmod(0o1777)
    os.chown(file.parent, NOBODY, 0)
    assert found(file) == (f"user nobody may write {file.parent}", f"chown root {file.parent}")


def test_each_folder_on_the_way_through_links(file: Path, tmp_path: Path) -> None:
    """a → there/b → ../etc/xenlb.yaml: the folder of b counts, and that of a."""
    there = tmp_path / "there"
    there.mkdir()
    (there / "b").symlink_to("../etc/xenlb.yaml")
    (tmp_path / "a").symlink_to("there/b")
    assert found(tmp_path / "a") is None
    there.chmod(0o777)
    assert found(tmp_path / "a") == (f"every user may write {there}", f"chmod o-w {there}")
    there.chmod(0o755)
    file.parent.chmod(0o777)
    assert found(tmp_path / "a") == (
        f"every user may write {file.parent}",
        f"chmod o-w {file.parent}",
    )


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert found(tmp_path / "a") is None


def problems(file: Path) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load_config(file)
    return [str(problem).removeprefix(f"{file}:") for problem in error.value.problems]


def test_a_configuration_that_others_may_write_is_a_warning(file: Path) -> None:
    assert load_config(file).settings.warnings == ()
    file.chmod(0o666)
    (warning,) = load_config(file).settings.warnings
    assert str(warning) == (
        f"{file}:1:1: every user may write {file}, and so change the whole configuration"
        f" (chmod o-w {file})"
    )
    assert load_config(file, any_host=True).settings.warnings == ()


def test_such_a_configuration_with_exec_is_refused(file: Path) -> None:
    file.write_text(EXEC.replace("PROGRAM", "/bin/sh"))
    load_config(file)
    file.chmod(0o666)
    assert problems(file) == [
        f"5:35: services.a.check.command[0]: exec is refused: every user may write {file},"
        f" and so run programs as root (chmod o-w {file})"
    ]
    assert load_config(file, any_host=True).settings.services


def test_a_program_that_others_may_write_is_refused(file: Path, tmp_path: Path) -> None:
    program = tmp_path / "plugins" / "check"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    file.write_text(EXEC.replace("PROGRAM", str(program)))
    load_config(file)
    program.parent.chmod(0o777)
    assert problems(file) == [
        "5:35: services.a.check.command[0]: exec is refused: every user may write"
        f" {program.parent}, and so run programs as nobody (chmod o-w {program.parent})"
    ]


@as_root
def test_a_program_may_be_its_users_own(file: Path, tmp_path: Path) -> None:
    program = tmp_path / "check"
    program.write_text("#!/bin/sh\n")
    file.write_text(EXEC.replace("PROGRAM", str(program)))
    os.chown(program, NOBODY, 0)
    assert load_config(file).settings.services
    file.write_text(file.read_text().replace("-v]", "-v], user: root"))
    assert problems(file) == [
        "5:35: services.a.check.command[0]: exec is refused: user nobody may write"
        f" {program}, and so run programs as root (chown root {program})"
    ]


@as_root
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is of util-linux")
@pytest.mark.parametrize("what", ["file", "folder"])
def test_root_without_power_over_others(file: Path, what: str) -> None:
    """As in xenlb.service: status 3, which systemd does not try again, and what to do."""
    blocking = file if what == "file" else file.parent
    os.chown(blocking, NOBODY, NOBODY)
    blocking.chmod(0o600 if what == "file" else 0o700)
    # Its own parents are not in question: tmp_path is root's.
    powers = "-dac_override,-dac_read_search"
    run = [sys.executable, "-m", "xenlb.cli", "--config", str(file), "run", "--last-good"]
    done = subprocess.run(
        ["setpriv", "--bounding-set", powers, "--inh-caps", powers, *run, str(file) + ".good"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 3, done
    assert (
        f"{file}:1:1: the file may not be read (chown root {blocking}: xenlb.service has no"
        " access to other users' files)"
    ) in done.stderr


def test_what_is_readable_blocks_nothing(file: Path) -> None:
    assert unreadable_hint(file).startswith(f"chown root {file}:")
