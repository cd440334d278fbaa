"""QEMU's monitor events, as Debian 12's QEMU 7.2 sends them."""

from uuid import UUID

import pytest

from xenlb.hypervisor.libvirt.qmp import hypervisor_event
from xenlb.model.domain import GuestId, RequestKind
from xenlb.model.events import HypervisorEvent, Resumed, ShutdownCancelled, ShutdownRequested

GUEST = GuestId(uri="qemu:///system", uuid=UUID(int=1))


def requested(kind: RequestKind) -> ShutdownRequested:
    return ShutdownRequested(at=9.0, guest=GUEST, incarnation=4, kind=kind)


@pytest.mark.parametrize(
    ("name", "details", "event"),
    [
        ("POWERDOWN", None, requested(RequestKind.POWERDOWN)),
        ("POWERDOWN", "{}", requested(RequestKind.POWERDOWN)),
        ("VSERPORT_CHANGE", '{"open":true,"id":"ua-xenlb"}', requested(RequestKind.INSIDE)),
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
        ("MIGRATION", '{"status":"setup"}', requested(RequestKind.SUSPEND)),
        ("MIGRATION", '{"status":"active"}', requested(RequestKind.SUSPEND)),
        ("MIGRATION", '{"status":"completed"}', None),
        ("MIGRATION", '{"status":"failed"}', Resumed(at=9.0, guest=GUEST, incarnation=4)),
        ("MIGRATION", '{"status":"cancelled"}', Resumed(at=9.0, guest=GUEST, incarnation=4)),
        ("MIGRATION", '{"status":7}', None),
        ("SHUTDOWN", '{"guest":true}', None),
    ],
)
def test_monitor_event_is_translated(
    name: str, details: str | None, event: HypervisorEvent | None
) -> None:
    assert hypervisor_event(name, details, guest=GUEST, incarnation=4, at=9.0) == event
