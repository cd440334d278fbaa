"""The sources of events that a configuration needs, and what each of them needs of the state."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from uuid import UUID

from xenlb import clock
from xenlb.agent.conntrack_flusher import ConntrackFlusher
from xenlb.agent.drain_worker import DrainWorker
from xenlb.agent.loop import Agent
from xenlb.agent.provisioner import Provisioner
from xenlb.control.guest_report_server import GuestReportServer
from xenlb.control.guest_secrets import HostKey, guest_secret
from xenlb.director import sysctls
from xenlb.director.addresses import PlacedAddress, ServiceAddresses
from xenlb.director.interface import outgoing_interfaces
from xenlb.health.runner import HealthRunner
from xenlb.hypervisor.addresses.finder import AddressFinder
from xenlb.hypervisor.libvirt.hooks import HookCall, HookSource
from xenlb.hypervisor.libvirt.source import LibvirtSource
from xenlb.hypervisor.uri import is_local_xen
from xenlb.hypervisor.xenstore.source import XenstoreSource
from xenlb.ipvs.table import Forwarding
from xenlb.model.domain import GuestId, RequestKind
from xenlb.model.events import Died, Event, ShutdownCancelled, ShutdownRequested, SysctlsChecked
from xenlb.model.guest import Phase
from xenlb.model.host_drain import is_local
from xenlb.model.membership import guests_needing_address, metadata_addresses
from xenlb.model.note import NoteKind
from xenlb.model.reserved_addresses import addresses_in_use
from xenlb.model.settings import AddressPolicy
from xenlb.model.state import State

log = logging.getLogger(__name__)

RELIST = 60.0  # seconds between two listings of a libvirt, should an event ever be lost
SYSCTLS = 60.0  # seconds between two checks of the sysctls
REQUIREMENTS = 60.0  # seconds between two checks of what the configuration needs of the host
TOGETHER = 0.2  # changes within so many seconds cause one check of the sysctls
RESTART = 5.0  # seconds until a source that raised an exception runs again
# The names that libvirt's hooks have for its types of hypervisor.
DRIVERS = {"Xen": "libxl", "QEMU": "qemu", "LXC": "lxc"}


class Sources:
    """The running sources of one agent; libvirts come and go with the configuration."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._tasks: dict[str, list[asyncio.Task[None]]] = {}
        self.libvirts: dict[str, LibvirtSource] = {}
        self._xenstores: dict[str, XenstoreSource] = {}
        self._health = HealthRunner(agent.emit, clock.now)
        self._drain_worker = DrainWorker(agent.emit, clock.now, agent.write, self.libvirts)
        self._flusher = ConntrackFlusher(agent.note)
        self._provisioner = Provisioner(
            agent.emit,
            clock.now,
            self._xenstores,
            templates=agent.config.parent / "templates",
            socket=agent.socket,
        )
        self._finder = AddressFinder(agent.emit, clock.now, self.libvirts, self._xenstores)
        self._key = HostKey()
        self._listener = GuestReportServer(self._secret_of, self.reported)
        self._hooks = HookSource(agent.state_file.with_name("hooks"), self.hooked)
        self._addresses = ServiceAddresses(
            frozenset(
                PlacedAddress(interface=name, address=address) for name, address in agent.addresses
            ),
            on_change=self._keep_addresses,
        )
        self._findings: tuple[sysctls.SysctlFinding, ...] = ()
        self._missing: tuple[str, ...] = ()
        self._sysctls_due = asyncio.Event()

    def start(self) -> None:
        """Start the sources that every configuration has."""
        self._run("health", self._health.run)
        self._run("drains", self._drain_worker.run)
        self._run("connection tracking", self._flusher.run)
        self._run("provisioning", self._provisioner.run)
        self._run("addresses of guests", self._finder.run)
        self._run("service addresses", self._addresses.run)
        self._run("sysctls", self._set_sysctls)
        self._run("what checks need", self._check_needs)
        self._run("libvirt's hooks", self._hooks.run)
        self._run("guests' reports", self._listener.run)

    async def stop(self) -> None:
        """Stop all sources and wait for their end."""
        for name in list(self._tasks):
            await self._end(name)

    def on_state_change(self, before: State, after: State) -> None:
        """Give each source what it needs of the state."""
        self._health.set_targets(after.remembered.health)
        self._drain_worker.on_state_change(after)
        self._flusher.on_state_change(before, after)
        self._provisioner.on_state_change(before, after)
        if before.guests is not after.guests or before.settings is not after.settings:
            self._finder.search_for(guests_needing_address(after))
            settings = after.settings
            self._finder.set_policy(
                addresses_in_use(settings.services), settings.networks, metadata_addresses(after)
            )
        if (
            before.settings is not after.settings
            or before.observed.links.keys() != after.observed.links.keys()
        ):
            self._reconfigure(after)
        elif len(before.remembered.admitted) != len(after.remembered.admitted):
            self._sysctls_due.set()  # servers may be reached by other interfaces

    def _reconfigure(self, state: State) -> None:
        director = state.settings.director
        wanted = state.settings.service_addresses()
        if director.addresses is AddressPolicy.MANAGE:
            self._addresses.set_wanted(director.interface, wanted)
        else:
            self._addresses.disown()
        self._sysctls_due.set()
        if state.settings.listen is not None:
            self._key.check()
        self._listener.listen(state.settings.listen)
        for uri in state.observed.links:
            if uri in self.libvirts:
                self.libvirts[uri].keepalive = state.settings.keepalive
            else:
                self._connect(uri, state.settings.keepalive)
        for uri in self.libvirts.keys() - state.observed.links.keys():
            del self.libvirts[uri]
            self._xenstores.pop(uri, None)
            self._run(f"leave {uri}", partial(self._end, uri))

    def _secret_of(self, uuid: UUID) -> str:
        return guest_secret(self._key.key(), uuid)

    async def reported(self, uuid: UUID, report: str) -> bool:
        """Take a report of a guest that has proved its identity; return whether it runs here."""
        guests = [
            guest
            for guest in self._agent.state.guests.values()
            if guest.id.uuid == uuid and guest.phase is not Phase.ABSENT
        ]
        for guest in guests:
            at, number = clock.now(), guest.incarnation
            if report == "leaving":
                event: Event = ShutdownRequested(
                    at=at, guest=guest.id, incarnation=number, kind=RequestKind.INSIDE
                )
            else:
                event = ShutdownCancelled(at=at, guest=guest.id, incarnation=number)
            applied = asyncio.get_running_loop().create_future()
            self._agent.emit(event, applied)
            await asyncio.wait(
                {applied}
            )  # the guest is answered when the kernel's table is changed
            if applied.cancelled():
                return False  # a newer report has replaced it
        return bool(guests)

    def hooked(self, call: HookCall) -> None:
        """Use a call of libvirt's hook script, which comes before libvirt's event."""
        for uri, source in self.libvirts.items():
            if not is_local(uri) or call.driver != DRIVERS.get(source.hypervisor_type):
                continue
            guest = GuestId(uri=uri, uuid=call.uuid)
            match call.operation:
                case "reconnect":
                    source.reconnect_now()
                case "stopped" if call.domid is not None:
                    died = Died(at=clock.now(), guest=guest, incarnation=call.domid)
                    self._agent.emit(died)
                case "prepare" | "migrate" | "restore" if guest in self._agent.state.guests:
                    text = f"libvirt's hook: {call.operation}"
                    self._agent.note(text, kind=NoteKind.HOOK, guest=guest)

    def _connect(self, uri: str, keepalive: float) -> None:
        source = LibvirtSource(uri, self._agent.emit, clock.now, keepalive=keepalive)
        self.libvirts[uri] = source
        self._run(uri, source.run)
        self._run(uri, lambda: _relist(source))
        if is_local_xen(uri):
            xenstore = XenstoreSource(uri, self._agent.emit, clock.now, find_dead=source.find_dead)
            self._xenstores[uri] = xenstore
            self._run(uri, xenstore.run)

    def director_problems(self) -> list[str]:
        """One sentence each, for `status`."""
        addresses = [f"{a}: {why}" for a, why in self._addresses.problems.items()]
        hears = self._agent.state.settings.listen is not None
        listener = [each for each in (self._listener.problem, hears and self._key.problem) if each]
        file = [self._agent.file.problem] if self._agent.file.problem else []
        return (
            file
            + addresses
            + listener
            + [str(finding) for finding in self._findings]
            + [*self._missing]
        )

    def _keep_addresses(self) -> None:
        self._agent.keep(
            addresses=frozenset(
                (placed.interface, placed.address) for placed in self._addresses.owned
            )
        )

    async def _set_sysctls(self) -> None:
        """Set sysctls at start, at changes, and every minute, since other tools set them too."""
        await self._agent.first_sync_done.wait()  # reading the table loads ip_vs
        while True:
            self._sysctls_due.clear()
            settings = self._agent.state.settings
            forwards = sysctls.read_sysctl("net.ipv4.ip_forward") == 1
            direct = {
                server.key.address
                for service in settings.services
                if service.forwarding in {Forwarding.GATEWAYING, Forwarding.TUNNEL}
                for server in self._agent.state.remembered.admitted
                if server.service in service.kernel_keys()
            }
            needs = sysctls.required_sysctls(
                settings,
                sysctls.kernel_version(),
                forwards=forwards,
                server_interfaces=await outgoing_interfaces(direct),
                advertised_interfaces=sysctls.router_advertisement_interfaces(),
            )
            outcome = sysctls.apply(needs, settings.director.sysctls)
            self._findings = outcome.findings
            wrong = frozenset(finding.name for finding in outcome.findings)
            if wrong != self._agent.state.observed.wrong_sysctls:
                self._agent.emit(SysctlsChecked(at=clock.now(), wrong=wrong))
            if outcome.changes:
                self._agent.keep(sysctls={c.required.name: str(c.old) for c in outcome.changes})
            with suppress(TimeoutError):
                async with asyncio.timeout(SYSCTLS):
                    await self._sysctls_due.wait()
                    await asyncio.sleep(TOGETHER)

    async def _check_needs(self) -> None:
        """Note each program, user or file that is missing, once, with what needs it."""
        while True:
            missing = await asyncio.to_thread(self._agent.configuration.lacking)
            before, self._missing = self._missing, tuple(map(str, missing))
            for requirement in self._missing:
                if requirement not in before:
                    self._agent.note(requirement, warning=True)
            await asyncio.sleep(REQUIREMENTS)

    def _run(self, name: str, source: Callable[[], Awaitable[None]]) -> None:
        task = asyncio.create_task(supervise(name, source), name=name)
        self._tasks.setdefault(name, []).append(task)

    async def _end(self, name: str) -> None:
        tasks = self._tasks.pop(name, [])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def supervise(name: str, source: Callable[[], Awaitable[None]]) -> None:
    """Run a source until it ends; one that raises an exception is started again.

    The same exception in a row (a full disk, say) is logged once.
    """
    logged = ""
    while True:
        try:
            return await source()
        except Exception as error:  # the other sources and the table must go on
            if repr(error) != logged:
                log.exception("%s failed and is started again every %g s", name, RESTART)
            logged = repr(error)
            await asyncio.sleep(RESTART)


async def _relist(source: LibvirtSource) -> None:
    while True:
        await asyncio.sleep(RELIST)
        await source.relist()
