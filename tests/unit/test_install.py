"""`make install` into a folder that is moved before use, and `make uninstall`; the unit file."""

import gzip
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

import pytest

from xenlb import __version__

ROOT = Path(__file__).resolve().parents[2]
HOOKS = [f"etc/libvirt/hooks/{driver}.d/xenlb" for driver in ("libxl", "qemu", "lxc")]
PREFIX = "/usr/opt"  # not the default: a path that is written out somewhere shows


def make(*arguments: str) -> str:
    clean = {k: v for k, v in os.environ.items() if k not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}}
    done = subprocess.run(
        ["make", "--no-print-directory", "-C", ROOT, *arguments],
        env=clean,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tree(root: Path) -> dict[str, bytes]:
    """Every file and link below `root` with what it holds."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = os.readlink(path).encode()
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An installation made under one name and moved to another; where it was made is gone."""
    made = tmp_path_factory.mktemp("made") / "staging"
    make("install", f"DESTDIR={made}", f"PREFIX={PREFIX}")
    moved = tmp_path_factory.mktemp("moved") / "root"
    made.rename(moved)
    yield moved
    shutil.rmtree(moved)


def test_what_lands_where(staged: Path) -> None:
    base = staged / PREFIX.lstrip("/")
    for place in (
        "sbin/xenlb",
        "lib/xenlb/bin/python",
        "lib/systemd/system/xenlb.service",
        "lib/systemd/system/xenlb-drain.service",
        "share/man/man8/xenlb.8.gz",
        "share/man/man8/xenlb-apply.8.gz",
        "share/man/man8/xenlb-drain.8.gz",
        "share/man/man8/xenlb-guest.8.gz",
        "share/man/man8/xenlb-status.8.gz",
        "share/man/man5/xenlb.yaml.5.gz",
        "share/bash-completion/completions/xenlb",
        "share/zsh/site-functions/_xenlb",
        "share/fish/vendor_completions.d/xenlb.fish",
        "share/doc/xenlb/README.md",
        "share/doc/xenlb/CHANGELOG.md",
        "share/doc/xenlb/docs/tutorial.md",
        "share/doc/xenlb/docs/decisions/README.md",
    ):
        assert (base / place).exists(), place
    assert (staged / "etc/xenlb/xenlb.yaml").exists()
    assert (staged / "etc/xenlb/templates").is_dir()
    for hook in HOOKS:
        assert (staged / hook).read_bytes() == (ROOT / "hooks/xenlb").read_bytes()
        assert os.access(staged / hook, os.X_OK)
    (script,) = (base / "lib/xenlb").glob(
        "lib/*/site-packages/xenlb/guestside/render/templates/hold.sh"
    )
    assert script.read_text().startswith("#!/bin/sh\n")
    templates = ROOT / "xenlb/guestside/render/templates"
    assert tree(script.parent) == tree(templates)
    assert gzip.decompress((base / "share/man/man8/xenlb.8.gz").read_bytes()).startswith(b".\\")
    assert os.access(base / "sbin/xenlb", os.X_OK)
    assert "/usr/local" not in (base / "lib/systemd/system/xenlb.service").read_text()
    rights = {path.stat().st_mode & 0o022 for path in staged.rglob("*") if not path.is_symlink()}
    assert rights == {0}, "somebody else may write"


def test_links_of_the_installed_documentation_lead_to_files(staged: Path) -> None:
    folder = staged / PREFIX.lstrip("/") / "share/doc/xenlb"
    pages = sorted(folder.rglob("*.md"))
    links = [
        page.parent / link
        for page in pages
        for link in re.findall(r"\]\(([^)#:\s]+)[^)]*\)", page.read_text())
    ]
    assert len(links) > 50
    assert not [link for link in links if not link.exists()]


def test_a_wheel_has_what_is_no_python() -> None:
    """`make install` copies the folder; pip takes what setup.cfg names."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    packed = {
        found
        for package, patterns in setup["options.package_data"].items()
        for pattern in patterns.split(", ")
        for found in (ROOT / package.replace(".", "/")).glob(pattern)
        if found.is_file()
    }
    files = {path for path in (ROOT / "xenlb").rglob("*") if path.is_file()}
    assert {path for path in files if path.suffix not in {".py", ".pyc"}} == packed


def test_nothing_knows_where_it_was_made(staged: Path) -> None:
    # The folders of the checkout that files are made from; the name of the checkout alone may stand
    # in a dependency by chance (pygments has the text /src/main).
    sources = [str(ROOT / name).encode() for name in ("xenlb", "build", ".venv", "tools", "etc")]
    for name, held in tree(staged).items():
        assert b"staging/usr" not in held, name
        assert not any(source in held for source in sources) or name.endswith(".so"), name


def test_the_moved_command_works(staged: Path) -> None:
    python = staged / PREFIX.lstrip("/") / "lib/xenlb/bin/python"

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [python, "-I", *arguments],
            cwd="/",
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    assert run("-m", "xenlb.cli", "--version").stdout == f"xenlb {__version__}\n"
    check = run("-m", "xenlb.cli", "check", str(staged / "etc/xenlb/xenlb.yaml"))
    assert check.returncode == 0, check.stdout
    # Everything the agent needs is there, byte-compiled, and comes from there.
    needs = (
        "libvirt, libvirtaio, pyroute2, yaml, watchdog.observers, click, jinja2, xenlb.agent.main"
    )
    loaded = run("-v", "-c", f"import {needs}; print(xenlb.__file__)")
    assert loaded.returncode == 0, loaded.stderr
    site = python.parents[1] / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    assert loaded.stdout == f"{site}/site-packages/xenlb/__init__.py\n"
    compiled = re.findall(rf"code object from '?{staged}/(\S+\.py)\b(?!c)", loaded.stderr)
    assert not compiled, "these were compiled at the start"
    assert "site-packages/jinja2/__pycache__/" in loaded.stderr


def test_installing_again_keeps_the_configuration(staged: Path) -> None:
    before = tree(staged)
    config = staged / "etc/xenlb/xenlb.yaml"
    ours = config.read_text()
    config.write_text("mine")
    extra = staged / "etc/xenlb/templates/mine"
    extra.write_text("mine")
    make("install", f"DESTDIR={staged}", f"PREFIX={PREFIX}")
    after = tree(staged)
    config.write_text(ours)  # of the other tests of it
    extra.unlink()
    assert after.pop("etc/xenlb/xenlb.yaml") == b"mine"
    assert after.pop("etc/xenlb/templates/mine") == b"mine"
    del before["etc/xenlb/xenlb.yaml"]
    assert after.keys() == before.keys()


def test_uninstall_leaves_only_the_configuration(tmp_path: Path) -> None:
    root = tmp_path / "root"
    make("install", f"DESTDIR={root}", f"PREFIX={PREFIX}")
    make("uninstall", f"DESTDIR={root}", f"PREFIX={PREFIX}")
    assert list(tree(root)) == ["etc/xenlb/xenlb.yaml"]
    assert list((root / "etc/libvirt/hooks").iterdir()) == []


def test_hooks_of_others_stay(tmp_path: Path) -> None:
    """A file of that name, a link, a folder; next to others in the same folder."""
    root = tmp_path / "root"
    theirs, link, folder = (root / hook for hook in HOOKS)
    for hook in (theirs, link, folder):
        hook.parent.mkdir(parents=True)
        hook.with_name("other").write_text("#!/bin/sh\n")
    theirs.write_text("#!/bin/sh\n# somebody's\n")
    link.symlink_to(ROOT / "hooks/xenlb")
    folder.mkdir()
    before = tree(root)
    said = make("install", f"DESTDIR={root}", f"PREFIX={PREFIX}")
    for hook in (theirs, link, folder):
        assert f"{hook} is not xenlb's and stays" in said
    assert "restart" not in said
    make("uninstall", f"DESTDIR={root}", f"PREFIX={PREFIX}")
    after = tree(root)
    del after["etc/xenlb/xenlb.yaml"]
    assert after == before
    assert folder.is_dir()


def test_an_older_hook_of_ours_is_replaced(staged: Path) -> None:
    hook = staged / HOOKS[0]
    head = hook.read_text().splitlines(keepends=True)[:3]
    hook.write_text("".join([*head, "exit 0\n"]))
    said = make("install", f"DESTDIR={staged}", f"PREFIX={PREFIX}")
    assert hook.read_bytes() == (ROOT / "hooks/xenlb").read_bytes()
    assert "not xenlb's" not in said


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_the_units_are_understood(tmp_path: Path) -> None:
    """By systemd itself, with a command in place of the one that is not installed here."""
    units = []
    for source in sorted((ROOT / "etc/systemd").glob("*.service")):
        units.append(tmp_path / source.name)
        units[-1].write_text(source.read_text().replace("/usr/local/sbin/xenlb", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
