"""Scripts into a guest by the host's own OpenSSH client, as its user has it set up.

Keys, jump hosts, ports and known hosts are those of ssh_config(5) and ssh-agent(1): nothing of that
is xenlb's. A host key that is not known is never accepted here.
"""

import re
from collections.abc import Sequence

from xenlb.guestside.transport.channel import (
    LIMIT,
    DeliveryError,
    Output,
    OutputTooLong,
    TransportTimeout,
    last_line,
    run_child,
    unwrapped,
    wrapped,
)

# Seconds, with the exchange of keys (ssh_config(5)): ten are short in a guest that is emulated, and
# boots.
CONNECT = 30
# ControlMaster=no: a master process made by this call would live on in its place. One that is
# there already is used. Nothing of this host is lent to the guest, whatever ssh_config says: no
# agent, display, credentials or ports.
_OPTIONS = {
    "BatchMode": "yes",
    "ConnectTimeout": str(CONNECT),
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
    "ControlMaster": "no",
    "ClearAllForwardings": "yes",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "ForwardX11Trusted": "no",
    "GSSAPIDelegateCredentials": "no",
    "PermitLocalCommand": "no",
    "Tunnel": "no",
    "RemoteCommand": "none",
    "RequestTTY": "no",
}
_DESTINATION = re.compile(r"[A-Za-z0-9_.@:%/\[\]+~][A-Za-z0-9_.@:%/\[\]+~-]{0,254}", re.ASCII)
# What ssh says last, and what that means. Its messages are not translated.
_MEANINGS = (
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED|Host key verification failed|host key is known",
        "its host key is not the one this host knows, or it knows none",
        "compare the guest's key and put it into known_hosts: ssh-keyscan(1), ssh-keygen -R",
    ),
    (
        r"Permission denied \(|Too many authentication failures",
        "the guest takes none of this host's keys",
        "put the public key of root on this host into the guest's ~/.ssh/authorized_keys",
    ),
    (
        r"Could not resolve hostname",
        "there is no address for that name",
        "set guest-side: ssh: to an address, or name the guest in /etc/hosts or ssh_config",
    ),
    (r"Connection refused", "no ssh server answers there", "start sshd in the guest"),
    (
        r"timed out|No route to host|Network is unreachable|Connection closed|Connection reset",
        "it cannot be reached",
        "is the guest up, and does its firewall let this host in?",
    ),
)


class Ssh:
    """A Channel. `destination` as ssh(1) takes it: a name of ssh_config, user@host, ssh://…;
    `options` come before xenlb's own, of which ssh takes the first."""

    def __init__(self, destination: str, *, options: Sequence[str] = ()) -> None:
        if not _DESTINATION.fullmatch(destination):
            raise DeliveryError(
                f"{destination!a} is not a destination for ssh",
                hint="it is a name, an address, or USER@HOST, without blanks",
            )
        self._destination = destination
        settings = [word for name, value in _OPTIONS.items() for word in ("-o", f"{name}={value}")]
        self._command = ["ssh", "-T", *options, *settings, "--", destination, "sh -s"]

    async def run(self, script: str, *, limit: float = LIMIT) -> Output:
        try:
            output = await run_child(self._command, stdin=wrapped(script), limit=limit)
        except OSError as error:
            raise DeliveryError(
                f"ssh cannot be started: {error.strerror}", hint="apt install openssh-client"
            ) from None
        except TransportTimeout:
            raise DeliveryError(
                f"ssh to {self._destination} did not end within {limit:.0f} s",
                hint="see whether the guest hangs, and try again",
            ) from None
        except OutputTooLong:
            raise DeliveryError(
                f"{self._destination} says more than xenlb reads",
            ) from None
        if (said := unwrapped(output)) is None:
            raise self._failure(output)
        if said.status == 255:
            raise DeliveryError(f"the connection of ssh to {self._destination} broke")
        return said

    def _failure(self, output: Output) -> DeliveryError:
        text = output.err[-8192:].decode("utf-8", "replace")
        for pattern, meaning, hint in _MEANINGS:
            if re.search(pattern, text):
                return DeliveryError(f"ssh to {self._destination}: {meaning}", hint=hint)
        why = last_line(output.err) or f"it ended with status {output.status}"
        return DeliveryError(
            f"ssh to {self._destination} failed: {why}",
            hint=f"try as root: ssh {self._destination} true",
        )
