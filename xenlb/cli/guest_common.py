"""Shared by the verbs `guest …`: the guest, its hold, its lock, and their errors."""

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from xenlb.cli.options import Failure, Options
from xenlb.control.guest_secrets import guest_secret, master_key
from xenlb.control.protocol import UNREACHABLE, ControlError
from xenlb.guestside.lock import guest_lock, lock_folder
from xenlb.guestside.render.template import TemplateError
from xenlb.guestside.requirements.hold import (
    Hold,
    NotifyVia,
    compile_hold,
    notify_via_of,
    reachable_notify_via,
)
from xenlb.guestside.target import GuestTarget, guest_target
from xenlb.hypervisor.uri import real_uri
from xenlb.model.guest_side import Delivery
from xenlb.model.settings import Settings
from xenlb.oneshot import find_guest as search
from xenlb.oneshot.find_guest import GuestIdentity

T = TypeVar("T")
PATIENCE = 300.0  # seconds; another xenlb may be at work in a slow guest


def find_guest(options: Options, settings: Settings, name: str) -> GuestIdentity:
    """Return a guest as the agent knows it, or libvirt if no agent runs."""
    try:
        guest = search.by_agent(options.socket, settings, name)
    except ControlError as error:
        if error.status != UNREACHABLE:
            raise
        guest = search.by_libvirt(settings, name)
    return replace(guest, uri=real_uri(guest.uri))


def shutdown_hold(
    guest: GuestIdentity,
    settings: Settings,
    *,
    key: Path,
    notify: NotifyVia | None = None,
    must_notify: bool = False,
) -> Hold | None:
    """Return what holds the guest's shutdown; None for a guest in no service.

    `notify` is how the guest reports its shutdown (default: by its hypervisor). If that is TCP and
    the agent does not listen, the hold only waits; with `must_notify` that raises Failure.
    """
    if not guest.services:
        return None
    via = notify_via_of(guest.uri) if notify is None else notify
    if must_notify and via is NotifyVia.TCP and settings.listen is None:
        raise Failure(
            f"guest {guest.name} cannot report its shutdown to this host",
            hint='add  guests: {listen: "ADDRESS:7371"}  to the configuration, or use --tell none',
        )
    if notify is None:
        via = reachable_notify_via(guest.uri, settings.listen)
    secret = guest_secret(master_key(key), guest.uuid) if via is NotifyVia.TCP else ""
    return compile_hold(guest.services, guest.uuid, tell=via, agent=settings.listen, secret=secret)


async def target_of(
    guest: GuestIdentity,
    hold: Hold | None,
    *,
    delivery: Delivery | None = None,
    ssh: str | None = None,
) -> GuestTarget:
    """Return the target of a guest; `delivery` and `ssh` override the configuration."""
    target = await guest_target(
        name=guest.name,
        uuid=guest.uuid,
        uri=guest.uri,
        services=guest.services,
        addresses=guest.addresses,
        hold=hold,
        domid=guest.domid,
    )
    side = target.side
    if delivery is not None:
        side = replace(side, delivery=delivery)
    if ssh is not None:
        side = replace(side, delivery=Delivery.SSH, ssh=ssh)
    return replace(target, side=side)


def locked_guest(options: Options, target: GuestTarget) -> AbstractAsyncContextManager[None]:
    """Hold the lock of a guest; a line on stderr reports a wait."""
    return guest_lock(
        lock_folder(options.socket),
        target.uuid,
        name=target.name,
        patience=PATIENCE,
        on_wait=lambda sentence: click.echo(f"xenlb: {sentence}", err=True),
    )


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end. A wrong template raises Failure."""
    with template_errors():
        return asyncio.run(work)


@contextmanager
def template_errors() -> Iterator[None]:
    """Turn the error of an operator's template into a Failure."""
    try:
        yield
    except TemplateError as error:
        raise Failure(str(error), hint="correct the template, or remove it") from error
