"""`make install` for a Dom0 of another Debian release than the machine's.

The agent's virtual environment belongs to one version of Python, and libvirt-python is built for
one version of libvirt. So tools/install.py runs in a small root with Dom0's own Python:

    dom0-python-RELEASE-KEY/        Python with its libraries, from Dom0's userland
    dom0-python-RELEASE-KEY/venv    the agent's dependencies, in the checkout's versions
    dom0-python-RELEASE-KEY/build   what tools/install.py keeps between its runs

pip runs on this machine, with its own configuration, and fetches wheels for the other Python.
libvirt-python has none: it is built in a throw-away Debian with libvirt's headers.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from tests.lab.debian import packages
from tests.lab.debian.packages import Progress, call
from tests.lab.debian.releases import Release
from tests.lab.host import CHECKOUT, venv_directory

# What tools/install.py reads.
SOURCES = (
    "CHANGELOG.md",
    "README.md",
    "docs",
    "etc",
    "hooks",
    "man",
    "setup.cfg",
    "tools",
    "xenlb",
)
BUILT = "libvirt-python"
BUILD_PACKAGES = ("gcc", "libc6-dev", "libvirt-dev", "pkg-config", "python3-dev", "python3-venv")
PLATFORMS = (
    "linux_x86_64",
    "manylinux_2_28_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
)
# $1 the root, %s the requirement of the wheel
BUILD = """\
chroot "$1" python3 -m venv /build
chroot "$1" /build/bin/python -m pip wheel --quiet --no-index --find-links /wheels --no-deps \\
    --wheel-dir /built %s"""
# $1 the root, then the command
IN_ROOT = """
mkdir -p "$1/dev"
mount --rbind /dev "$1/dev"
exec chroot "$@"
"""


def installed(
    release: Release, userland: Path, target: Path, progress: Progress = packages.report
) -> None:
    """Installs the agent in the folder `target`, which must not exist."""
    root = _root(release, userland, progress)
    # Below the root, because nothing else is seen from inside.
    with tempfile.TemporaryDirectory(prefix="make-", dir=root) as work:
        sources = Path(work) / "checkout"
        sources.mkdir()
        for name in SOURCES:
            _copy(CHECKOUT / name, sources / name)
        (sources / "build").symlink_to("../../build")
        inside = f"/{Path(work).name}"
        _run_in(
            root,
            [
                *("/usr/bin/python3", "-I", f"{inside}/checkout/tools/install.py"),
                *("--prefix", "/usr/local", "--destdir", f"{inside}/out", "--venv", "/venv"),
            ],
        )
        shutil.move(Path(work) / "out", target)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def _run_in(root: Path, command: Sequence[str]) -> None:
    users = [] if os.geteuid() == 0 else ["--map-root-user", "--map-auto"]
    call(["unshare", *users, "--mount", "--", "sh", "-e", "-c", IN_ROOT, "sh", root, *command])


def _root(release: Release, userland: Path, progress: Progress) -> Path:
    lab = f"dom0-python-{release.codename}"
    pins = _pins()
    recipe = (userland.name, pins, Path(__file__).read_bytes())
    with packages.locked_cache(lab, progress) as cache:
        root = packages.step(
            cache,
            f"{lab}-{packages.key(recipe)}",
            f"Xen lab: building the agent's dependencies for {release} (about a minute)",
            progress,
            lambda made: _make(release, userland, pins, made),
        )
        packages.forget_others(cache, lab, {root.name})
    return root


def _pins() -> list[str]:
    """The agent's dependencies in the versions of the checkout's environment, as pip names them."""
    (site,) = (venv_directory() / "lib").glob("python3.*/site-packages")
    found = _install_script().closure(site)
    return [f"{each.metadata['Name']}=={each.version}" for each in found]


def _install_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install", CHECKOUT / "tools/install.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _make(release: Release, userland: Path, pins: Sequence[str], made: Path) -> None:
    made.mkdir()
    files = ("./bin", "./lib", "./lib64", "./usr/bin/python3*", "./usr/lib/python3*")
    libraries = ("./usr/lib64", "./usr/lib/x86_64-linux-gnu/l*.so*")
    tar: list[str | Path] = [
        "tar",
        "-x",
        "--no-same-owner",
        "-f",
        userland,
        "-C",
        made,
        "--wildcards",
    ]
    call([*tar, "--no-wildcards-match-slash", *files[:3]])
    call([*tar, *files[3:], *libraries])
    with tempfile.TemporaryDirectory(dir=made) as work:
        wheel = _build_wheel(release, pins, Path(work))
        abi = f"cp{release.python.replace('.', '')}"
        platforms = [word for name in PLATFORMS for word in ("--platform", name)]
        call(
            [
                *_pip("install", "--no-deps", "--no-compile", "--only-binary=:all:"),
                *("--find-links", str(wheel.parent), "--python-version", release.python),
                *("--implementation", "cp", "--abi", abi, "--abi", "abi3", "--abi", "none"),
                *platforms,
                *("--target", f"{made}/venv/lib/python{release.python}/site-packages", *pins),
            ]
        )
    (made / "venv/.stamp").touch()
    (made / "build").mkdir()


def _build_wheel(release: Release, pins: Sequence[str], work: Path) -> Path:
    """The wheel of libvirt-python for that release."""
    (pin,) = (pin for pin in pins if pin.partition("==")[0].lower() == BUILT)
    sources = work / "wheels"
    call([*_pip("download", "--no-deps", f"--no-binary={BUILT}", "--dest", sources), pin])
    # What pip builds with, where it has no network.
    call([*_pip("download", "--no-deps", "--dest", sources), "setuptools", "wheel"])
    packages.bootstrap(
        release,
        None,
        packages=BUILD_PACKAGES,
        without=packages.WITHOUT,
        hooks=(f"copy-in {sources} /", BUILD % pin, f"copy-out /built {work}"),
    )
    (wheel,) = (work / "built").glob("*.whl")
    return wheel


def _pip(*arguments: str | Path) -> list[str | Path]:
    python = venv_directory() / "bin/python"
    return [python, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
