"""Long forms: with XENLB_SOAK=1 properties try more examples and loops skip none."""

import os

SOAK = os.environ.get("XENLB_SOAK") == "1"


def often(usual: int, *, soak: int) -> int:
    return soak if SOAK else usual
