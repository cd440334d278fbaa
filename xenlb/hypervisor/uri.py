"""libvirt URIs: the one that `default` stands for, and whether it is the local Xen."""

from pathlib import Path

from xenlb.model.settings import OWN_CHOICE

XEN_CAPABILITIES = Path("/proc/xen/capabilities")


class SourceUnavailable(Exception):
    """A source did not answer, so nothing is known about its guests."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(f"{message} ({hint})")
        self.message = message
        self.hint = hint


def real_uri(uri: str) -> str:
    """Return the URI, or for OWN_CHOICE the one that libvirt chooses. Raises SourceUnavailable."""
    if uri != OWN_CHOICE:
        return uri
    import libvirt  # noqa: PLC0415  (a command that needs no libvirt does not load it)

    from xenlb.hypervisor.libvirt.queries import CallFailed, libvirt_errors  # noqa: PLC0415

    try:
        with libvirt_errors():
            connection = libvirt.openReadOnly(None)
            try:
                return str(connection.getURI())
            finally:
                connection.close()
    except CallFailed as error:
        raise SourceUnavailable(
            f"libvirt cannot be reached: {error}",
            "is libvirtd running? systemctl status libvirtd",
        ) from None


def is_local_xen(uri: str, capabilities: Path = XEN_CAPABILITIES) -> bool:
    """Whether the guests of this libvirt belong to the Dom0 in which this process runs.

    A URI that names the local Xen suffices: a service with a private /proc (systemd's ProtectProc=)
    does not see /proc/xen, which is a mount of its own, and the xenstore source reports by itself
    that xenstored is missing.
    """
    if uri in {"xen:///", "xen:///system"}:
        return True
    if uri != OWN_CHOICE:
        return False
    try:
        return "control_d" in capabilities.read_text()
    except OSError:
        return False
