"""One suite, two tables: the strict fake (as a rule), and with --kernel=real the kernel's.

With the real one run it as root in the User-mode Linux lab (tests/lab/test_ipvs_uml.py does):
it changes the table of the machine it runs on, and refuses to where there is one already.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.kernel import FakeKernel
from xenlb.ipvs.kernel import Kernel, KernelTable
from xenlb.ipvs.op import DeleteService

# What only a real kernel can answer.
REAL_ONLY = ("test_readers.py", "test_refusals.py")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kernel",
        choices=("fake", "real"),
        default="fake",
        help="what the IPVS contract runs against; real: as root, in the lab",
    )


def _is_real(config: pytest.Config) -> bool:
    # The option is not known where this folder is only a part of what is run.
    return bool(config.getoption("--kernel", "fake") == "real")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if collection_path.name in REAL_ONLY and not _is_real(config) else None


@pytest.fixture(scope="session")
def _empty_at_first(request: pytest.FixtureRequest) -> None:
    if _is_real(request.config):
        with Kernel() as kernel:
            if kernel.read().table.entries:
                pytest.exit("this machine has an IPVS table; it would be lost", 2)


@pytest.fixture
def kernel(request: pytest.FixtureRequest, _empty_at_first: None) -> Iterator[KernelTable]:
    """An empty table."""
    if not _is_real(request.config):
        yield FakeKernel()
        return
    with Kernel() as kernel:
        yield kernel
        assert kernel.apply([DeleteService(key=key) for key in kernel.read().table.entries]) == ()
