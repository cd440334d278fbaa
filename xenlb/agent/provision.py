"""One look of the agent into a guest: who it is, the way in, what is missing; applied where wished.

When it is made, and what follows: provisioner.py. What is done in a guest is
guestside/provision.py's.
"""

import asyncio
from contextlib import AbstractAsyncContextManager

from xenlb.agent.loop import Agent
from xenlb.control.guest_secrets import KeyFileError, guest_secret, master_key
from xenlb.guestside import provision, self_config
from xenlb.guestside.lock import guest_lock, lock_folder
from xenlb.guestside.render.template import TemplateError
from xenlb.guestside.requirements.compile import NeedsError
from xenlb.guestside.requirements.hold import Hold, NotifyVia, compile_hold, reachable_notify_via
from xenlb.guestside.target import GuestTarget, guest_target
from xenlb.guestside.transport.channel import DeliveryError
from xenlb.hypervisor.uri import real_uri
from xenlb.hypervisor.xenstore.source import XenstoreSource
from xenlb.model.domain import GuestId
from xenlb.model.events import Verdict
from xenlb.model.guest_side import Delivery
from xenlb.model.provision_requests import ProvisionRequest

# An operator who is at work in the guest may take minutes; it is tried again. Well below
# sides.IN_TIME: the guest itself is not late then.
PATIENCE = 5.0  # seconds


class InspectionFailed(Exception):
    """Nothing can be said of the guest; one sentence. `may_boot`: because it does not answer yet,
    or its address is not known yet."""

    def __init__(self, message: str, *, may_boot: bool = False) -> None:
        super().__init__(message)
        self.may_boot = may_boot


async def inspect_guest(
    agent: Agent, guest: GuestId, request: ProvisionRequest, xenstore: XenstoreSource | None
) -> tuple[Verdict, ...]:
    """`xenstore`: of the guest's libvirt, where there is one. Raises NotSeen."""
    try:
        subject = await _subject(agent, guest, request)
        if subject.side.delivery is Delivery.XENSTORE:
            return await _self_made(agent, subject, request, xenstore)
        return await _reached(agent, subject, request)
    except (DeliveryError, NeedsError) as error:
        raise InspectionFailed(error.message, may_boot=True) from None
    except KeyFileError as error:
        raise InspectionFailed(error.message) from None
    except TemplateError as error:
        raise InspectionFailed(str(error)) from None


async def _subject(agent: Agent, guest: GuestId, request: ProvisionRequest) -> GuestTarget:
    known = agent.state.guests.get(guest)
    uri = await asyncio.to_thread(real_uri, guest.uri)
    return await guest_target(
        name=str(guest.uuid) if known is None else known.name,
        uuid=guest.uuid,
        uri=uri,
        services=request.services,
        addresses=dict(request.addresses),
        hold=_hold(agent, guest, uri, request),
        domid=request.incarnation,
    )


def _hold(agent: Agent, guest: GuestId, uri: str, request: ProvisionRequest) -> Hold:
    listen = agent.state.settings.listen
    tell = reachable_notify_via(uri, listen)
    secret = guest_secret(master_key(), guest.uuid) if tell is NotifyVia.TCP else ""
    return compile_hold(request.services, guest.uuid, tell=tell, agent=listen, secret=secret)


async def _reached(
    agent: Agent, subject: GuestTarget, request: ProvisionRequest
) -> tuple[Verdict, ...]:
    overrides = agent.config.parent / "templates"
    reached = await provision.open_access(subject)
    if reached.channel is None:
        raise InspectionFailed(f"{subject.name} can be reached only while it is off")
    seen = None
    if request.apply:
        async with _turn(agent, subject):
            found = await provision.survey(subject, reached, overrides=overrides)
            seen = (await provision.apply(found, reached, overrides=overrides)).seen
    if seen is None:
        seen = await provision.inspect(subject, reached.channel)
    return await asyncio.to_thread(provision.verdicts, subject, seen)


def _turn(agent: Agent, subject: GuestTarget) -> AbstractAsyncContextManager[None]:
    folder = lock_folder(agent.socket)
    return guest_lock(folder, subject.uuid, name=subject.name, patience=PATIENCE)


async def _self_made(
    agent: Agent, subject: GuestTarget, request: ProvisionRequest, xenstore: XenstoreSource | None
) -> tuple[Verdict, ...]:
    if xenstore is None:
        raise InspectionFailed(f"{subject.name} is not a guest of this host's Xen")
    async with _turn(agent, subject):
        problem = await self_config.deliver_settings(subject, xenstore)
    return tuple(Verdict(service=service, problem=problem) for service in request.services)
