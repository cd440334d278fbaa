"""The labs as fixtures, booted once a session and only when a test asks for them.

A test that fails leaves what explains it in $XENLB_ARTIFACTS/TESTNAME (CACHE/artifacts/TESTNAME).
Where a lab cannot run, its tests are skipped with what is missing; with XENLB_REQUIRE_LABS=1, as
under `make test`, they fail instead.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.lab import preflight
from tests.lab.host import LabError, LabHost, artifacts_directory
from tests.lab.needed import lacking

if TYPE_CHECKING:
    from tests.lab.uml import UmlLab
    from tests.lab.xen import XenLab

# Lab fixture name → the lab, while it runs.
_RUNNING = pytest.StashKey[dict[str, LabHost]]()
# The test file that has the User-mode Linux lab now.
_USED_BY = pytest.StashKey[Path]()


def _booted(request: pytest.FixtureRequest, name: str, lab: UmlLab | XenLab) -> Iterator[None]:
    try:
        preflight.require(lab.needs())
    except LabError as error:
        lacking(str(error))
    with ExitStack() as stack:
        try:
            stack.enter_context(lab)
        except LabError as error:  # its message has the end of the console; a trace adds nothing
            pytest.fail(str(error), pytrace=False)
        running = request.config.stash.setdefault(_RUNNING, {})
        running[name] = lab
        try:
            yield
        finally:
            del running[name]


@pytest.fixture(scope="session")
def uml(request: pytest.FixtureRequest) -> Iterator[UmlLab]:
    """The User-mode Linux lab; as freshly booted for each module."""
    from tests.lab.uml import UmlLab  # noqa: PLC0415 - a broken lab must not break the others

    lab = UmlLab()
    for _ in _booted(request, "uml", lab):
        yield lab


@pytest.fixture(scope="session")
def xen(request: pytest.FixtureRequest) -> Iterator[XenLab]:
    """The Xen lab: a Dom0 in QEMU."""
    from tests.lab.xen import XenLab  # noqa: PLC0415 - a broken lab must not break the others

    lab = XenLab()
    for _ in _booted(request, "xen", lab):
        yield lab


@pytest.fixture(scope="module")
def other_release_xen(request: pytest.FixtureRequest) -> Iterator[XenLab]:
    """A second Xen lab, whose Dom0 is of the other Debian release; for one file of tests."""
    from tests.lab.debian import releases  # noqa: PLC0415
    from tests.lab.xen import XenLab  # noqa: PLC0415 - a broken lab must not break the others

    lab = XenLab("xen-other", release=releases.other(), debian_guests=False)
    for _ in _booted(request, "other_release_xen", lab):
        yield lab


@pytest.fixture(scope="module", autouse=True)
def _fresh_uml_for_each_module(request: pytest.FixtureRequest) -> None:
    """Boots the lab anew (two seconds) when another module has used it."""
    lab = request.config.stash.get(_RUNNING, {}).get("uml")
    items = [item for item in request.session.items if item.path == request.path]
    if lab is None or not any("uml" in getattr(item, "fixturenames", ()) for item in items):
        return
    if request.config.stash.setdefault(_USED_BY, request.path) != request.path:
        request.config.stash[_USED_BY] = request.path
        lab.reset()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        fixtures = getattr(item, "fixturenames", ())
        for name, lab in item.config.stash.get(_RUNNING, {}).items():
            if name in fixtures:
                directory = artifacts_directory() / re.sub(r"[^\w.-]+", "_", item.nodeid) / name
                shutil.rmtree(directory, ignore_errors=True)
                lab.capture(directory)
                report.sections.append((f"what the {name} lab left", str(directory)))
    return report
