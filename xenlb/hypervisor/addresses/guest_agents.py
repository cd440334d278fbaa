"""What guest agents (QEMU) say of their guests' addresses, asked through libvirt.

An agent answers, is not there, which libvirt tells at once, or takes the question and never
answers. So a question has a limit, after which its place is another's; several are asked at once;
and who ran into the limit waits ever longer for its next turn, in a lane of its own: hung agents
hold up each other. libvirt itself waits for ever unless it is told otherwise: it is told.
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

AT_ONCE, HUNG_AT_ONCE = 2, 1  # questions; each has a connection meanwhile (connections.CALLS)
# Seconds. An agent answers in milliseconds, on a starved host in seconds. libvirt first sends it a
# guest-sync, for which it waits 5 s, and then the question.
LIMIT = 8.0
FIRST_PAUSE, LONGEST_PAUSE = 30.0, 600.0  # until one that hung is asked again
# How long libvirt waits for any answer of an agent, from the first question on. It is there for
# everybody's questions, so it is long: freezing file systems takes its time.
RESPONSE = 60


class Asking(Protocol):
    """LibvirtSource, as far as it is needed here."""

    async def ask(self, call: Callable[[Connection], T], *, limit: float | None) -> T: ...


@dataclass(slots=True)
class AgentRecord:
    """How one guest's agent has behaved: how often it has hung since it last answered, and until
    when it is left alone; `limited`: libvirt was told how long to wait. A guest that boots begins a
    new one."""

    limited: bool = False
    hung: int = 0
    until: float = 0.0


class GuestAgents:
    """Used in the loop's thread."""

    def __init__(self, clock: Callable[[], float], *, limit: float = LIMIT) -> None:
        self._clock = clock
        self._limit = limit
        self._places = asyncio.Semaphore(AT_ONCE)
        self._places_of_hung = asyncio.Semaphore(HUNG_AT_ONCE)

    async def addresses(self, record: AgentRecord, source: Asking, uuid: UUID) -> list[str]:
        """Texts, unchecked; none where the agent is not there, or is left alone now."""
        if self._clock() < record.until:
            return []
        async with self._places_of_hung if record.hung else self._places:
            try:
                ask = partial(_ask_agent, uuid=uuid, record=record)
                texts = await source.ask(ask, limit=self._limit)
            except CallTimeout:
                pause = min(FIRST_PAUSE * 2**record.hung, LONGEST_PAUSE)
                record.hung, record.until = record.hung + 1, self._clock() + pause
                log.debug("%s: its guest agent hangs; asked again in %g s", uuid, pause)
                return []
            except (Unreachable, CallFailed) as error:
                log.debug("%s: its guest agent cannot be asked: %s", uuid, error)
                return []
        record.hung = 0
        return texts


def _ask_agent(connection: Connection, uuid: UUID, record: AgentRecord) -> list[str]:
    """Blocks; raises CallFailed."""
    with libvirt_errors():
        domain = connection.lookupByUUIDString(str(uuid))
    if not record.limited and hasattr(domain, "agentSetResponseTimeout"):  # libvirt 5.10
        try:
            with libvirt_errors():
                domain.agentSetResponseTimeout(RESPONSE, 0)
        except CallFailed as error:
            log.debug("%s: libvirt sets no limit for its agent: %s", uuid, error)
        record.limited = True
    return texts_of(domain, libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT)


def texts_of(domain: Domain, source: int) -> list[str]:
    """Addresses that libvirt knows from that source; none where the driver has no such source.
    Blocks; raises CallFailed where the domain is gone."""
    try:
        with libvirt_errors():
            answer = domain.interfaceAddresses(source, 0)
    except CallFailed as error:
        if error.gone:
            raise
        return []  # unsupported by the driver, or no agent connected
    texts: list[str] = []
    for name, interface in (answer or {}).items():
        addresses = interface.get("addrs") if isinstance(interface, dict) else None
        if name == "lo" or not isinstance(addresses, list):
            continue
        for each in addresses:
            text = each.get("addr") if isinstance(each, dict) else None
            if isinstance(text, str) and not text.lower().startswith("fe80:"):
                texts.append(text)
    return texts
