"""How the tests are shared out to the processes of `make test`, `make check` and `make unit`.

The Xen lab takes long to boot and is used by one test after the other: its tests run in one
process, but for those of the other Debian release, which boot a lab of their own. The User-mode
Linux lab boots anew for each file, so its files go to whichever process is free, like all others.
pytest-xdist has groups for this, which it does not heed with every pytest.
"""

from pathlib import PurePosixPath

from xdist.scheduler import LoadScopeScheduling

OTHER_RELEASE = "test_other_release_xen"

# Files that take several seconds; they start first, so that a short one ends the session.
LONG = (
    "guestside/transport/test_delivery",
    "guestside/render/test_guest_script",
    "hypervisor/test_libvirt_source",
    "guestside/render/test_conversation",
    "hypervisor/test_hook_script",
    "test_install",
    "guestside/render/test_hold_script",
    "guestside/inspect/test_verify",
    "hypervisor/test_connections",
    "cli/test_guest",
    "model/test_reducer",
    "director/test_addresses",
)


def lane(nodeid: str) -> str:
    """The tests of one lane run in one process, in their order: "xen", or those of a file."""
    path = PurePosixPath(nodeid.partition("::")[0])
    return "xen" if boots_xen(nodeid) and path.stem != OTHER_RELEASE else str(path)


def boots_xen(nodeid: str) -> bool:
    path = PurePosixPath(nodeid.partition("::")[0])
    return "lab" in path.parts and "xen" in path.stem.split("_")


def turn(nodeid: str) -> tuple[int, bool]:
    """What takes longest begins first; what powers a lab off comes last in its lane."""
    mine = lane(nodeid)
    if mine == "xen":
        return 0, "/test_host_shutdown" in nodeid
    if mine.startswith("tests/lab/"):
        return (1 if boots_xen(nodeid) else 2), False
    name = mine.removeprefix("tests/unit/").removesuffix(".py")
    return (3 + LONG.index(name) if name in LONG else 3 + len(LONG)), False


class Lanes(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    def _split_scope(self, nodeid: str) -> str:
        return lane(nodeid)
