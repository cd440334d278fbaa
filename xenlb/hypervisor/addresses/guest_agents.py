"""Addresses reported by guest agents (QEMU), queried through libvirt.

An agent answers, is not connected, which libvirt reports at once, or takes the query and never
answers. So a query has a time limit, and several run at once. A hung agent is queried ever more
rarely, and with separate slots, so that hung agents delay only each other. libvirt itself has no
limit by default; it is given one.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar
from uuid import UUID

import libvirt

from xenlb.hypervisor.libvirt.queries import (
    CallFailed,
    Connection,
    Domain,
    Unreachable,
    libvirt_errors,
)
from xenlb.hypervisor.threads import CallTimeout

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_QUERIES, MAX_HUNG_QUERIES = 2, 1  # each occupies a connection to libvirt
# Seconds. An agent answers in milliseconds, on a starved host in seconds. libvirt first sends it a
# guest-sync, for which it waits 5 s, and then the query.
LIMIT = 8.0
FIRST_PAUSE, LONGEST_PAUSE = 30.0, 600.0  # before the next query to an agent that hung
# libvirt's limit (seconds) for all commands to an agent. It is long because it applies to the
# commands of all programs, and freezing file systems takes its time.
RESPONSE = 60


class _LibvirtCaller(Protocol):
    """The part of LibvirtSource that is used here."""

    async def call(self, function: Callable[[Connection], T], *, limit: float | None) -> T: ...


@dataclass(slots=True)
class AgentHistory:
    """State of one guest's agent in one incarnation.

    `limited`: libvirt has its limit; `hung`: timeouts since the last answer; `paused_until`: time
    before which it is not queried.
    """

    limited: bool = False
    hung: int = 0
    paused_until: float = 0.0


class GuestAgents:
    """Queries of all guests' agents. Used in the loop's thread."""

    def __init__(self, clock: Callable[[], float], *, limit: float = LIMIT) -> None:
        self._clock = clock
        self._limit = limit
        self._slots = asyncio.Semaphore(MAX_QUERIES)
        self._hung_slots = asyncio.Semaphore(MAX_HUNG_QUERIES)

    async def addresses(
        self, history: AgentHistory, source: _LibvirtCaller, uuid: UUID
    ) -> list[str]:
        """Return the agent's texts, unchecked; none if it is not connected, hangs or is paused."""
        if self._clock() < history.paused_until:
            return []
        async with self._hung_slots if history.hung else self._slots:
            try:
                query = partial(_query_agent, uuid=uuid, history=history)
                texts = await source.call(query, limit=self._limit)
            except CallTimeout:
                pause = min(FIRST_PAUSE * 2**history.hung, LONGEST_PAUSE)
                history.hung, history.paused_until = history.hung + 1, self._clock() + pause
                log.debug("%s: its guest agent hangs; queried again in %g s", uuid, pause)
                return []
            except (Unreachable, CallFailed) as error:
                log.debug("%s: its guest agent cannot be queried: %s", uuid, error)
                return []
        history.hung = 0
        return texts


def _query_agent(connection: Connection, uuid: UUID, history: AgentHistory) -> list[str]:
    """Query one agent. Blocks; raises CallFailed."""
    with libvirt_errors():
        domain = connection.lookupByUUIDString(str(uuid))
    if not history.limited and hasattr(domain, "agentSetResponseTimeout"):  # libvirt 5.10
        try:
            with libvirt_errors():
                domain.agentSetResponseTimeout(RESPONSE, 0)
        except CallFailed as error:
            log.debug("%s: libvirt sets no limit for its agent: %s", uuid, error)
        history.limited = True
    return interface_addresses(domain, libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT)


def interface_addresses(domain: Domain, source: int) -> list[str]:
    """Return the addresses that libvirt knows from `source`; none if the driver lacks the source.

    Blocks; raises CallFailed if the domain is gone.
    """
    try:
        with libvirt_errors():
            reply = domain.interfaceAddresses(source, 0)
    except CallFailed as error:
        if error.gone:
            raise
        return []  # not supported by the driver, or no agent connected
    texts: list[str] = []
    for name, interface in (reply or {}).items():
        addresses = interface.get("addrs") if isinstance(interface, dict) else None
        if name == "lo" or not isinstance(addresses, list):
            continue
        for address in addresses:
            text = address.get("addr") if isinstance(address, dict) else None
            if isinstance(text, str) and not text.lower().startswith("fe80:"):
                texts.append(text)
    return texts
