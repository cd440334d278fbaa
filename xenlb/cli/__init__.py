"""The command line. Every verb imports this module first, so it imports nothing itself."""

import sys


def main() -> None:
    """Run the command `xenlb`."""
    from xenlb.cli.root import run

    sys.exit(run(sys.argv[1:]))
