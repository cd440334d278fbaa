"""`xenlb guest` for guests that configure themselves from xenstore: nobody reaches into them."""

import errno
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

import click

from xenlb.cli import guest_common
from xenlb.cli.options import Failure, Options
from xenlb.guestside import self_config
from xenlb.guestside.self_config_status import SelfConfigStatus
from xenlb.guestside.target import GuestTarget
from xenlb.guestside.transport.channel import DeliveryError
from xenlb.hypervisor.xenstore import guest_settings
from xenlb.hypervisor.xenstore.client import XenstoreError, XenstoreUnavailable
from xenlb.hypervisor.xenstore.guest_settings import Connection

T = TypeVar("T")
DENIED = {errno.EPERM, errno.EACCES}


def seen(it: GuestTarget) -> SelfConfigStatus:
    """What it was given, what it needs, what it says."""
    return guest_common.run(_with_xenstore(it, lambda xenstore: _look(it, xenstore)))


def apply(options: Options, it: GuestTarget) -> SelfConfigStatus:
    """Gives it its settings; what it says of them then, if anything."""
    return guest_common.run(_in_turn(options, it))


def remove(options: Options, it: GuestTarget) -> None:
    """It takes away all that it has made; the programs of its image stay, and those of the hold
    have the settings of the image again."""
    left = "nothing of xenlb but the programs of its image"
    if it.domid is None:
        # What it makes is the kernel's, and what it was given its domain's: both have gone.
        click.echo(f"{it.name} does not run, so it has {left}")
        return
    found = guest_common.run(_in_turn(options, self_config.in_no_service(it)))
    if found.differences:
        raise Failure(
            f"{it.name} has not confirmed that it has undone what it made",
            hint="its settings are taken away; to ask it again: xenlb guest remove",
            details=tuple(str(each) for each in found.differences),
        )
    click.echo(f"{it.name} has {left}, as it says itself")


async def _in_turn(options: Options, it: GuestTarget) -> SelfConfigStatus:
    async with guest_common.locked_guest(options, it):
        return await _with_xenstore(it, lambda xenstore: _bring(it, xenstore))


async def _bring(it: GuestTarget, xenstore: Connection) -> SelfConfigStatus:
    before = await _look(it, xenstore)
    if not before.in_step:
        click.echo(f"write {before.place}")
    with suppress(self_config.NotConfigured):  # what it says instead is seen
        await self_config.deliver_settings(it, xenstore)
    return await _look(it, xenstore)


async def _look(it: GuestTarget, xenstore: Connection) -> SelfConfigStatus:
    domid = self_config.running(it)
    return SelfConfigStatus(
        place=guest_settings.place(domid),
        wanted=self_config.settings_text_for(it),
        given=await xenstore.given(domid),
        word=await xenstore.said(domid),
    )


async def _with_xenstore(it: GuestTarget, work: Callable[[Connection], Awaitable[T]]) -> T:
    """Raises DeliveryError."""
    domid = self_config.running(it)
    try:
        xenstore = Connection()
    except XenstoreUnavailable as error:
        denied = error.code in DENIED
        raise DeliveryError(
            f"xenstore: {error}",
            hint="run it as root" if denied else "is this Dom0?",
            permitted=not denied,
        ) from None
    try:
        if not await xenstore.holds(domid, it.uuid):
            raise DeliveryError(
                f"{it.name} is not domain {domid} of this host any more", hint="try again"
            )
        return await work(xenstore)
    except XenstoreUnavailable as error:
        raise DeliveryError(f"xenstore: {error}", hint="does xenstored run here?") from None
    except XenstoreError as error:
        denied = error.code in DENIED
        raise DeliveryError(
            f"xenstore says {error}",
            hint="is this Dom0, and are you root?" if denied else f"is domain {domid} still there?",
            permitted=not denied,
        ) from None
    finally:
        xenstore.close()
