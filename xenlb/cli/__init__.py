"""The command line. Imported by every command, so nothing is imported here before it is needed."""

import sys


def main() -> None:
    """The command `xenlb`."""
    from xenlb.cli.root import run

    sys.exit(run(sys.argv[1:]))
