"""Entry of `python -m xenlb.cli`, which the installed command runs."""

from xenlb.cli import main

main()
