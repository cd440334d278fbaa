"""How the tests are shared out to the two processes of `make test`.

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


def turn(nodeid: str) -> tuple[int, bool]:
    """What takes longest begins first; what powers its lab off comes last there."""
    return {"xen": 0, "uml": 1}.get(lane(nodeid), 2), "/test_host_shutdown" in nodeid


class Lanes(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    def _split_scope(self, nodeid: str) -> str:
        return lane(nodeid)
