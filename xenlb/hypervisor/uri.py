"""libvirt URIs: the one that `default` stands for, and whether it is the local Xen."""

from pathlib import Path

from xenlb.model.settings import OWN_CHOICE

XEN_CAPABILITIES = Path("/proc/xen/capabilities")


class SourceUnavailable(Exception):
    """A source did not answer; without it nothing can be said of its guests."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(f"{message} ({hint})")
        self.message = message
        self.hint = hint


def real_uri(uri: str) -> str:
    """The URI, or for OWN_CHOICE the one that libvirt chooses. Raises SourceUnavailable."""
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
    """Are the guests of this libvirt those of the Dom0 this process runs in?

    Who names the local Xen is taken at his word: /proc/xen is a mount of its own, which is not
    there in a service with a private /proc (systemd's ProtectProc=), and the xenstore source says
    by itself what it misses.
    """
    if uri in {"xen:///", "xen:///system"}:
        return True
    if uri != OWN_CHOICE:
        return False
    try:
        return "control_d" in capabilities.read_text()
    except OSError:
        return False
