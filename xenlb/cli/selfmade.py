"""`xenlb guest` for guests that configure themselves from xenstore: nobody reaches into them."""

import difflib
from collections.abc import Awaitable, Callable
from typing import TypeVar

from xenlb.cli import inside
from xenlb.cli.options import Failure
from xenlb.guestside import selfmade
from xenlb.guestside.plan.preview import visible
from xenlb.guestside.subject import Subject
from xenlb.guestside.ways.channel import DeliveryError
from xenlb.guestside.work import NO_SETTINGS
from xenlb.hypervisor.vmdata import Connection, serial
from xenlb.hypervisor.xenstore_client import Refused, Unavailable

T = TypeVar("T")


def changes(it: Subject) -> list[str]:
    """The difference between what it was given and what it needs."""

    async def ask(xenstore: Connection) -> list[str]:
        before = await xenstore.given(selfmade.running(it))
        lines = difflib.unified_diff(
            [visible(line) for line in before.splitlines()],
            selfmade.text_for(it).splitlines(),
            fromfile="vm-data/xenlb",
            tofile="vm-data/xenlb",
            lineterm="",
        )
        return list(lines)

    return _with_xenstore(ask)


def apply(it: Subject) -> None:
    problem = _with_xenstore(lambda xenstore: selfmade.bring(it, xenstore))
    if problem:
        raise Failure(f"{it.name}: {problem}")


def problem(it: Subject) -> str:
    """What is wrong, as far as the guest itself tells; "" if nothing is."""

    async def ask(xenstore: Connection) -> str:
        domid, text = selfmade.running(it), selfmade.text_for(it)
        if await xenstore.given(domid) != text:
            return "it was given other settings than it needs now"
        said, came = await xenstore.answered(domid)
        if said != serial(text):
            return "it has not taken up its settings (does xenlb-guest run in it?)"
        return "" if came == "ok" else "it could not do all that it needs (its log says)"

    return _with_xenstore(ask)


def remove(it: Subject) -> None:
    """It takes away all that it has made; the programs of its image stay."""
    said = _with_xenstore(lambda xenstore: selfmade.bring(it, xenstore, text=NO_SETTINGS))
    if said:
        raise Failure(f"{it.name}: {said}")


def _with_xenstore(work: Callable[[Connection], Awaitable[T]]) -> T:
    async def asked() -> T:
        try:
            xenstore = Connection()
        except Unavailable as error:
            raise DeliveryError(f"xenstore: {error}", hint="is this Dom0?") from None
        try:
            return await work(xenstore)
        except (Unavailable, Refused) as error:
            raise DeliveryError(f"xenstore: {error}", hint="does xenstored run here?") from None
        finally:
            xenstore.close()

    return inside.run(asked())
