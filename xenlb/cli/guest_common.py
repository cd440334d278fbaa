"""For `xenlb guest`: who the guest is, what it should have inside, and the way in; each failure as
one sentence."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from xenlb.cli.invalid_config import invalid
from xenlb.cli.options import Failure, Options
from xenlb.config import ConfigError, load
from xenlb.control.guest_secrets import KeyFileError, guest_secret, master_key
from xenlb.control.protocol import FAILED, NOT_PERMITTED, UNREACHABLE, ControlError
from xenlb.guestside.inspect.parse import ObserveError
from xenlb.guestside.lock import guest_lock, lock_folder
from xenlb.guestside.render.template import TemplateError
from xenlb.guestside.requirements.compile import NeedsError
from xenlb.guestside.requirements.hold import (
    Hold,
    NotifyVia,
    compile_hold,
    notify_via_of,
    reachable_notify_via,
)
from xenlb.guestside.target import GuestTarget, guest_target
from xenlb.guestside.transport.channel import DeliveryError
from xenlb.hypervisor.uri import SourceUnavailable, real_uri
from xenlb.model.guest_side import Delivery
from xenlb.model.settings import Settings
from xenlb.oneshot import find_guest
from xenlb.oneshot.find_guest import GuestIdentity

T = TypeVar("T")
PATIENCE = 300.0  # seconds; who is at work in a guest may have a slow one


def settings_of(options: Options) -> Settings:
    try:
        return load(options.config)
    except ConfigError as error:
        raise invalid(error) from None


def find(options: Options, settings: Settings, name: str) -> GuestIdentity:
    """The guest as the agent knows it; as libvirt does where no agent runs."""
    try:
        found = _found(options, settings, name)
        return replace(found, uri=real_uri(found.uri))
    except SourceUnavailable as error:
        raise Failure(error.message, hint=error.hint) from error


def _found(options: Options, settings: Settings, name: str) -> GuestIdentity:
    try:
        return find_guest.by_agent(options.socket, settings, name)
    except ControlError as error:
        if error.status != UNREACHABLE:
            raise
    return find_guest.by_libvirt(settings, name)


def hold(
    found: GuestIdentity,
    settings: Settings,
    *,
    tell: NotifyVia | None = None,
    key: Path,
    must_tell: bool = False,
) -> Hold | None:
    """How the guest's shutdown is held; None: it is in no service. `tell`: the way to tell the
    host, that of its hypervisor where left out. Where that is TCP and no agent listens, the hold
    only waits, unless it must tell."""
    if not found.services:
        return None
    way = notify_via_of(found.uri) if tell is None else tell
    if must_tell and way is NotifyVia.TCP and settings.listen is None:
        raise Failure(
            f"guest {found.name} cannot report its shutdown to this host",
            hint='add  guests: {listen: "ADDRESS:7371"}  to the configuration, or use --tell none',
        )
    if tell is None:
        way = reachable_notify_via(found.uri, settings.listen)
    secret = ""
    if way is NotifyVia.TCP:
        try:
            secret = guest_secret(master_key(key), found.uuid)
        except KeyFileError as error:
            raise Failure(error.message, hint=error.hint) from error
    return compile_hold(found.services, found.uuid, tell=way, agent=settings.listen, secret=secret)


async def target_of(
    found: GuestIdentity,
    held: Hold | None,
    *,
    delivery: Delivery | None = None,
    ssh: str | None = None,
) -> GuestTarget:
    """`delivery`, `ssh`: in place of what is configured."""
    it = await guest_target(
        name=found.name,
        uuid=found.uuid,
        uri=found.uri,
        services=found.services,
        addresses=found.addresses,
        hold=held,
        domid=found.domid,
    )
    side = it.side
    if delivery is not None:
        side = replace(side, delivery=delivery)
    if ssh is not None:
        side = replace(side, delivery=Delivery.SSH, ssh=ssh)
    return replace(it, side=side)


def locked_guest(options: Options, it: GuestTarget) -> AbstractAsyncContextManager[None]:
    """Nobody else changes the guest meanwhile; the operator is told where that takes waiting."""
    return guest_lock(
        lock_folder(options.socket),
        it.uuid,
        name=it.name,
        patience=PATIENCE,
        waits=lambda sentence: click.echo(f"xenlb: {sentence}", err=True),
    )


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs it to its end; what the way into a guest or its needs complain of is a Failure."""
    return excused(lambda: asyncio.run(work))


def excused(work: Callable[[], T]) -> T:
    try:
        return work()
    except DeliveryError as error:
        status = FAILED if error.permitted else NOT_PERMITTED
        raise Failure(error.message, hint=error.hint, status=status) from error
    except (NeedsError, ObserveError) as error:
        raise Failure(error.message, hint=error.hint) from error
    except TemplateError as error:
        raise Failure(str(error), hint="correct the template, or remove it") from error
