"""Bringing files into a guest and out again, reckoned on a tree in memory."""

import dataclasses
from contextlib import suppress

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.unit.guestside.guesttree import GuestTree, expected, trees, wanted_sets
from xenlb.guestside.install import blocks
from xenlb.guestside.install.baseline import CannotInstall
from xenlb.guestside.install.manifest import CHANGED, MANIFEST, BadManifest, parse
from xenlb.guestside.install.operations import File, GuestFile, GuestSymlink, Symlink, Wanted
from xenlb.guestside.install.planner import ChangedFiles, paths_to_read
from xenlb.guestside.install.preview import differences


@given(trees(), st.lists(wanted_sets(), min_size=1, max_size=4))
def test_whatever_was_applied_the_last_counts_and_removal_leaves_nothing(
    tree: GuestTree, sequence: list[tuple[Wanted, ...]]
) -> None:
    initial = tree.copy()
    for wanted in sequence:
        tree.apply(wanted)
        assert tree.without_state() == expected(initial, wanted)
        assert tree.plan(wanted).operations == ()
    tree.apply(())
    assert tree.files == initial.files
    assert tree.folders == initial.folders
    assert tree.plan(()).operations == ()


@given(trees(), wanted_sets(), wanted_sets(), wanted_sets(), st.data())
def test_broken_off_anywhere_the_next_apply_repairs(
    tree: GuestTree,
    first: tuple[Wanted, ...],
    second: tuple[Wanted, ...],
    third: tuple[Wanted, ...],
    data: st.DataObject,
) -> None:
    initial = tree.copy()
    initial.folders |= {"var", "var/lib"}  # made before there is a manifest to say so
    tree = initial.copy()
    for wanted in (first, second):
        made = tree.plan(wanted)
        tree.perform(made.operations[: data.draw(st.integers(0, len(made.operations)))])
    made = tree.apply(third)
    assert made.notes == ()
    assert tree.without_state() == expected(initial, third)
    made = tree.plan(())
    tree.perform(made.operations[: data.draw(st.integers(0, len(made.operations)))])
    tree.apply(())
    assert tree.seen() == initial.seen()


def test_what_is_there_already_is_written_down_alone() -> None:
    tree = GuestTree({"etc/link": Symlink(target="x")})
    initial = tree.copy()
    made = tree.apply([LINK])
    assert [str(each) for each in made.operations[:-1]] == [
        "make the folder /var",
        "make the folder /var/lib",
        "make the folder /var/lib/xenlb",
    ]
    assert not made.notes
    tree.apply(())
    assert tree.seen() == initial.seen()


def changed_by_admin(tree: GuestTree, path: str, content: bytes) -> None:
    tree.files[path] = File(content=content, mode=0o640, owner=(5, 5))


OURS = GuestFile(path="etc/new.d/ours", text="ours\n")
OVER = GuestFile(path="etc/one", text="over\n")
BLOCK = GuestFile(path="etc/two", text="inside\n", block=True)
LINK = GuestSymlink(path="etc/link", target="x")


@pytest.mark.parametrize("wish", [OURS, OVER], ids=["made", "replaced"])
def test_what_somebody_changed_is_kept_by_an_apply(wish: GuestFile) -> None:
    tree = GuestTree({"etc/one": File(content=b"one", mode=0o644)})
    initial = tree.copy()
    tree.apply([wish])
    changed_by_admin(tree, wish.path, b"mine")
    made = tree.apply([wish])
    (aside,) = [path for path in tree.files if path.startswith(CHANGED)]
    assert tree.files[aside] == File(content=b"mine", mode=0o600)
    assert made.notes == (
        f"/{wish.path}: it was changed since xenlb wrote it; the changed file is kept as /{aside}",
    )
    assert tree.plan([wish]).operations == ()
    tree.apply(())
    assert tree.without_state() == initial.files
    assert set(tree.files) - set(initial.files) == {aside}
    assert tree.plan(()).operations == ()


@pytest.mark.parametrize("wish", [OURS, OVER, LINK, BLOCK], ids=lambda wish: wish.path)
def test_what_somebody_changed_stays_at_a_removal_unless_told(wish: Wanted) -> None:
    tree = GuestTree(
        {
            "etc/one": File(content=b"one", mode=0o644),
            "etc/two": File(content=b"#!/bin/sh\nexit 0\n", mode=0o644),
        }
    )
    initial = tree.copy()
    tree.apply([wish])
    mine = blocks.insert(b"#!/bin/sh\nexit 0\n", b"mine\n") if wish is BLOCK else b"mine"
    changed_by_admin(tree, wish.path, mine)
    for wanted in ((), (GuestFile(path="etc/more", text=""),), ()):
        made = tree.apply(wanted)
        assert made.kept == (wish.path,)
        assert len(made.notes) == 1
        node = tree.files[wish.path]
        assert isinstance(node, File)
        assert node.content == mine
    made = tree.apply((), changed=ChangedFiles.DISCARD)
    assert made.kept == ()
    if wish is BLOCK:  # the rights are the administrator's
        tree.files["etc/two"] = dataclasses.replace(initial.files["etc/two"])
    assert tree.seen()[0] == initial.files
    assert MANIFEST not in tree.files


def test_a_block_leaves_what_others_write_around_it() -> None:
    tree = GuestTree({"etc/two": File(content=b"a\nb\n", mode=0o644)})
    run = GuestFile(path="etc/rc.local", text="run\n", mode=0o755, block=True)
    tree.apply([BLOCK, run])
    rc_local = tree.files["etc/rc.local"]
    assert rc_local == File(content=b"#!/bin/sh\n# BEGIN xenlb\nrun\n# END xenlb\n", mode=0o755)
    for path in ("etc/two", "etc/rc.local"):
        node = tree.files[path]
        assert isinstance(node, File)
        tree.files[path] = dataclasses.replace(node, content=node.content + b"more\n")
    assert tree.plan([BLOCK, run]).operations != ()  # what xenlb made has become somebody's
    assert not tree.plan([BLOCK, run]).paths
    tree.apply([BLOCK, run])
    assert tree.plan([BLOCK, run]).operations == ()
    tree.apply(())
    assert tree.files == {
        "etc/two": File(content=b"a\nb\nmore\n", mode=0o644),
        "etc/rc.local": File(content=b"#!/bin/sh\nmore\n", mode=0o755),
    }


@given(st.binary(max_size=30), st.sampled_from([b"", b"x", b"x\n", b"\n"]))
def test_blocks_come_out_as_they_went_in(rest: bytes, inside: bytes) -> None:
    assume(b"xenlb" not in rest)
    ended = inside + b"\n" if inside and not inside.endswith(b"\n") else inside
    for each in (rest, b"#!" + rest, b"#! /bin/sh\n" + rest):
        assert blocks.split(blocks.insert(each, inside)) == (each, ended)


REFUSED: dict[str, tuple[tuple[Wanted, ...], str]] = {
    "dots": ((GuestFile(path="etc/../x", text=""),), "'..'"),
    "absolute": ((GuestFile(path="/etc/x", text=""),), "begins with a slash"),
    "a line end": ((GuestFile(path="etc/a\nb", text=""),), "printable"),
    "our own": ((GuestFile(path=MANIFEST, text=""),), "xenlb's own"),
    "twice": ((OVER, OVER), "twice"),
    "below a file": ((OVER, GuestFile(path="etc/one/x", text="")), "cannot be a file"),
    "a folder": ((GuestFile(path="etc", text=""),), "a folder; xenlb does not replace it"),
    "through a link": (
        (GuestFile(path="etc/alias", text="", block=True),),
        "a symbolic link; xenlb writes no block through it",
    ),
    "marks inside": ((GuestFile(path="a", text="# END xenlb\n", block=True),), "marks inside"),
    "half a block": ((GuestFile(path="etc/half", text="", block=True),), "not one of each"),
    "no folder": ((GuestFile(path="etc/alias/x", text=""),), "/etc/alias is not a folder"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_one_sentence(case: str) -> None:
    tree = GuestTree(
        {
            "etc/alias": Symlink(target="x"),
            "etc/half": File(content=b"# BEGIN xenlb\n", mode=0o644),
        }
    )
    wanted, sentence = REFUSED[case]
    with pytest.raises(CannotInstall, match=sentence):
        tree.apply(wanted)


SOUND = (
    '{"version": 1, "folders": [], "files": {"etc/x": {"kind": "whole", "mode": "0644", '
    '"sha256": ["' + "a" * 64 + '"], "made": true}}}'
)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("etc/x", "../etc/shadow", "a path in it has an empty part"),
        ("etc/x", "/etc/shadow", "begins with a slash"),
        ("etc/x", "a\\u0000b", "printable ASCII"),
        ("etc/x", "a\\nb", "printable ASCII"),
        ("etc/x", "a" * 2000, "longer than 1024"),
        ("etc/x", "a/" * 40 + "a", "deeper than 32"),
        ("etc/x", MANIFEST, "xenlb's own"),
        ("whole", "socket", "unknown kind"),
        ("0644", "99999", "four octal digits"),
        ("0644", "-644", "four octal digits"),
        ("true", "false", "both"),
        ('"' + "a" * 64 + '"', "", "has no sha256"),
        ("a" * 64, "A" * 64, "a sha256 is not one"),
        ('"version": 1', '"version": 2', "its version is not 1"),
        ("1", "1" * 5000, "not JSON"),
        ("{", "[" * 100000, "not JSON"),
        ("{", "[" * 300000, "longer than"),
        ('"folders": []', '"folders": [1]', "a folder is not a string"),
        ('"folders": []', '"folders": [' + '"a",' * 600 + '"a"]', "more than 512 paths"),
        (
            '"made": true',
            '"made": false, "previous": {"mode": "0644", "sha256": "'
            + "a" * 64
            + '", "owner": [-1, 0]}',
            "owner",
        ),
        ('"made": true', '"made": false, "previous": {"target": "a\\u0000"}', "cannot be one"),
    ],
)
def test_a_manifest_is_a_strangers(old: str, new: str, sentence: str) -> None:
    assert parse(SOUND.encode()).entries["etc/x"].previous is None
    with pytest.raises(BadManifest, match=sentence):
        parse(SOUND.replace(old, new, 1).encode())


@given(st.binary(max_size=200))
def test_any_bytes_are_a_manifest_or_one_sentence(data: bytes) -> None:
    with suppress(BadManifest):
        parse(data)


def test_differences_are_for_people() -> None:
    tree = GuestTree(
        {
            "etc/one": File(content=b"a\x1b[2J\nb", mode=0o644),
            "etc/two": File(content=b"two\n", mode=0o644),
        },
        {"var", "var/lib"},
    )
    secret = GuestFile(path="etc/secret", text="secret\n", mode=0o600)
    wanted = (OVER, dataclasses.replace(BLOCK, mode=0o755), LINK, secret)
    ask = paths_to_read(wanted, tree.manifest())
    present = {path: tree.node(path) for path in (*ask.folders, *ask.files)}
    assert list(differences(tree.plan(wanted), present)) == [
        "--- /dev/null",
        "+++ /etc/link",
        "@@ -0,0 +1 @@",
        "+(a symbolic link to x)",
        "--- /etc/one",
        "+++ /etc/one",
        "@@ -1,2 +1 @@",
        "-a\\x1b[2J",
        "-b\\ (no end of line)",
        "+over",
        "--- /dev/null",
        "+++ /etc/secret",
        "(not shown: for root only)",
        "--- /etc/two",
        "+++ /etc/two",
        "@@ -1 +1,4 @@",
        "+# BEGIN xenlb",
        "+inside",
        "+# END xenlb",
        " two",
        "mode of /etc/two: 0644 -> 0755",
    ]
