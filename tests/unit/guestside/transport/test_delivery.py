"""One suite for every way of bringing files into a guest and out again, with real files."""

import asyncio
import dataclasses
import os
import signal
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings

from tests.soak import SOAK, often
from tests.unit.guestside.guesttree import GuestTree, expected, trees, wanted_sets
from tests.unit.guestside.shells import SHELLS
from tests.unit.guestside.transport.deliveries import (
    NEAR,
    VARIANTS,
    LocalChannel,
    Make,
    guest_agent,
    off,
    sshd,
    variant,
)
from xenlb.guestside.install.manifest import (
    MANIFEST,
    STATE,
    EntryKind,
    Manifest,
    ManifestEntry,
    WasFile,
    digest,
    text,
)
from xenlb.guestside.install.operations import (
    LARGEST,
    Executor,
    File,
    GuestFile,
    GuestSymlink,
    Operation,
    Present,
    Symlink,
    Wanted,
    Write,
)
from xenlb.guestside.install.planner import ChangedFiles, Plan
from xenlb.guestside.transport.channel import MOST_OUTPUT, DeliveryError
from xenlb.guestside.transport.guest_agent import GuestAgent
from xenlb.guestside.transport.image import ImageFiles, RootFolder
from xenlb.guestside.transport.remote_files import RemoteFiles, write_script
from xenlb.guestside.transport.ssh import Ssh
from xenlb.guestside.transport.survey import survey_files

MINE = (os.geteuid(), os.getegid())
Seen = dict[str, File | Symlink | int]


@pytest.fixture(scope="module", params=VARIANTS)
def make(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Make]:
    with variant(request.param, tmp_path_factory.mktemp(request.param)) as made:
        yield made


@pytest.fixture(scope="module", params=NEAR)
def near(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Make]:
    """Those that touch the files themselves; the others only carry the scripts."""
    with variant(request.param, tmp_path_factory.mktemp(request.param)) as made:
        yield made


def mine(tree: GuestTree) -> GuestTree:
    """With owners that this user can give a file."""
    if MINE == (0, 0):
        return tree
    files = {
        path: dataclasses.replace(node, owner=None) if isinstance(node, File) else node
        for path, node in tree.files.items()
    }
    return GuestTree(files, tree.folders)


def lay_out(tree: GuestTree, root: Path) -> None:
    for folder in sorted({*tree.folders, "etc"}):
        (root / folder).mkdir()
        (root / folder).chmod(0o750)
    for path, node in tree.files.items():
        if isinstance(node, Symlink):
            (root / path).symlink_to(node.target)
        else:
            (root / path).write_bytes(node.content)
            os.chown(root / path, *(node.owner or MINE))
            (root / path).chmod(node.mode)


def seen(root: Path, *, state: bool = False) -> Seen:
    """All of it; folders by their rights."""
    found: Seen = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if not state and (name == STATE or name.startswith(f"{STATE}/")):
            continue
        info = path.lstat()
        if stat.S_ISLNK(info.st_mode):
            found[name] = Symlink(target=str(path.readlink()))
        elif stat.S_ISDIR(info.st_mode):
            found[name] = stat.S_IMODE(info.st_mode)
        elif stat.S_ISREG(info.st_mode):
            owner = (info.st_uid, info.st_gid)
            theirs = None if owner == MINE else owner
            mode = stat.S_IMODE(info.st_mode)
            found[name] = File(content=path.read_bytes(), mode=mode, owner=theirs)
    return found


def files_of(found: Seen) -> dict[str, File | Symlink]:
    return {path: node for path, node in found.items() if not isinstance(node, int)}


def apply(
    executor: Executor,
    wanted: tuple[Wanted, ...],
    *,
    until: int | None = None,
    changed: ChangedFiles = ChangedFiles.KEEP,
) -> Plan:
    """As many of the operations as said, or all; then it must be as planned."""

    async def work() -> Plan:
        plan = (await survey_files(executor, wanted, changed=changed)).plan
        await executor.perform(plan.operations[:until])
        if until is None:
            assert (await survey_files(executor, wanted)).plan.operations == ()
        return plan

    return asyncio.run(work())


class Counting:
    """An executor that counts what it reads."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.readings = 0

    async def read(self, *, files: tuple[str, ...], folders: tuple[str, ...]) -> Present:
        self.readings += 1
        return await self._executor.read(files=files, folders=folders)

    async def perform(self, operations: tuple[Operation, ...]) -> None:
        await self._executor.perform(operations)


def test_where_nothing_else_was_installed_one_reading_is_enough(near: Make, tmp_path: Path) -> None:
    """By ssh each is a connection."""
    lay_out(GuestTree({}, frozenset()), tmp_path)
    wanted = (GuestFile(path="etc/one", text="one\n"),)
    asyncio.run(survey_files(counting := Counting(near(tmp_path)), wanted))
    assert counting.readings == 1
    apply(near(tmp_path), wanted)
    for wish, readings in ((wanted, 1), ((), 2), ((GuestFile(path="etc/two", text=""),), 2)):
        asyncio.run(survey_files(counting := Counting(near(tmp_path)), wish))
        assert counting.readings == readings


@settings(max_examples=often(6, soak=60))
@given(trees(), wanted_sets(), wanted_sets())
def test_any_sequence_then_removal_leaves_the_tree_as_it_was(
    near: Make, tree: GuestTree, first: tuple[Wanted, ...], second: tuple[Wanted, ...]
) -> None:
    tree = mine(tree)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        lay_out(tree, root)
        before = seen(root)
        for wanted in (first, second):
            apply(near(root), wanted)
            assert files_of(seen(root)) == expected(tree, wanted)
        assert (root / MANIFEST).exists() == bool(second)
        apply(near(root), ())
        assert seen(root, state=True) == before


NASTY = 'it\'s "$(touch canary)" `touch canary`; \\n %s\t\x01\n# END\nEOF\n=0 link\n' * 200
HOSTILE: tuple[Wanted, ...] = (
    GuestFile(path="etc/$(touch canary)/`touch canary`;touch canary/it's", text=NASTY),
    GuestFile(path="etc/one", text=NASTY, block=True, mode=0o755),
    GuestSymlink(path="etc/-link", target="$(touch canary)'; touch canary"),
    GuestFile(path="-n", text="", mode=0o600),
)


def laid_out(folder: Path) -> Path:
    root = folder / "root"
    root.mkdir()
    nodes: dict[str, File | Symlink] = {
        "etc/one": File(content=b"#!/bin/sh", mode=0o640),
        "etc/-link": File(content=bytes(range(256)) * 4, mode=0o755),
        "-n": Symlink(target="nowhere\n"),
    }
    lay_out(GuestTree(nodes), root)
    return root


def test_no_content_or_path_runs(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = laid_out(tmp_path)
    before = seen(root)
    apply(make(root), HOSTILE)
    assert (root / HOSTILE[0].path).read_text() == NASTY
    assert (root / "etc/-link").readlink() == Path("$(touch canary)'; touch canary")
    apply(make(root), ())
    assert seen(root, state=True) == before
    assert not list(tmp_path.rglob("canary"))
    assert not Path("/canary").exists()


@pytest.mark.parametrize("way", ["dash", "folder"])  # each operation is whole in any shell
def test_broken_off_between_any_two_operations(way: str, tmp_path: Path) -> None:
    """Here at every fifth; at every one in tests/unit/guestside/install/test_planner.py."""
    root = laid_out(tmp_path)
    with variant(way, tmp_path) as near:
        broken_off(root, near)


def broken_off(root: Path, near: Make) -> None:
    before = seen(root)
    for until in range(0, 20, 1 if SOAK else 5):
        apply(near(root), HOSTILE, until=until)
        apply(near(root), HOSTILE[:1], until=until)
        apply(near(root), HOSTILE)
        apply(near(root), (), until=until)
        apply(near(root), ())
        assert {
            k: v for k, v in seen(root, state=True).items() if k not in ("var", "var/lib")
        } == before


@pytest.mark.parametrize("shell", SHELLS)
def test_killed_within_an_operation(shell: str, tmp_path: Path) -> None:
    """The shell kills itself before a line of its script: between the parts of an operation. The
    first at every ninth line, the others at some."""
    root = laid_out(tmp_path)
    for folder in ("var", "var/lib"):
        (root / folder).mkdir()
    before = seen(root)
    executor = RemoteFiles(LocalChannel(shell), name="g1", root=str(root))
    planned = asyncio.run(survey_files(executor, HOSTILE)).plan.operations
    lines = "".join(write_script(planned, root=str(root))).splitlines(keepends=True)
    first = lines.index(next(line for line in lines if line.startswith("at 0 ")))
    for place in range(first, len(lines), 9 if shell == "dash" else 40):
        script = "".join([*lines[:place], "kill -9 $$\n", *lines[place:]])
        assert asyncio.run(LocalChannel(shell).run(script)).status == -signal.SIGKILL
        apply(executor, HOSTILE)
        apply(executor, ())
        assert seen(root, state=True) == before


def test_what_lies_in_the_way(near: Make, tmp_path: Path) -> None:
    """A link in place of the file that is about to be made is not followed; a FIFO is not waited
    for; what is too large is not taken."""
    root = laid_out(tmp_path)
    outside = tmp_path / "outside"
    outside.write_text("outside")
    (root / "etc/.one.xenlb").symlink_to(outside)
    apply(near(root), (GuestFile(path="etc/one", text="x"),))
    assert (root / "etc/one").read_text() == "x"
    apply(near(root), ())
    assert outside.read_text() == "outside"
    os.mkfifo(root / "etc/fifo")
    with (root / "etc/large").open("wb") as large:
        large.truncate(LARGEST + 1)
    for name, sentence in (("fifo", "neither a file"), ("large", "larger than")):
        with pytest.raises(DeliveryError, match=f"/etc/{name} is .*{sentence}"):
            apply(near(root), (GuestFile(path=f"etc/{name}", text=""),))


def test_a_guest_s_own_manifest_reaches_nothing_else(near: Make, tmp_path: Path) -> None:
    root = laid_out(tmp_path)
    (root / STATE).mkdir(parents=True)
    entry = ManifestEntry(
        kind=EntryKind.WHOLE,
        mode=0o644,
        digests=(digest(b""),),
        previous=WasFile(mode=0o644, digest=digest(b"x")),
    )
    entries = {"etc/';touch canary;'": entry, "etc/one/$(touch canary)": entry}
    (root / MANIFEST).write_bytes(text(Manifest(entries=entries, folders=("etc",))))
    before = seen(root)
    apply(near(root), (), changed=ChangedFiles.DISCARD)
    assert seen(root) == before
    assert not list(tmp_path.rglob("canary"))
    for bad in (b"{", b"\0" * 1000, b'{"version": 1, "files": {"../x": {}}, "folders": []}'):
        (root / STATE).mkdir(parents=True, exist_ok=True)
        (root / MANIFEST).write_bytes(bad)
        with pytest.raises(DeliveryError, match=r"manifest\.json cannot be used"):
            apply(near(root), ())
        assert seen(root) == before


def test_what_fails_is_one_sentence(make: Make, tmp_path: Path) -> None:
    root = laid_out(tmp_path)
    file = File(content=b"x", mode=0o644)
    operations = tuple(
        Write(path=path, file=file) for path in ("etc/new", "etc/one/x", "etc/later")
    )
    with pytest.raises(DeliveryError) as failed:
        asyncio.run(make(root).perform(operations))
    assert "g1" in failed.value.message
    assert "write /etc/one/x (0644, 1 bytes)" in failed.value.message
    assert "irectory" in failed.value.message
    assert failed.value.message.isprintable()
    assert (root / "etc/new").read_text() == "x"
    assert not (root / "etc/later").exists()


# What is particular to one of them.


@pytest.mark.skipif(os.geteuid() != 0, reason="chroot(2) takes root")
def test_links_of_a_guest_that_is_off_lead_nowhere_out(tmp_path: Path) -> None:
    root = laid_out(tmp_path)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "one").write_text("outside")
    (root / "etc/absolute").symlink_to(outside)
    (root / "etc/up").symlink_to("../" * 20 + str(outside).lstrip("/"))
    (root / "var").symlink_to("/" + str(outside).lstrip("/"))
    executor = ImageFiles(RootFolder(path=str(root)), name="g1", still_off=off)
    for path in ("etc/absolute/one", "etc/up/one"):
        with pytest.raises(DeliveryError, match="not a folder"):
            apply(executor, (GuestFile(path=path, text="x"),))
    # The same, resolved below the guest's root, as the guest itself would.
    inside = root / str(outside).lstrip("/")
    inside.mkdir(parents=True)
    apply(executor, (GuestFile(path="etc/up/one", text="x"),))
    assert (inside / "one").read_text() == "x"
    assert (inside / "lib/xenlb/manifest.json").exists()
    assert [path.name for path in outside.rglob("*")] == ["one"]
    assert (outside / "one").read_text() == "outside"


def test_a_guest_that_is_off_and_what_must_not_be(tmp_path: Path) -> None:
    async def running() -> None:
        raise DeliveryError("g1 runs")

    def refusal(root: str, wanted: tuple[Wanted, ...], still_off: object = off) -> str:
        executor = ImageFiles(RootFolder(path=root), name="g1", still_off=still_off)  # type: ignore[arg-type]
        with pytest.raises(DeliveryError) as failed:
            apply(executor, wanted)
        return failed.value.message

    root = laid_out(tmp_path)
    assert refusal("/", ()) == "/ is the root of this host, not of a guest"
    assert refusal(str(tmp_path), ()) == f"there is no /etc in {tmp_path}"
    assert "No such file" in refusal(f"{tmp_path}/no", ())
    assert refusal(str(root), (), running) == "g1 runs"
    if os.geteuid() == 0:
        script = GuestFile(path="etc/init.d/x", text="", mode=0o755)
        assert "update-rc.d" in refusal(str(root), (script,))
        assert not (root / "etc/init.d").exists()


@pytest.mark.parametrize("destination", ["", "-oProxyCommand=x", "a b", "a\nb", "a'b", "$(x)"])
def test_what_is_no_destination(destination: str) -> None:
    with pytest.raises(DeliveryError, match="not a destination for ssh"):
        Ssh(destination)


def test_ssh_tells_what_is_wrong_and_what_to_do(tmp_path: Path) -> None:
    def run(channel: Ssh, script: str = "echo x") -> bytes:
        output = asyncio.run(channel.run(script, limit=30))
        assert output.status == 0
        return output.out

    def failure(channel: Ssh, script: str = "echo x", limit: float = 30) -> str:
        with pytest.raises(DeliveryError) as failed:
            asyncio.run(channel.run(script, limit=limit))
        return failed.value.message

    with sshd(tmp_path, "ForceCommand echo welcome; exec sh -s") as server:
        assert run(server.channel()) == b"x\n"
        assert "accepts no key of this host" in failure(server.channel(key="other"))
        assert "did not end within 1 s" in failure(server.channel(), "sleep 60", 1)
        flood = f"head -c {MOST_OUTPUT + 1} /dev/zero"
        assert "printed more than" in failure(server.channel(), flood)
        server.know("other")
        assert "its host key is unknown" in failure(server.channel())
        (tmp_path / "known").write_text("")
        assert "its host key is unknown" in failure(server.channel())
    assert "no ssh server runs" in failure(server.channel())


def test_the_guest_agent_tells_what_is_wrong(tmp_path: Path) -> None:
    def failure(agent: GuestAgent, script: str, limit: float) -> str:
        with pytest.raises(DeliveryError) as failed:
            asyncio.run(agent.run(script, limit=limit))
        return failed.value.message

    with guest_agent(tmp_path) as connect:
        agent = GuestAgent(connect, name="g1")
        pid = tmp_path / "pid"
        assert "did not end within 1 s" in failure(agent, f"echo $$ >{pid}; exec sleep 60", 1)
        until = 50
        while Path(f"/proc/{int(pid.read_text())}").exists() and until:
            asyncio.run(asyncio.sleep(0.1))
            until -= 1
        assert until
        assert "too large" in failure(agent, ":" * 3_000_000, 30)
    with guest_agent(tmp_path, "-b", "guest-exec") as connect:
        assert "not allowed to run commands" in failure(GuestAgent(connect, name="g1"), ":", 30)
