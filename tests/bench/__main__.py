"""`make bench`: runs the benchmarks named, or all of them.

A lab that fails ends its benchmark with one message, without a trace.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from tests.lab.host import LabError

NAMES = sorted(
    path.stem for path in Path(__file__).parent.glob("[a-z]*.py") if path.stem != "conftest"
)


def main(names: list[str]) -> int:
    if unknown := [name for name in names if name not in NAMES]:
        print(f"no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    status = 0
    for name in names or NAMES:
        sys.argv = [name]  # a benchmark has options of its own
        try:
            status |= importlib.import_module(f"tests.bench.{name}").main() or 0
        except LabError as error:
            print(f"benchmark {name}: {error}", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
