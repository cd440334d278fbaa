"""Scripts into a guest by QEMU's guest agent, which libvirt hands commands to.

The agent's words (guest-ping, guest-exec, guest-exec-status) are in QEMU's qga/qapi-schema.json.
libvirt carries at most 4 MiB a message, and the agent stores at most 16 MiB of output.
"""

import base64
import binascii
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
CALL = 10  # seconds, the agent's answer to one command
VALUES = 1000  # of an answer, which has a dozen
_POLL = (0.02, 0.5)  # seconds, from and to


class AgentRefused(Exception):
    """The agent, or libvirt for it, refused a command; the message is theirs."""


class AgentCommands(Protocol):
    """Carries one command, as JSON, and gives the answer; blocks. Raises Refused."""

    def __call__(self, command: str) -> str: ...


class GuestAgent:
    """A Channel. `connect` opens the way to the agent, blocks, and gives it with what closes it."""

    def __init__(
        self, connect: Callable[[], tuple[AgentCommands, Callable[[], object]]], *, name: str
    ) -> None:
        self._connect = connect
        self._name = name

    async def run(self, script: str, *, limit: float = LIMIT) -> Output:
        data = wrapped(script)
        if len(data) > LONGEST_SCRIPT:
            raise DeliveryError(f"the files for {self._name} are too large for the guest agent")
        try:
            return await in_thread(lambda: self._run(data, limit), limit=limit + 2 * CALL)
        except CallTimeout:
            raise DeliveryError(
                f"libvirt did not answer about the guest agent of {self._name}"
            ) from None
        except AgentRefused as error:
            raise _failure(self._name, str(error)) from None

    def _run(self, data: bytes, limit: float) -> Output:
        agent, close = self._connect()
        try:
            self._ask(agent, "guest-ping")
            started = self._ask(
                agent,
                "guest-exec",
                {
                    "path": "/bin/sh",
                    "arg": ["-s"],
                    "input-data": base64.b64encode(data).decode(),
                    "capture-output": True,
                },
            )
            pid = started.get("pid")
            if not isinstance(pid, int):
                raise self._nonsense()
            return self._wait(agent, pid, limit)
        finally:
            close()

    def _wait(self, agent: AgentCommands, pid: int, limit: float) -> Output:
        until = time.monotonic() + limit
        pause = _POLL[0]
        while not (status := self._ask(agent, "guest-exec-status", {"pid": pid})).get("exited"):
            if time.monotonic() > until:
                # The agent ends nothing that it began. Its answer is collected by nobody.
                kill = {"path": "/bin/sh", "arg": ["-c", 'kill -9 "$1"', "sh", str(pid)]}
                self._ask(agent, "guest-exec", kill)
                raise DeliveryError(
                    f"the guest agent's command in {self._name} did not end within {limit:.0f} s"
                )
            time.sleep(pause)
            pause = min(2 * pause, _POLL[1])
        if status.get("out-truncated") or status.get("err-truncated"):
            raise DeliveryError(f"{self._name} says more than xenlb reads")
        code = status.get("exitcode")
        said = unwrapped(
            Output(
                status=code if isinstance(code, int) else -1,
                out=self._bytes(status.get("out-data", "")),
                err=self._bytes(status.get("err-data", "")),
            )
        )
        if said is None:
            raise DeliveryError(f"the guest agent of {self._name} did not run the script")
        return said

    def _ask(
        self, agent: AgentCommands, command: str, arguments: Mapping[str, object] | None = None
    ) -> dict[str, object]:
        request: dict[str, object] = {"execute": command}
        if arguments is not None:
            request["arguments"] = arguments
        answer = agent(json.dumps(request))
        try:
            value = json_value(answer, Budget(pieces=VALUES, size=4 * MOST_OUTPUT))
        except (ValueError, BudgetSpent):
            raise self._nonsense() from None
        result = value.get("return") if isinstance(value, dict) else None
        if not isinstance(result, dict):
            raise self._nonsense()
        return result

    def _bytes(self, value: object) -> bytes:
        try:
            if isinstance(value, str) and len(value) <= 2 * MOST_OUTPUT:
                return base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            pass
        raise self._nonsense()

    def _nonsense(self) -> DeliveryError:
        return DeliveryError(f"the guest agent of {self._name} gives answers that make no sense")


def of_guest(uri: str, uuid: UUID, *, name: str) -> GuestAgent:
    """By libvirt, also one of another host."""

    def connect() -> tuple[AgentCommands, Callable[[], object]]:
        import libvirt_qemu  # noqa: PLC0415 - a host without QEMU need not have it

        try:
            with libvirt_errors():
                connection = libvirt.open(to_open(uri))
        except CallFailed as error:
            raise AgentRefused(str(error)) from None

        def ask(command: str) -> str:
            try:
                with libvirt_errors():
                    domain = connection.lookupByUUIDString(str(uuid))
                    answer = libvirt_qemu.qemuAgentCommand(domain, command, CALL, 0)
            except CallFailed as error:
                raise AgentRefused(str(error)) from None
            return str(answer)

        return ask, connection.close

    return GuestAgent(connect, name=name)


def _failure(name: str, said: str) -> DeliveryError:
    low = said.lower()
    match low:
        case _ if "not connected" in low or "not responding" in low or "unresponsive" in low:
            return DeliveryError(
                f"the guest agent of {name} is not connected",
                hint="install and start qemu-guest-agent in the guest",
            )
        case _ if "not configured" in low or "no qemu guest agent" in low:
            return DeliveryError(
                f"{name} has no channel for a guest agent",
                hint="add <channel> with <target type='virtio' name='org.qemu.guest_agent.0'/>",
            )
        case _ if "disabled" in low or "blacklist" in low or "not been found" in low:
            return DeliveryError(
                f"the guest agent of {name} is not allowed to run commands",
                hint="allow guest-exec and guest-exec-status, in RHEL in /etc/sysconfig/qemu-ga",
            )
        case _ if "not running" in low:
            return DeliveryError(f"{name} does not run", hint=f"start it: virsh start {name}")
        case _ if "not supported" in low or "unsupported" in low:
            return DeliveryError(
                f"the driver of {name} has no guest agent", hint="use delivery: ssh or rootfs"
            )
        case _:
            return DeliveryError(f"the guest agent of {name} failed: {said[:200]}")
