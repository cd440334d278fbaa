"""The verbs `guest …` for a guest that configures itself from xenstore."""

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress

import click

from xenlb.cli import guest_common
from xenlb.cli.options import Failure, Options
from xenlb.guestside import self_config
from xenlb.guestside.self_config import SelfConfigStatus
from xenlb.guestside.target import GuestTarget
from xenlb.guestside.transport.channel import DeliveryError
from xenlb.hypervisor.xenstore import guest_settings
from xenlb.hypervisor.xenstore.client import XenstoreError, XenstoreUnavailable
from xenlb.hypervisor.xenstore.guest_settings import Connection


def read_status(target: GuestTarget) -> SelfConfigStatus:
    """Return the settings in xenstore, those that the guest needs, and its report."""
    return guest_common.run(_inspect(target))


def apply(options: Options, target: GuestTarget) -> SelfConfigStatus:
    """Write the settings, wait for the guest's report, and return the status after it."""
    return guest_common.run(_deliver(options, target))


def remove(options: Options, target: GuestTarget) -> None:
    """Write empty settings, so that the guest undoes what it made. Raises Failure without a report.

    The programs of the guest's image stay; its hold gets the settings of the image.
    """
    left = "nothing of xenlb but the programs of its image"
    if target.domid is None:
        # The kernel's part went with the guest's kernel, its settings with its domain.
        click.echo(f"{target.name} is not running, so it has {left}")
        return
    status = guest_common.run(_deliver(options, self_config.without_services(target)))
    if status.differences:
        raise Failure(
            f"{target.name} has not confirmed that it has undone what it made",
            hint="its settings are removed; to check again: xenlb guest remove",
            details=tuple(map(str, status.differences)),
        )
    click.echo(f"{target.name} has {left}, by its own report")


async def _inspect(target: GuestTarget) -> SelfConfigStatus:
    async with _connection(target) as xenstore:
        return await _read_status(target, xenstore)


async def _deliver(options: Options, target: GuestTarget) -> SelfConfigStatus:
    async with guest_common.locked_guest(options, target), _connection(target) as xenstore:
        before = await _read_status(target, xenstore)
        if not before.up_to_date:
            click.echo(f"write {before.path}")
        with suppress(self_config.NotConfigured):  # the status below shows what the guest reports
            await self_config.deliver_settings(target, xenstore)
        return await _read_status(target, xenstore)


async def _read_status(target: GuestTarget, xenstore: Connection) -> SelfConfigStatus:
    domid = self_config.domid_of(target)
    return SelfConfigStatus(
        path=guest_settings.settings_path(domid),
        wanted=self_config.settings_text_for(target),
        given=await xenstore.read_settings(domid),
        report_text=await xenstore.read_answer(domid),
    )


@asynccontextmanager
async def _connection(target: GuestTarget) -> AsyncIterator[Connection]:
    """Open a connection to xenstore, where the domain is the target's. Raises DeliveryError."""
    domid = self_config.domid_of(target)
    try:
        with closing(Connection()) as xenstore:
            if not await xenstore.is_guest(domid, target.uuid):
                raise DeliveryError(
                    f"{target.name} is not domain {domid} of this host any more", hint="try again"
                )
            yield xenstore
    except (XenstoreUnavailable, XenstoreError) as error:
        denied = error.code in {errno.EPERM, errno.EACCES}
        answered = isinstance(error, XenstoreError)
        hint = f"is domain {domid} still there?" if answered else "does xenstored run in this Dom0?"
        raise DeliveryError(
            f"xenstore reports {error}" if answered else f"xenstore: {error}",
            hint="is this Dom0, and are you root?" if denied else hint,
            permitted=not denied,
        ) from None
