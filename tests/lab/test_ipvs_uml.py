"""The IPVS contract against a real kernel: pytest inside the lab, on the same tests."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from tests.lab.host import CHECKOUT, venv_directory

if TYPE_CHECKING:
    from tests.lab.uml import UmlLab


def test_the_contract_holds_for_the_real_kernel(uml: UmlLab) -> None:
    done = uml.run(
        [
            f"{venv_directory()}/bin/python",
            *("-m", "pytest", "tests/contract", "--kernel=real"),
            *("-q", "-p", "no:cacheprovider", "--color=no"),
            *os.environ.get("XENLB_CONTRACT", "").split(),
        ],
        cwd=str(CHECKOUT),
        timeout=300,
        check=False,
    )
    print(done.out, done.err)
    assert done.rc == 0, f"{done.out}\n{done.err}"
    passed = re.search(r"(\d+) passed", done.out)
    assert passed
    assert int(passed[1]) >= 80
    assert "skipped" not in done.out
