"""What the agent answers on its control socket, verb by verb."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from xenlb import __version__, clock
from xenlb.agent import Agent
from xenlb.control.protocol import INVALID_CONFIGURATION, USAGE, ControlError
from xenlb.control.server import Handler
from xenlb.ipvs.errors import IpvsError
from xenlb.ipvs.table import Snapshot
from xenlb.model import report
from xenlb.model.events import DrainAsked, GuestId, UndrainAsked
from xenlb.model.guest import Guest, Phase

Request = Mapping[str, object]


class Verbs:
    """`director_problems`: what is not as it should be of service addresses and sysctls."""

    def __init__(self, agent: Agent, director_problems: Callable[[], list[str]]) -> None:
        self._agent = agent
        self._director_problems = director_problems
        self._started = clock.now()

    def handlers(self) -> dict[str, Handler]:
        return {
            "status": Handler(self.status),
            "why": Handler(self.why),
            "events": Handler(self.events),
            "reload": Handler(self.reload, writes=True),
            "drain": Handler(self.drain, writes=True),
            "undrain": Handler(self.undrain, writes=True),
        }

    async def status(self, request: Request) -> object:
        agent = self._agent
        state = agent.state
        only = request.get("service")
        if only is not None and only not in {s.name for s in state.settings.services}:
            raise ControlError(
                f"there is no service “{str(only)[:64]}”",
                hint="its name must stand under services: in the configuration",
                status=USAGE,
            )
        snapshot = await self._snapshot()
        return {
            "version": __version__,
            "pid": os.getpid(),
            "started": clock.wall(self._started),
            "synced": state.synced and not agent.kernel_problem,
            "kernel": agent.kernel_problem or None,
            "libvirt": [
                {
                    "uri": uri,
                    "connected": link.connected,
                    "since": clock.wall(link.since),
                    "reason": link.reason,
                }
                for uri, link in state.links.items()
            ],
            "config": {
                "file": str(agent.config),
                "loaded": clock.wall(state.configured_at),
                "problems": [str(problem) for problem in state.problems],
            },
            "director": {
                "interface": state.settings.director.interface,
                "problems": self._director_problems(),
            },
            "services": self._services(snapshot, only=None if only is None else str(only)),
        }

    async def _snapshot(self) -> Snapshot:
        """The table with fresh counters; as it is believed to be where it cannot be read."""
        try:
            return await self._agent.counters()
        except IpvsError:
            return Snapshot(table=self._agent.table())

    def _services(self, snapshot: Snapshot, *, only: str | None = None) -> list[dict[str, Any]]:
        agent = self._agent
        return report.services(
            agent.state,
            snapshot.table,
            snapshot.counters,
            failures={p: f.reason for p, f in agent.reconciler.failures.items()},
            now=clock.now(),
            wall=clock.wall,
            only=only,
        )

    async def why(self, request: Request) -> object:
        guest = self._guest(request)
        servers = [
            {"service": service["name"], **server}
            for service in self._services(await self._snapshot())
            for server in service["servers"]
            if server["uuid"] == str(guest.id.uuid) and server["uri"] == guest.id.uri
        ]
        return {
            **report.guest(self._agent.state, guest.id, wall=clock.wall),
            "servers": servers,
            "events": self._agent.journal.lines(guest.id),
        }

    async def events(self, request: Request) -> AsyncIterator[object]:
        if request.get("follow"):
            async for line in self._agent.journal.follow():
                yield line
        else:
            for line in self._agent.journal.lines():
                yield line

    async def reload(self, request: Request) -> object:
        problems = await self._agent.reload()
        if problems:
            raise ControlError(
                "the configuration is refused, the last good one goes on:\n" + "\n".join(problems),
                status=INVALID_CONFIGURATION,
            )
        return {"reloaded": True}

    async def drain(self, request: Request) -> object:
        guest = self._running(request)
        timeout = request.get("timeout")
        if timeout is not None and (
            isinstance(timeout, bool) or not isinstance(timeout, int | float) or timeout < 0
        ):
            raise ControlError("the timeout must be a number of seconds", status=USAGE)
        event = DrainAsked(at=clock.now(), guest=guest.id, by=str(request["by"]), timeout=timeout)
        return await self._ask(event)

    async def undrain(self, request: Request) -> object:
        guest = self._running(request)
        return await self._ask(UndrainAsked(at=clock.now(), guest=guest.id, by=str(request["by"])))

    async def _ask(self, event: DrainAsked | UndrainAsked) -> object:
        """Answers when the owner has taken the event and the kernel has heard of it."""
        taken = asyncio.get_running_loop().create_future()
        self._agent.emit(event, taken)
        await taken
        return report.guest(self._agent.state, event.guest, wall=clock.wall)

    def _guest(self, request: Request) -> Guest:
        text = request.get("guest")
        if not isinstance(text, str) or not text:
            raise ControlError("which guest?", hint="name it or give its UUID", status=USAGE)
        found = report.matching(self._agent.state, text)
        if not found:
            raise ControlError(
                f"no guest “{text[:64]}” is known here",
                hint="virsh list --all shows the guests of this host",
            )
        if len(found) > 1:
            raise ControlError(
                f"several guests are called “{text[:64]}”",
                hint="give a UUID: " + ", ".join(describe(guest.id) for guest in found),
                status=USAGE,
            )
        return found[0]

    def _running(self, request: Request) -> Guest:
        guest = self._guest(request)
        if guest.phase is Phase.ABSENT:
            raise ControlError(f"guest {guest.name} does not run: there is nothing to drain")
        return guest


def describe(guest: GuestId) -> str:
    return f"{guest.uuid} ({guest.uri})"
