"""How the tests are shared out to the two processes of `make test` and `make unit`.

Each lab is one machine, used by one test after the other: all tests of the Xen lab run in one
process, and all of the User-mode Linux lab in the one beside it. The rest goes, file by file, to
whoever is free. pytest-xdist has groups for this, which it does not heed with every pytest.
"""

from pathlib import PurePosixPath

from xdist.scheduler import LoadScopeScheduling


def lane(nodeid: str) -> str:
    """The tests of one lane run in one process, in their order."""
    path = PurePosixPath(nodeid.partition("::")[0])
    if "lab" not in path.parts:
        return str(path)
    return "xen" if "xen" in path.stem.split("_") else "uml"


# Files that take several seconds; they start first, so that a short one ends the session.
LONG = (
    "guestside/ways/test_delivery",
    "guestside/files/test_guest_script",
    "hypervisor/test_libvirt",
    "guestside/files/test_conversation",
    "hypervisor/test_hook_script",
    "test_install",
    "guestside/files/test_hold_script",
    "guestside/seen/test_verify",
    "hypervisor/test_connections",
    "cli/test_guest",
    "model/test_step",
    "director/test_addresses",
)


def turn(nodeid: str) -> int:
    """What takes longest begins first."""
    first = ("xen", "uml", *(f"tests/unit/{name}.py" for name in LONG))
    mine = lane(nodeid)
    return first.index(mine) if mine in first else len(first)


class Lanes(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    def _split_scope(self, nodeid: str) -> str:
        return lane(nodeid)
