"""The script that shows a guest's state, with what is asked of it: no answers here (parse.py)."""

import re
from collections.abc import Iterable
from importlib import resources

from xenlb.guestside.requirements.needs import Needs

_WORD = re.compile(r"[A-Za-z0-9._:/-]+")


def observe_script(needs: Needs, *, interfaces: Iterable[str] = ()) -> str:
    """observe.sh, to be run by the guest's shell. `interfaces`: by which its services come in; what
    configures them is asked, too. Raises ValueError for what is no word."""
    asked = dict.fromkeys(
        (
            *interfaces,
            *(route.interface for route in needs.routes),
            *(mark.interface for mark in needs.marks),
            *needs.no_tx_checksums,
        )
    )
    script = resources.files("xenlb.guestside.inspect").joinpath("observe.sh").read_text()
    sysctls = _words(sysctl.name for sysctl in needs.sysctls)
    return f"sysctls='{sysctls}'\ninterfaces='{_words(asked)}'\n{script}"


def _words(values: Iterable[str]) -> str:
    """For between quotes, and for the shell to part at blanks."""
    values = tuple(values)
    for value in values:
        if not _WORD.fullmatch(value) or ".." in value:
            raise ValueError(f"a guest cannot be asked for {value!r:.60}")
    return " ".join(values)
