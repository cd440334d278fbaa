"""The script that prints the network state of a guest, with its parameters in front."""

import re
from collections.abc import Iterable
from importlib import resources

from xenlb.guestside.requirements.needs import Needs

_WORD = re.compile(r"[A-Za-z0-9._:/-]+")


def observe_script(needs: Needs, *, interfaces: Iterable[str] = ()) -> str:
    """observe.sh with its parameters, for the guest's shell.

    `interfaces`: those that receive packets of services; the script also prints the software that
    configures them. Raises ValueError for a name that the shell would not read as one word.
    """
    all_interfaces = dict.fromkeys(
        (
            *interfaces,
            *(route.interface for route in needs.routes),
            *(mark.interface for mark in needs.marks),
            *needs.no_tx_checksums,
        )
    )
    script = resources.files("xenlb.guestside.inspect").joinpath("observe.sh").read_text()
    sysctls = _words(sysctl.name for sysctl in needs.sysctls)
    return f"sysctls='{sysctls}'\ninterfaces='{_words(all_interfaces)}'\n{script}"


def _words(values: Iterable[str]) -> str:
    """The values with blanks between, to stand in quotes."""
    values = tuple(values)
    for value in values:
        if not _WORD.fullmatch(value) or ".." in value:
            raise ValueError(f"{value!r:.60} cannot be a parameter of observe.sh")
    return " ".join(values)
