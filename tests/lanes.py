"""How the tests are shared out to the two processes of `make test`.

The Xen lab takes long to boot and is used by one test after the other: its tests run in one
process. The User-mode Linux lab boots anew for each file, so its files go to whichever process is
free, like all others. pytest-xdist has groups for this, which it does not heed with every pytest.
"""

from pathlib import PurePosixPath

from xdist.scheduler import LoadScopeScheduling


def lane(nodeid: str) -> str:
    """The tests of one lane run in one process, in their order."""
    path = PurePosixPath(nodeid.partition("::")[0])
    if "lab" not in path.parts:
        return str(path)
    return "xen" if "xen" in path.stem.split("_") else str(path)


def turn(nodeid: str) -> tuple[int, bool]:
    """What takes longest begins first; what powers its lab off comes last there."""
    first = ("xen",) if "/lab/" not in nodeid else ("xen", lane(nodeid))
    order = first.index(lane(nodeid)) if lane(nodeid) in first else len(first)
    return order, "/test_host_shutdown" in nodeid


class Lanes(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    def _split_scope(self, nodeid: str) -> str:
        return lane(nodeid)
