"""Which sources run for which configuration."""

from pathlib import Path

import pytest

from xenlb.sources import is_local_xen


@pytest.mark.parametrize(
    ("uri", "capabilities", "local"),
    [
        ("xen:///system", None, True),  # a service with a private /proc sees no /proc/xen
        ("xen:///", None, True),
        ("default", "control_d\n", True),
        ("default", "", False),  # a guest of Xen
        ("default", None, False),
        ("qemu:///system", "control_d\n", False),
        ("xen+ssh://dom0b/system", "control_d\n", False),
    ],
)
def test_whether_a_libvirt_has_the_guests_of_this_dom0(
    uri: str, capabilities: str | None, local: bool, tmp_path: Path
) -> None:
    file = tmp_path / "capabilities"
    if capabilities is not None:
        file.write_text(capabilities)
    assert is_local_xen(uri, file) is local
