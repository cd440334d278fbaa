"""Keys with which a lab's host (Dom0, the director) reaches its guests by plain `ssh root@…`.

They are made once and kept in the cache. All guests have the same host key, so that one line of
the host's known_hosts tells it, and ssh's strict checking stays as it is.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tests.lab.debian import guest_shell, packages
from tests.lab.host import LabError, LabHost

NEEDS = {"ssh-keygen": "openssh-client"}
GUESTS = ("10.0.0.*", "fd00:10::*")
# For the whole machine, not in /root/.ssh: in the User-mode Linux lab that is the one of whoever
# runs the tests.
IDENTITY = "/etc/ssh/lab_guests"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """Private and public ones, as ssh-keygen writes them."""

    host_key: str
    host_public: str
    client_key: str
    client_public: str

    def files_of_a_guest(self) -> dict[str, str]:
        return {
            "/etc/ssh/ssh_host_ed25519_key": self.host_key,
            "/etc/ssh/ssh_host_ed25519_key.pub": self.host_public,
            "/root/.ssh/authorized_keys": self.client_public,
        }

    def files_of_the_host(self) -> dict[str, tuple[str, int]]:
        """Path → content and mode."""
        # The default, sntrup761x25519, is six seconds of the Xen lab's emulated processors.
        config = (
            f"Host {' '.join(GUESTS)}\n"
            f"    IdentityFile {IDENTITY}\n"
            "    KexAlgorithms curve25519-sha256\n"
        )
        return {
            IDENTITY: (self.client_key, 0o600),
            "/etc/ssh/ssh_config.d/lab-guests.conf": (config, 0o644),
            "/etc/ssh/ssh_known_hosts": (f"{','.join(GUESTS)} {self.host_public}", 0o644),
        }


def run(lab: LabHost, address: str, command: str) -> str:
    """The output of a command in a guest, by ssh as an operator types it on the host; sshd may yet
    have to start."""
    if not guest_shell.answers(lab, address, 22, timeout=120):
        raise LabError(f"no sshd answers at {address}")
    # BatchMode makes a question an error.
    return lab.run(["ssh", "-o", "BatchMode=yes", f"root@{address}", command], timeout=180).out


def made() -> Keys:
    """The keys, from the cache or made now."""
    if needed := packages.missing_packages(NEEDS):
        raise LabError(f"guests with ssh need: apt-get install {' '.join(needed)}")
    with packages.locked_cache("ssh-keys", packages.report) as cache:
        directory = packages.step(
            cache, "ssh-keys", "labs: making ssh keys for guests", packages.report, _make
        )
        return Keys(
            host_key=(directory / "host").read_text(),
            host_public=(directory / "host.pub").read_text(),
            client_key=(directory / "client").read_text(),
            client_public=(directory / "client.pub").read_text(),
        )


def _make(target: Path) -> None:
    target.mkdir(mode=0o700)
    for name in ("host", "client"):
        comment = ["-C", f"lab-{name}"]
        packages.call(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", *comment, "-f", target / name]
        )
