"""What QEMU's monitor events say, as Debian 12's QEMU 7.2 words them."""

from uuid import UUID

import pytest

from xenlb.hypervisor.libvirt.qmp import read
from xenlb.model.domain import GuestId, RequestKind
from xenlb.model.events import HypervisorEvent, Resumed, ShutdownCancelled, ShutdownRequested

GUEST = GuestId(uri="qemu:///system", uuid=UUID(int=1))


def asked(ask: RequestKind) -> ShutdownRequested:
    return ShutdownRequested(at=9.0, guest=GUEST, incarnation=4, kind=ask)


@pytest.mark.parametrize(
    ("event", "details", "told"),
    [
        ("POWERDOWN", None, asked(RequestKind.POWERDOWN)),
        ("POWERDOWN", "{}", asked(RequestKind.POWERDOWN)),
        ("VSERPORT_CHANGE", '{"open":true,"id":"ua-xenlb"}', asked(RequestKind.INSIDE)),
        (
            "VSERPORT_CHANGE",
            '{"open":false,"id":"ua-xenlb"}',
            ShutdownCancelled(at=9.0, guest=GUEST, incarnation=4),
        ),
        ("VSERPORT_CHANGE", '{"open":true,"id":"channel0"}', None),
        ("VSERPORT_CHANGE", '{"id":"ua-xenlb"}', None),
        ("VSERPORT_CHANGE", "[]", None),
        ("VSERPORT_CHANGE", "not JSON", None),
        ("VSERPORT_CHANGE", None, None),
        ("MIGRATION", '{"status":"setup"}', asked(RequestKind.SUSPEND)),
        ("MIGRATION", '{"status":"active"}', asked(RequestKind.SUSPEND)),
        ("MIGRATION", '{"status":"completed"}', None),
        ("MIGRATION", '{"status":"failed"}', Resumed(at=9.0, guest=GUEST, incarnation=4)),
        ("MIGRATION", '{"status":"cancelled"}', Resumed(at=9.0, guest=GUEST, incarnation=4)),
        ("MIGRATION", '{"status":7}', None),
        ("SHUTDOWN", '{"guest":true}', None),
    ],
)
def test_event(event: str, details: str | None, told: HypervisorEvent | None) -> None:
    assert read(event, details, guest=GUEST, incarnation=4, at=9.0) == told
