"""Channel through QEMU's guest agent, to which libvirt passes commands.

QEMU's qga/qapi-schema.json describes guest-ping, guest-exec and guest-exec-status. libvirt passes
at most 4 MiB per message, and the agent stores at most 16 MiB of output.
"""

import base64
import json
import time
from collections.abc import Callable, Mapping
from typing import Protocol
from uuid import UUID

import libvirt

from xenlb.guestside.transport.channel import (
    LIMIT,
    MOST_OUTPUT,
    DeliveryError,
    Output,
    unwrapped,
    wrapped,
)
from xenlb.hypervisor.libvirt.queries import CallFailed, libvirt_errors
from xenlb.hypervisor.threads import CallTimeout, in_thread
from xenlb.model.settings import to_open
from xenlb.untrusted.budget import Budget, BudgetSpent
from xenlb.untrusted.json_text import json_value

LONGEST_SCRIPT = 2_900_000  # bytes: as base64 in JSON it fits into libvirt's 4 MiB
CALL = 10  # seconds, for the reply to one command
VALUES = 1000  # of a reply, which has a dozen
_POLL = (0.02, 0.5)  # seconds, from and to


class AgentRefused(Exception):
    """The agent, or libvirt, refused a command; the message is theirs."""


class AgentCommands(Protocol):
    """A connection to one guest's agent."""

    def __call__(self, command: str) -> str:
        """Send one command as JSON and return the reply, also JSON. Blocks; raises AgentRefused."""


class GuestAgent:
    """A Channel. `connect` blocks, and returns the connection and a function that closes it."""

    def __init__(
        self, connect: Callable[[], tuple[AgentCommands, Callable[[], object]]], *, name: str
    ) -> None:
        self._connect = connect
        self._name = name

    async def run(self, script: str, *, limit: float = LIMIT) -> Output:
        """Run a script by guest-exec; `limit` in seconds. Raises DeliveryError."""
        data = wrapped(script)
        if len(data) > LONGEST_SCRIPT:
            raise DeliveryError(f"the files for {self._name} are too large for the guest agent")
        try:
            return await in_thread(lambda: self._run(data, limit), limit=limit + 2 * CALL)
        except CallTimeout:
            raise DeliveryError(f"the guest agent of {self._name} timed out") from None
        except AgentRefused as error:
            raise _failure(self._name, str(error)) from None

    def _run(self, data: bytes, limit: float) -> Output:
        agent, close = self._connect()
        try:
            self._call(agent, "guest-ping")
            arguments = {
                "path": "/bin/sh",
                "arg": ["-s"],
                "input-data": base64.b64encode(data).decode(),
                "capture-output": True,
            }
            pid = self._call(agent, "guest-exec", arguments).get("pid")
            if not isinstance(pid, int):
                raise self._invalid()
            return self._wait(agent, pid, limit)
        finally:
            close()

    def _wait(self, agent: AgentCommands, pid: int, limit: float) -> Output:
        until = time.monotonic() + limit
        pause = _POLL[0]
        while not (status := self._call(agent, "guest-exec-status", {"pid": pid})).get("exited"):
            if time.monotonic() > until:
                # The agent kills no process that it started.
                kill = {"path": "/bin/sh", "arg": ["-c", 'kill -9 "$1"', "sh", str(pid)]}
                self._call(agent, "guest-exec", kill)
                raise DeliveryError(
                    f"the guest agent's command in {self._name} did not end within {limit:.0f} s"
                )
            time.sleep(pause)
            pause = min(2 * pause, _POLL[1])
        if status.get("out-truncated") or status.get("err-truncated"):
            raise DeliveryError(f"the output of {self._name} is too long")
        code = status.get("exitcode")
        output = unwrapped(
            Output(
                status=code if isinstance(code, int) else -1,
                out=self._bytes(status.get("out-data", "")),
                err=self._bytes(status.get("err-data", "")),
            )
        )
        if output is None:
            raise DeliveryError(f"the guest agent of {self._name} did not run the script")
        return output

    def _call(
        self, agent: AgentCommands, command: str, arguments: Mapping[str, object] | None = None
    ) -> dict[str, object]:
        request: dict[str, object] = {"execute": command}
        if arguments is not None:
            request["arguments"] = arguments
        reply = agent(json.dumps(request))
        try:
            value = json_value(reply, Budget(pieces=VALUES, size=4 * MOST_OUTPUT))
        except (ValueError, BudgetSpent):
            raise self._invalid() from None
        result = value.get("return") if isinstance(value, dict) else None
        if not isinstance(result, dict):
            raise self._invalid()
        return result

    def _bytes(self, value: object) -> bytes:
        if not isinstance(value, str) or len(value) > 2 * MOST_OUTPUT:
            raise self._invalid()
        try:
            return base64.b64decode(value, validate=True)
        except ValueError:
            raise self._invalid() from None

    def _invalid(self) -> DeliveryError:
        return DeliveryError(f"the guest agent of {self._name} sent an invalid reply")


def of_guest(uri: str, uuid: UUID, *, name: str) -> GuestAgent:
    """The agent of a guest, by its libvirt, which may be another host's."""

    def connect() -> tuple[AgentCommands, Callable[[], object]]:
        import libvirt_qemu  # noqa: PLC0415 - a host without QEMU need not have it

        try:
            with libvirt_errors():
                connection = libvirt.open(to_open(uri))
        except CallFailed as error:
            raise AgentRefused(str(error)) from None

        def call(command: str) -> str:
            try:
                with libvirt_errors():
                    domain = connection.lookupByUUIDString(str(uuid))
                    return str(libvirt_qemu.qemuAgentCommand(domain, command, CALL, 0))
            except CallFailed as error:
                raise AgentRefused(str(error)) from None

        return call, connection.close

    return GuestAgent(connect, name=name)


def _failure(name: str, refusal: str) -> DeliveryError:
    low = refusal.lower()
    if "not connected" in low or "not responding" in low or "unresponsive" in low:
        return DeliveryError(
            f"the guest agent of {name} is not connected",
            hint="install and start qemu-guest-agent in the guest",
        )
    if "not configured" in low or "no qemu guest agent" in low:
        return DeliveryError(
            f"{name} has no channel for a guest agent",
            hint="add <channel> with <target type='virtio' name='org.qemu.guest_agent.0'/>",
        )
    if "disabled" in low or "blacklist" in low or "not been found" in low:
        return DeliveryError(
            f"the guest agent of {name} is not allowed to run commands",
            hint="allow guest-exec and guest-exec-status, in RHEL in /etc/sysconfig/qemu-ga",
        )
    if "not running" in low:
        return DeliveryError(f"{name} is not running", hint=f"start it: virsh start {name}")
    if "not supported" in low or "unsupported" in low:
        return DeliveryError(
            f"the driver of {name} has no guest agent", hint="use delivery: ssh or rootfs"
        )
    return DeliveryError(f"the guest agent of {name} failed: {refusal[:200]}")
