"""What a guest that lies could say: nothing is taken for what was not asked for, or not checked."""

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenlb.guestside.install.operations import LARGEST, MISSING, File, Folder, Other, Symlink
from xenlb.guestside.transport.channel import Output, unwrapped, wrapped
from xenlb.guestside.transport.remote_files import mode_of, octal, parse_frames

FILES, FOLDERS = ("etc/one", "etc/two"), ("etc",)
HEAD = b"=owner 0 0\n"


def test_frames() -> None:
    out = HEAD + b"=0 file -rwsr-x--T. 0 0\n 61 0a\n 00\n=1 link\n 2e 2e 0a 0a\n=2 full\n=end\n"
    assert parse_frames(out, FILES, FOLDERS) == {
        "etc/one": File(content=b"a\n\0", mode=0o5750),
        "etc/two": Symlink(target="..\n"),
        "etc": Folder(empty=False),
    }
    assert parse_frames(HEAD + b"=end\n", FILES, FOLDERS) == dict.fromkeys(
        (*FILES, *FOLDERS), MISSING
    )
    large = HEAD + b"=0 file -rw-r--r-- 5 0\n" + b" 61" * (LARGEST + 1) + b"\n=end\n"
    assert isinstance(parse_frames(large, FILES, FOLDERS)["etc/one"], Other)


@pytest.mark.parametrize(
    "frames",
    [
        b"=3 full\n",  # not asked for
        b"=0 full\n",  # a folder, where a file was asked for
        b"=2 link\n 61\n",
        b"=0 link\n",
        b"=0 link\n 61 00\n",
        b"=0 file -rw-r--r-- 0 0\n 6\n",
        b"=0 file -rw-r--r-- 0 0\nxx\n",
        b"=0 file -rw-r--r-- -1 0\n 61\n",
        b"=0 file drwxr-q--x 0 0\n 61\n",
        b"=1 other\n=1 other\n",
        b"\x1b[2J\n",
    ],
)
def test_what_is_no_frame(frames: bytes) -> None:
    with pytest.raises(ValueError):
        parse_frames(HEAD + frames + b"=end\n", FILES, FOLDERS)


@given(st.binary(max_size=200))
def test_octal_is_any_content_and_cannot_leave_its_quotes(data: bytes) -> None:
    text = octal(data)
    assert set(text) <= set(
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 ._/:=,;@#+\\"
    )
    printed = subprocess.run(["printf", text], capture_output=True, check=True) if text else None
    assert (printed.stdout if printed else b"") == data


@pytest.mark.parametrize(("shown", "mode"), [("-rwxr-xr-x", 0o755), ("-r-S--s--t", 0o7411)])
def test_modes_as_ls_shows_them(shown: str, mode: int) -> None:
    assert mode_of(shown) == mode


def test_half_a_script_does_not_run() -> None:
    """And what a user's start-up files say is not the script's."""
    whole = wrapped("read line; echo \"read '$line'\"\nexit 3")
    done = subprocess.run(["sh", "-s"], input=whole, capture_output=True, check=False)
    said = Output(status=done.returncode, out=b"welcome" + done.stdout, err=done.stderr)
    assert unwrapped(said) == Output(status=3, out=b"read ''\n", err=b"")
    for cut in (len(whole) - 25, len(whole) // 2):
        half = subprocess.run(["sh", "-s"], input=whole[:cut], capture_output=True, check=False)
        assert unwrapped(Output(status=half.returncode, out=half.stdout, err=half.stderr)) is None
