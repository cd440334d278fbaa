"""A real mail server for the guests of the User-mode Linux lab: Debian's Exim.

Exim because one binary is the whole server and it waits for nothing with a timeout when it starts
(OpenSMTPD's processes give each other two seconds, too short in a busy lab).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.lab.host import LabError
from tests.lab.uml import UmlLab, mac_of
from tests.lab.uml.guests import LxcGuest, lxc_xml
from tests.lab.unpacked import program

PACKAGE = "exim4-daemon-light"
EXIM = "/usr/sbin/exim4"
DOMAIN = "example.org"
INIT = Path(__file__).with_name("mail-guest.sh")

CONFIGURATION = """\
primary_hostname = {name}.{domain}
spool_directory = {mail}/spool
log_file_path = {mail}/log/%slog
local_interfaces = <; {listen}
daemon_smtp_ports = {port}
tls_advertise_hosts =
acl_smtp_rcpt = recipient
keep_environment =

begin acl
recipient:
  accept domains = {domain}
  deny message = nobody here takes mail for this domain

begin routers
mailbox:
  driver = accept
  transport = maildir

begin transports
maildir:
  driver = appendfile
  maildir_format
  directory = {mail}/box
  user = mailbox
  group = mail

begin retry
* * F,1h,5s
"""


def install(lab: UmlLab) -> None:
    """Puts Exim and its users into the lab, whose writes stay in memory."""
    exim = program(PACKAGE, EXIM)
    lab.run(f"install -m 4755 -o root {exim} /usr/sbin/exim4; mkdir -p /etc/exim4")
    for name, number in (("Debian-exim", 64060), ("mailbox", 64061)):
        lab.run(
            f"grep -q ^{name}: /etc/group || echo {name}:x:{number}: >>/etc/group;"
            f" grep -q ^{name}: /etc/passwd ||"
            f" echo {name}:x:{number}:{number}::/nonexistent:/usr/sbin/nologin >>/etc/passwd"
        )


class MailGuest(LxcGuest):
    """A container with Exim. `mail` is where its queue (spool) and its mailbox (box) are."""

    def __init__(self, lab: UmlLab, *, name: str, address: str, port: int, vip: str | None) -> None:
        """`vip`: for gatewaying; it listens there and at its own address, else anywhere."""
        super().__init__(lab, name=name, address=address)
        self.port = port
        self.mail = f"/var/mail/lab/{name}"
        listen: Sequence[str] = (vip, address) if vip else ("0.0.0.0",)
        text = CONFIGURATION.format(
            name=name, domain=DOMAIN, mail=self.mail, listen=" ; ".join(listen), port=port
        )
        lab.write(f"{self.mail}/etc/exim4.conf", text)
        lab.run(
            f"cd {self.mail} && mkdir spool log box && chown Debian-exim spool log"
            " && mkdir box/new box/cur box/tmp && chown -R mailbox box"
        )
        environment = {
            "GUEST": name,
            "GUEST_LOG": self.log_path,
            "GUEST_VIP": vip or "",
            "MAIL": self.mail,
        }
        self.define(
            lxc_xml(
                name=name,
                address=address,
                address6=None,
                mac=mac_of(address),
                metadata=None,
                init=["/bin/sh", str(INIT)],
                environment=environment,
            )
        )

    def queued(self) -> int:
        """Messages that it has accepted and not yet put into its mailbox."""
        return len(self.lab.out(f"find {self.mail}/spool/input -name '*-H'").split())

    def delivered(self) -> list[str]:
        """The Message-IDs in its mailbox."""
        out = self.lab.out(f"find {self.mail}/box/new -type f -exec grep -hi '^Message-ID:' {{}} +")
        return [line.split()[1] for line in out.splitlines()]

    def remove(self) -> None:
        if self.alive():
            self.destroy()
        self.virsh("undefine", self.name)


def missing() -> str:
    """What keeps Exim from running here; nothing if it does."""
    try:
        program(PACKAGE, EXIM)
    except LabError as error:
        return str(error)
    return ""
