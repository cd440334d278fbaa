"""The watcher against real files: every way in which a configuration gets replaced."""

import errno
import logging
import os
import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from watchdog.observers import Observer

from xenlb.config import watcher
from xenlb.config.watcher import ConfigWatcher, is_open_for_writing, watched_folders

PATIENCE = 30.0  # seconds; reached only where a call is missing


class Calls:
    """What the callback saw: the content of the file at each call, None where there was none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seen: queue.Queue[str | None] = queue.Queue()
        self.threads: set[str] = set()

    def __call__(self) -> None:
        self.threads.add(threading.current_thread().name)
        try:
            self.seen.put(self._path.read_text())
        except OSError:
            self.seen.put(None)

    def until(self, content: str | None) -> int:
        """Waits for a call that sees this content; how many calls it took."""
        count = 1
        while self.seen.get(timeout=PATIENCE) != content:
            count += 1
        return count


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "etc" / "xenlb.yaml"
    path.parent.mkdir()
    path.write_text("one")
    return path


@pytest.fixture
def calls(file: Path) -> Iterator[Calls]:
    calls = Calls(file)
    with ConfigWatcher(file, calls):
        yield calls
    assert threading.current_thread().name not in calls.threads


def test_truncate_and_write(file: Path, calls: Calls) -> None:
    file.write_text("two")
    calls.until("two")
    file.write_text("six")  # of the same length
    calls.until("six")


def test_changes_in_a_row_are_reported_together(file: Path, calls: Calls) -> None:
    with file.open("w") as stream:
        for _ in range(200):
            stream.write("x")
            stream.flush()
    assert calls.until("x" * 200) == 1


def test_a_change_is_reported_when_the_writer_has_closed_the_file(file: Path, calls: Calls) -> None:
    """scp, `cat >`, rsync --inplace: the parts may be seconds apart."""
    with file.open("w") as stream:
        stream.write("the first part")
        stream.flush()
        assert is_open_for_writing(str(file)) is True
        with pytest.raises(queue.Empty):
            calls.seen.get(timeout=1.0)
        stream.write(" and the second")
    assert is_open_for_writing(str(file)) is False
    assert calls.until("the first part and the second") == 1


def test_whether_a_file_is_open_for_writing(tmp_path: Path) -> None:
    assert is_open_for_writing(str(tmp_path / "not-there")) is False
    assert is_open_for_writing(str(tmp_path)) is None
    os.mkfifo(tmp_path / "pipe")
    assert is_open_for_writing(str(tmp_path / "pipe")) is None


def test_renamed_over(file: Path, calls: Calls) -> None:
    for content in ("two", "three", "four"):
        new = file.with_suffix(".new")
        new.write_text(content)
        new.replace(file)
        calls.until(content)


def test_deleted_and_recreated(file: Path, calls: Calls) -> None:
    file.unlink()
    calls.until(None)
    file.write_text("two")
    calls.until("two")


def test_renamed_away_and_back(file: Path, calls: Calls) -> None:
    """As vi does it: the old file becomes the backup, a new one takes its name."""
    file.rename(file.with_suffix(".yaml~"))
    file.write_text("two")
    calls.until("two")


def test_link_to_another_file(tmp_path: Path) -> None:
    link = tmp_path / "etc" / "xenlb.yaml"
    link.parent.mkdir()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    link.symlink_to("../one/file")
    calls = Calls(link)
    with ConfigWatcher(link, calls):
        new = link.with_suffix(".new")
        new.symlink_to("../two/file")
        new.replace(link)
        calls.until("two")
        (tmp_path / "two" / "file").write_text("edited behind the link")
        calls.until("edited behind the link")


def test_kubernetes_volume(tmp_path: Path) -> None:
    """The file links to ..data/xenlb.yaml; the link ..data is swapped, its old target removed."""
    volume = tmp_path / "volume"
    volume.mkdir()

    def publish(content: str) -> None:
        folder = volume / f"..{content}"
        folder.mkdir()
        (folder / "xenlb.yaml").write_text(content)
        (volume / "..data_tmp").symlink_to(folder.name)
        (volume / "..data_tmp").replace(volume / "..data")

    publish("one")
    file = volume / "xenlb.yaml"
    file.symlink_to("..data/xenlb.yaml")
    calls = Calls(file)
    with ConfigWatcher(file, calls):
        for old, new in (("one", "two"), ("two", "three"), ("three", "four")):
            publish(new)
            (volume / f"..{old}" / "xenlb.yaml").unlink()
            (volume / f"..{old}").rmdir()
            calls.until(new)


def test_folder_removed_and_made_again(file: Path, calls: Calls) -> None:
    file.unlink()
    file.parent.rmdir()
    calls.until(None)
    file.parent.mkdir()
    file.write_text("two")
    calls.until("two")


def test_folder_that_is_made_later(tmp_path: Path) -> None:
    file = tmp_path / "etc" / "xenlb" / "xenlb.yaml"
    calls = Calls(file)
    with ConfigWatcher(file, calls):
        file.parent.mkdir(parents=True)
        file.write_text("one")
        calls.until("one")


def test_changes_of_other_files_are_not_reported(file: Path, calls: Calls) -> None:
    (file.parent / "other").write_text("x")
    file.read_text()
    (file.parent / "other").unlink()
    new = file.with_suffix(".new")
    new.write_text("two")
    new.replace(file)
    assert calls.until("two") == 1


def test_a_folder_that_is_replaced(file: Path) -> None:
    """`mv`: inotify of the folder says nothing that names the new one."""
    calls = Calls(file)
    with ConfigWatcher(file, calls, poll_interval=0.05):
        new = file.parent.with_name("new")
        new.mkdir()
        (new / file.name).write_text("two")
        file.parent.rename(file.parent.with_name("old"))
        new.rename(file.parent)
        calls.until("two")
        file.write_text("three")
        calls.until("three")


class NoWatches(Observer):  # type: ignore[misc,valid-type]
    """On a host whose inotify watches are used up."""

    def schedule(self, *_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "inotify limit reached")


def no_instances() -> None:
    raise OSError(errno.EMFILE, "inotify limit reached")


@pytest.mark.parametrize("observer", [no_instances, NoWatches])
def test_without_inotify(
    file: Path, observer: object, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watcher, "Observer", observer)
    calls = Calls(file)
    with caplog.at_level(logging.WARNING), ConfigWatcher(file, calls, poll_interval=0.05):
        for content in ("two", "three"):
            file.write_text(content)
            assert calls.until(content) == 1
    (record,) = caplog.records
    assert "inotify limit reached" in record.getMessage()


def test_stop_while_waiting_for_the_end_of_a_change(file: Path) -> None:
    calls = Calls(file)
    watcher = ConfigWatcher(file, calls)
    watcher.start()
    file.write_text("two")
    watcher.stop()
    watcher.stop()
    file.write_text("three")
    assert calls.seen.empty() or calls.seen.get_nowait() == "two"
    assert calls.seen.empty()


def test_folders_of_a_loop_of_links(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert {folder for folder, _ in watched_folders(str(tmp_path / "a"))} == {
        os.path.realpath(tmp_path)
    }
