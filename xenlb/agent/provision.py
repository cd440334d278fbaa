"""Inspects one guest for the agent, and applies what is missing where the service says so."""

import asyncio
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from xenlb.control.guest_secrets import KeyFileError, guest_secret, master_key
from xenlb.guestside import provision, self_config
from xenlb.guestside.lock import guest_lock
from xenlb.guestside.render.template import TemplateError
from xenlb.guestside.requirements.compile import NeedsError
from xenlb.guestside.requirements.hold import NotifyVia, compile_hold, reachable_notify_via
from xenlb.guestside.target import GuestTarget, guest_target
from xenlb.guestside.transport.channel import DeliveryError
from xenlb.guestside.transport.open import open_access
from xenlb.hypervisor.uri import real_uri
from xenlb.hypervisor.xenstore.source import XenstoreSource
from xenlb.model.domain import GuestId
from xenlb.model.events import Verdict
from xenlb.model.guest_side import Delivery
from xenlb.model.provision_requests import ProvisionRequest

# Seconds to wait for an operator's command that has locked the guest, which may take minutes; the
# inspection is tried again. Well below provisioner.IN_TIME: the guest itself is not slow then.
PATIENCE = 5.0


class InspectionFailed(Exception):
    """The guest cannot be inspected; one sentence. `may_boot`: it may be a matter of time."""

    def __init__(self, message: str, *, may_boot: bool = False) -> None:
        super().__init__(message)
        self.may_boot = may_boot


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspector:
    """`templates`: the operator's own, in place of those shipped. `locks`: a lock file a guest."""

    templates: Path
    locks: Path

    async def inspect(
        self, guest: GuestId, request: ProvisionRequest, xenstore: XenstoreSource | None
    ) -> tuple[Verdict, ...]:
        """Return a verdict for each service of the request. Raises InspectionFailed.

        `xenstore`: of the guest's libvirt, if that is the local Xen.
        """
        try:
            target = await _target(guest, request)
            if target.side.delivery is Delivery.XENSTORE:
                return await self._self_configured(target, request, xenstore)
            return await self._reached(target, request)
        except (DeliveryError, NeedsError) as error:
            raise InspectionFailed(error.message, may_boot=True) from None
        except KeyFileError as error:
            raise InspectionFailed(error.message) from None
        except TemplateError as error:
            raise InspectionFailed(str(error)) from None

    async def _reached(self, target: GuestTarget, request: ProvisionRequest) -> tuple[Verdict, ...]:
        access = await open_access(target)
        if access.channel is None:
            raise InspectionFailed(f"{target.name} can be reached only while it is off")
        observed = None
        if request.apply:
            async with self._lock(target):
                survey = await provision.survey(target, access, overrides=self.templates)
                applied = await provision.apply(survey, access, overrides=self.templates)
                observed = applied.observed
        if observed is None:
            observed = await provision.inspect(target, access.channel)
        return await asyncio.to_thread(provision.verdicts, target, observed)

    async def _self_configured(
        self, target: GuestTarget, request: ProvisionRequest, xenstore: XenstoreSource | None
    ) -> tuple[Verdict, ...]:
        if xenstore is None:
            raise InspectionFailed(f"{target.name} is not a guest of this host's Xen")
        async with self._lock(target):
            problem = await self_config.deliver_settings(target, xenstore)
        return tuple(Verdict(service=service, problem=problem) for service in request.services)

    def _lock(self, target: GuestTarget) -> AbstractAsyncContextManager[None]:
        return guest_lock(self.locks, target.uuid, name=target.name, patience=PATIENCE)


async def _target(guest: GuestId, request: ProvisionRequest) -> GuestTarget:
    uri = await asyncio.to_thread(real_uri, guest.uri)
    notify_via = reachable_notify_via(uri, request.listen)
    secret = guest_secret(master_key(), guest.uuid) if notify_via is NotifyVia.TCP else ""
    hold = compile_hold(
        request.services, guest.uuid, tell=notify_via, agent=request.listen, secret=secret
    )
    return await guest_target(
        name=request.name,
        uuid=guest.uuid,
        uri=uri,
        services=request.services,
        addresses=dict(request.addresses),
        hold=hold,
        domid=request.incarnation,
    )
