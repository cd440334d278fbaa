"""The verbs of the control socket."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from math import inf
from typing import Any

from xenlb import __version__, clock
from xenlb.agent import debug
from xenlb.agent.loop import Agent
from xenlb.control import answers
from xenlb.control.json_chunks import SharedJson
from xenlb.control.protocol import INVALID_CONFIGURATION, USAGE, ControlError
from xenlb.control.server import Handler
from xenlb.ipvs import connections
from xenlb.ipvs.errors import IpvsError
from xenlb.ipvs.table import IPAddress, Snapshot
from xenlb.model import alarm, draining, host_drain
from xenlb.model.domain import GuestId, RequestKind
from xenlb.model.events import DrainAllRequested, DrainRequested, Event, UndrainRequested
from xenlb.model.guest import Guest, Phase
from xenlb.model.settings import DrainUntil, ServiceSettings
from xenlb.untrusted.printable import quoted
from xenlb.untrusted.suggestions import did_you_mean

Request = Mapping[str, object]

HOLDERS = 5  # clients that are named to an operator who waits for a drain
LEFT = 5  # services that are named where a drain would leave them without enough servers


class Handlers:
    """A handler a verb. `director_problems`: of service addresses, sysctls and files."""

    def __init__(self, agent: Agent, director_problems: Callable[[], list[str]]) -> None:
        self._agent = agent
        self._director_problems = director_problems
        self._started = clock.now()
        # By the identity of the read of the table, and the service that is requested.
        self._reports: dict[tuple[int, str | None], tuple[object, asyncio.Task[SharedJson]]] = {}

    def handlers(self) -> dict[str, Handler]:
        """The handlers by verb."""
        return {
            "status": Handler(self.status),
            "why": Handler(self.why),
            "events": Handler(self.events),
            "reload": Handler(self.reload, writes=True),
            "progress": Handler(self.progress),
            "drain": Handler(self.drain, writes=True),
            "undrain": Handler(self.undrain, writes=True),
            "drain-all": Handler(self.drain_all, writes=True),
            "undrain-all": Handler(self.undrain_all, writes=True),
            "take-over": Handler(self.take_over, writes=True),
            "debug-state": Handler(self.debug_state, writes=True),  # for root alone
        }

    async def status(self, request: Request) -> object:
        """Answer with everything; requests that one read of the table answers share a report."""
        only = None
        if request.get("service") is not None:
            only = self._service(request.get("service")).name
        snapshot, moment = await self._snapshot()
        key = id(moment), only
        if key not in self._reports:
            making = asyncio.create_task(self._report(snapshot, only), name="report")
            self._reports[key] = moment, making
            making.add_done_callback(lambda _: self._reports.pop(key))
        return await asyncio.shield(self._reports[key][1])

    async def _report(self, snapshot: Snapshot, only: str | None) -> SharedJson:
        agent = self._agent
        state = agent.state
        shown = await self._services(snapshot, only=only)
        value = {
            "version": __version__,
            "pid": os.getpid(),
            "started": clock.wall(self._started),
            "synced": state.synced and not agent.engine.kernel_problem,
            "kernel": agent.engine.kernel_problem or None,
            "libvirt": [
                {
                    "uri": uri,
                    "connected": link.connected,
                    "since": clock.wall(link.since),
                    "reason": link.reason,
                }
                for uri, link in state.observed.links.items()
            ],
            "config": {
                "file": str(agent.config),
                "loaded": clock.wall(state.observed.configured_at),
                "problems": [str(problem) for problem in state.observed.problems],
                "last_good_since": agent.configuration.last_good_since or None,
                "changes": state.observed.changes,
            },
            "director": {
                "interface": state.settings.director.interface,
                "problems": self._director_problems(),
            },
            "differences": list(agent.engine.repairs),
            "refused": [
                {"operation": f"ipvsadm {failure.op}", "reason": failure.reason}
                for failure in agent.engine.reconciler.failures.values()
            ],
            "warnings": [
                text if guest is None else f"guest {state.guests[guest].name}: {text}"
                for guest, text in state.derived.inconsistencies
                if guest is None or guest in state.guests
            ],
            "alarms": answers.alarms(state, now=clock.now(), wall=clock.wall),
            "services": shown,
        }
        return SharedJson(value)

    async def _snapshot(self) -> tuple[Snapshot, object]:
        """Return the table, read and repaired now, and the identity of the read.

        If it cannot be read: the table as the engine takes it to be, and the error.
        """
        try:
            snapshot = await self._agent.reread()
        except IpvsError as error:
            return Snapshot(table=self._agent.engine.table), error
        return snapshot, snapshot

    async def _services(
        self, snapshot: Snapshot, *, only: str | None = None, of: GuestId | None = None
    ) -> list[dict[str, Any]]:
        """Report the state of now; the loop runs on between the services."""
        agent = self._agent
        shown = []
        for service in answers.services(
            agent.state,
            snapshot.table,
            snapshot.counters,
            failures={p: f.reason for p, f in agent.engine.reconciler.failures.items()},
            now=clock.now(),
            wall=clock.wall,
            only=only,
            of=of,
        ):
            if service is None:
                await asyncio.sleep(0)
            else:
                shown.append(service)
        return shown

    async def why(self, request: Request) -> object:
        """Answer with a guest, its servers and its events."""
        guest = self._guest(request)
        snapshot, _ = await self._snapshot()
        servers = [
            {"service": service["name"], **server}
            for service in await self._services(snapshot, of=guest.id)
            for server in service["servers"]
        ]
        return {
            **answers.guest(self._agent.state, guest.id, wall=clock.wall),
            "servers": servers,
            "events": self._agent.event_log.lines(guest.id),
        }

    async def events(self, request: Request) -> AsyncIterator[object]:
        """Answer with the event log; with `follow` without an end."""
        if request.get("follow"):
            async for text in self._agent.event_log.follow():
                yield text
        else:
            for text in self._agent.event_log.texts():
                yield text

    async def reload(self, request: Request) -> object:
        """Read the configuration again."""
        problems = await self._agent.reload()
        if problems:
            raise ControlError(
                "the configuration is refused, the last good one goes on:\n" + "\n".join(problems),
                status=INVALID_CONFIGURATION,
            )
        return {"reloaded": True, "changes": self._agent.state.observed.changes}

    async def progress(self, request: Request) -> object:
        """Answer with how far a drain is, and the clients whose connections it waits for."""
        guest = self._guest(request)
        state = self._agent.state
        entries = list(draining.table_entries(state, guest))
        holders: dict[IPAddress, int] = {}
        if guest.drain is not None and guest.drain.left:
            established = all(s.drain.until is DrainUntil.ESTABLISHED for s, _, _ in entries)
            servers = frozenset(server for _, _, server in entries)
            holders = await asyncio.to_thread(
                connections.client_connections, servers, established=established
            )
        return {
            **answers.guest(state, guest.id, wall=clock.wall),
            "serves": answers.serves(state, guest, clock.now()),
            "connected": guest.id.uri in state.observed.links
            and state.observed.links[guest.id.uri].connected,
            "holders": [
                {"address": str(address), "connections": count}
                for address, count in list(holders.items())[:HOLDERS]
            ],
            "more_holders": max(0, len(holders) - HOLDERS),
        }

    async def drain(self, request: Request) -> object:
        """Drain a guest; refused where that would leave a service without enough servers."""
        guest = self._running(request)
        then = request.get("then")
        if then not in {None, *draining.VERBS}:
            raise ControlError("after a drain comes poweroff, reboot or nothing", status=USAGE)
        link = self._agent.state.observed.links.get(guest.id.uri)
        if then is not None and (link is None or not link.connected):
            why = f": {link.reason}" if link is not None and link.reason else ""
            raise ControlError(
                f"libvirt {guest.id.uri} is not connected{why}; {guest.name} cannot be asked to"
                " go, and nothing was done",
                hint="systemctl status libvirtd; xenlb drain works without libvirt",
            )
        left = alarm.services_left_by(self._agent.state, guest.id, clock.now())
        if left and request.get("force") is not True:
            raise ControlError(
                f"that would leave {' and '.join(left[:LEFT])}"
                + (f" (and {len(left) - LEFT} more)" if len(left) > LEFT else ""),
                hint="--force does it all the same",
            )
        event = DrainRequested(
            at=clock.now(),
            guest=guest.id,
            by=str(request["by"]),
            timeout=_timeout(request),
            then=None if then is None else RequestKind(str(then)),
        )
        return await self._ask(event, guest.id)

    async def undrain(self, request: Request) -> object:
        """Put a guest back into service."""
        guest = self._running(request)
        was_out = draining.can_undrain(guest)
        event = UndrainRequested(at=clock.now(), guest=guest.id, by=str(request["by"]))
        answer = await self._ask(event, guest.id)
        return {**answer, "changed": was_out}

    async def drain_all(self, request: Request) -> object:
        """Drain the guests that may be drained now; answer with each, and with those kept."""
        event = DrainAllRequested(
            at=clock.now(),
            by=str(request["by"]),
            timeout=_timeout(request),
            rest=request.get("rest") is True,
        )
        await self._emit(event)
        state = self._agent.state
        return {
            "guests": [
                answers.guest(state, guest.id, wall=clock.wall)
                for guest in host_drain.local_members(state)
                if guest.drain is not None
            ],
            "kept": [guest.name for guest in host_drain.not_drained(state)],
        }

    async def undrain_all(self, request: Request) -> object:
        """Put back the guests that an operator has drained, not those asked to shut down."""
        names = []
        for guest in host_drain.local_members(self._agent.state):
            if guest.drain is not None and guest.request is None:
                event = UndrainRequested(at=clock.now(), guest=guest.id, by=str(request["by"]))
                await self._emit(event)
                names.append(guest.name)
        return {"guests": names}

    async def _ask(self, event: Event, guest: GuestId) -> dict[str, Any]:
        await self._emit(event)
        return answers.guest(self._agent.state, guest, wall=clock.wall)

    async def _emit(self, event: Event) -> None:
        """Emit an event and wait until the kernel's table is what follows from it."""
        applied = asyncio.get_running_loop().create_future()
        self._agent.emit(event, applied)
        await applied

    async def take_over(self, request: Request) -> object:
        """Remove what other tools have put into a service."""
        service = self._service(request.get("service"))
        await self._snapshot()  # entries made since the last read are removed as well
        return {"done": self._agent.take_over(service, str(request["by"]))}

    async def debug_state(self, request: Request) -> object:
        """Return all of the state for `debug-state`; its JSON is an iterator of encoded parts."""
        return await debug.state_answer(self._agent.state)

    def _service(self, name: object) -> ServiceSettings:
        services = {service.name: service for service in self._agent.state.settings.services}
        service = services.get(name) if isinstance(name, str) else None
        if service is None:
            raise ControlError(
                f"there is no service {quoted(str(name))}",
                hint=did_you_mean(str(name), services)
                or "its name must stand under services: in the configuration",
            )
        return service

    def _guest(self, request: Request) -> Guest:
        text = request.get("guest")
        if not isinstance(text, str) or not text:
            raise ControlError("which guest?", hint="name it or give its UUID", status=USAGE)
        guests = answers.guests_named(self._agent.state, text)
        if not guests:
            names = {guest.name for guest in self._agent.state.guests.values()}
            raise ControlError(
                f"no guest {quoted(text)} is known here",
                hint=did_you_mean(text, names) or "virsh list --all shows the guests of this host",
            )
        if len(guests) > 1:
            raise ControlError(
                f"several guests are called {quoted(text)}",
                hint="give a UUID: " + ", ".join(describe(guest.id) for guest in guests),
                status=USAGE,
            )
        return guests[0]

    def _running(self, request: Request) -> Guest:
        guest = self._guest(request)
        if guest.phase is Phase.ABSENT:
            raise ControlError(f"guest {guest.name} is not running")
        return guest


def _timeout(request: Request) -> float | None:
    timeout = request.get("timeout")
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 <= timeout < inf:
        raise ControlError("the timeout must be a number of seconds", status=USAGE)
    return timeout


def describe(guest: GuestId) -> str:
    """The UUID and the libvirt of a guest, as hints name it."""
    return f"{guest.uuid} ({guest.uri})"
