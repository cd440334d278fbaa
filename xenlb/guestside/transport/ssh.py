"""Channel through the host's OpenSSH client.

Keys, jump hosts, ports and known hosts are those of ssh_config(5) and ssh-agent(1). An unknown host
key is never accepted.
"""

import re
from collections.abc import Sequence

from xenlb.guestside.transport.channel import (
    LIMIT,
    DeliveryError,
    Output,
    last_line,
    run_child,
    unwrapped,
    wrapped,
)

# Seconds, including the key exchange (ssh_config(5)): ten are too few for a guest that is emulated
# and boots.
CONNECT = 30
# ControlMaster=no: a master process started by this call would outlive it. An existing one is used.
# The guest gets no agent, display, credentials or ports of this host, whatever ssh_config says.
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
# Messages of ssh, which are not translated; their meaning, and a hint.
_MEANINGS = (
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED|Host key verification failed|host key is known",
        "its host key is unknown, or differs from the known one",
        "compare the guest's key and add it to known_hosts: ssh-keyscan(1), ssh-keygen -R",
    ),
    (
        r"Permission denied \(|Too many authentication failures",
        "the guest accepts no key of this host",
        "add the public key of root on this host to the guest's ~/.ssh/authorized_keys",
    ),
    (
        r"Could not resolve hostname",
        "the name has no address",
        "set guest-side: ssh: to an address, or name the guest in /etc/hosts or ssh_config",
    ),
    (r"Connection refused", "no ssh server runs there", "start sshd in the guest"),
    (
        r"timed out|No route to host|Network is unreachable|Connection closed|Connection reset",
        "it cannot be reached",
        "check that the guest is up, and that its firewall allows ssh from this host",
    ),
)


class Ssh:
    """A Channel.

    `destination`: as in ssh(1): a name of ssh_config, user@host, ssh://…. `options` come before
    xenlb's own, and take precedence.
    """

    def __init__(self, destination: str, *, options: Sequence[str] = ()) -> None:
        if not _DESTINATION.fullmatch(destination):
            raise DeliveryError(
                f"{destination!a} is not a destination for ssh",
                hint="use a name, an address, or USER@HOST, without blanks",
            )
        self._destination = destination
        settings = [word for name, value in _OPTIONS.items() for word in ("-o", f"{name}={value}")]
        self._command = ["ssh", "-T", *options, *settings, "--", destination, "sh -s"]

    async def run(self, script: str, *, limit: float = LIMIT) -> Output:
        """Run a script by ssh(1); `limit` in seconds. Raises DeliveryError."""
        output = await run_child(
            self._command,
            stdin=wrapped(script),
            limit=limit,
            task=f"ssh to {self._destination}",
            package="openssh-client",
        )
        if (result := unwrapped(output)) is None:
            raise self._failure(output)
        if result.status == 255:
            raise DeliveryError(f"the ssh connection to {self._destination} broke")
        return result

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
