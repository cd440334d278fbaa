"""The host's key: made once, for nobody else to read; and what is made of it."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

import pytest

from xenlb.control.guest_secrets import KeyFileError, guest_secret, master_key, report_checksum

ONE = UUID("3a0f4a8e-5f05-4c8e-9df8-3dd9d9a3d0f1")
OTHER = UUID("3a0f4a8e-5f05-4c8e-9df8-3dd9d9a3d0f2")


def test_the_key_is_created_on_first_use_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "lib" / "key"
    key = master_key(path)
    assert len(key) == 32
    assert master_key(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [each.name for each in path.parent.iterdir()] == ["key"]
    assert master_key(tmp_path / "another") != key


def test_one_of_many_processes_creates_the_key(tmp_path: Path) -> None:
    for n in range(20):
        path = tmp_path / str(n)
        with ThreadPoolExecutor(8) as pool:
            keys = set(pool.map(master_key, [path] * 8))
        assert keys == {path.read_bytes()}


def test_a_key_that_other_users_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    master_key(path)
    path.chmod(0o640)
    with pytest.raises(KeyFileError, match="other users than root may read"):
        master_key(path)


@pytest.mark.parametrize("held", [b"", b"x" * 31, b"x" * 33])
def test_a_truncated_key_is_refused(tmp_path: Path, held: bytes) -> None:
    path = tmp_path / "key"
    path.touch(mode=0o600)
    path.write_bytes(held)
    with pytest.raises(KeyFileError, match="not 32 bytes"):
        master_key(path)
    assert path.read_bytes() == held


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    master_key(tmp_path / "real")
    (tmp_path / "key").symlink_to(tmp_path / "real")
    with pytest.raises(OSError, match="symbolic links"):
        master_key(tmp_path / "key")


def test_secrets_and_checksums() -> None:
    """Fixed values: guests hold what came of them, so they must never change."""
    secret = guest_secret(b"k" * 32, ONE)
    assert secret == "cf854419c2cb6264800f316a653a8609219d3fbbee438e3ca234e02f0dbb855f"
    assert guest_secret(b"k" * 32, OTHER) != secret
    assert guest_secret(b"l" * 32, ONE) != secret
    answers = {
        report_checksum("00", secret=secret, word="leaving"),
        report_checksum("01", secret=secret, word="leaving"),
        report_checksum("00", secret=secret, word="staying"),
        report_checksum("00", secret="ab", word="leaving"),
    }
    assert len(answers) == 4
    assert report_checksum("00", secret="ab", word="leaving") == (
        "acab7b5bfadd48164198a8e226ee617f34acac2af7fd2cae1aa974b685638acf"  # sha256sum's
    )
