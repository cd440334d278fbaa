"""What a test does where the machine lacks what it needs."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def lacking(what: str) -> NoReturn:
    """Skips the test with what is missing; fails it under `make test`, where nothing may be."""
    if os.environ.get("XENLB_REQUIRE_LABS") == "1":
        pytest.fail(what, pytrace=False)
    pytest.skip(what)
