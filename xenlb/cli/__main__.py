"""`python -m xenlb.cli`, which is what the installed command runs."""

from xenlb.cli import main

main()
