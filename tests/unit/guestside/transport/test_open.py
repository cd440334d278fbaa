"""Which way into a guest; libvirt is its own test driver, with one domain that runs."""

import asyncio
from collections.abc import Iterator
from uuid import UUID

import libvirt
import pytest

from xenlb.guestside.target import GuestTarget
from xenlb.guestside.transport import disks
from xenlb.guestside.transport.channel import DeliveryError
from xenlb.guestside.transport.image import Disk, ImageFiles, RootFolder
from xenlb.guestside.transport.open import open_access, still_off
from xenlb.model.guest_side import Delivery, GuestSide

TEST_URI = "test:///default"
TEST_UUID = UUID("6695eb01-f6a4-8304-79aa-97f2502e193f")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    yield
    libvirt.registerErrorHandler(None, None)


def where(side: GuestSide, *, uuid: UUID = TEST_UUID) -> GuestTarget:
    return GuestTarget(uri=TEST_URI, uuid=uuid, name="test", side=side)


def test_a_guest_that_runs_is_not_off() -> None:
    async def check(uuid: UUID) -> None:
        await still_off(where(GuestSide(delivery=Delivery.ROOTFS), uuid=uuid))()

    with pytest.raises(DeliveryError, match="test is running; its files"):
        asyncio.run(check(TEST_UUID))
    with pytest.raises(DeliveryError, match="the libvirt call about test failed: Domain not found"):
        asyncio.run(check(UUID(int=1)))


@pytest.mark.parametrize(
    ("side", "sentence"),
    [
        (GuestSide(), "names no access to test"),
        (GuestSide(delivery=Delivery.SSH), "no address of test is known"),
        (GuestSide(delivery=Delivery.SSH, ssh="-oProxyCommand=x"), "not a destination"),
        (GuestSide(delivery=Delivery.XENSTORE), "configures itself"),
    ],
)
def test_where_there_is_no_way(side: GuestSide, sentence: str) -> None:
    with pytest.raises(DeliveryError, match=sentence) as failed:
        asyncio.run(open_access(where(side)))
    assert failed.value.hint


def test_a_folder_that_the_operator_mounted() -> None:
    side = GuestSide(delivery=Delivery.ROOTFS)
    executor = asyncio.run(open_access(where(side), root="/mnt")).executor
    assert isinstance(executor, ImageFiles)


FILE = "<disk type='file'>{}<source file='/a.img'/></disk>"
PLACES: dict[str, RootFolder | tuple[Disk, ...] | str] = {
    "<filesystem type='mount'><source dir='/g'/><target dir='/'/></filesystem>": RootFolder(
        path="/g"
    ),
    "<filesystem type='file'><source file='/g'/><target dir='/'/></filesystem>": "not a folder",
    "<filesystem><source dir='/g'/><target dir='/srv'/></filesystem>": "no disks",
    FILE.format("<driver name='qemu' type='qcow2'/>"): (Disk(path="/a.img", format="qcow2"),),
    FILE.format(""): (Disk(path="/a.img", format="raw"),),
    FILE.format("<driver type='raw,file=/etc/shadow'/>"): "unknown format",
    FILE.format("<shareable/>"): "others may write",
    FILE.format("<readonly/>"): "no disks",
    "<disk device='cdrom'><source file='/c'/></disk>"
    "<disk type='block'><driver type='raw'/><source dev='/dev/vg/g'/></disk>": (
        Disk(path="/dev/vg/g", format="raw"),
    ),
    "<disk type='network'><source protocol='rbd' name='a'/></disk>": "neither a file nor",
}


@pytest.mark.parametrize("devices", PLACES)
def test_where_the_files_are(devices: str) -> None:
    text = f"<domain><devices>{devices}</devices></domain>"
    match PLACES[devices]:
        case str(sentence):
            with pytest.raises(DeliveryError, match=sentence):
                disks.storage_of(text, name="g", uri="qemu:///system")
        case place:
            assert disks.storage_of(text, name="g", uri="qemu:///system") == place
    with pytest.raises(DeliveryError, match="another host"):
        disks.storage_of(text, name="g", uri="qemu+ssh://other/system")
