"""Runs inside a lab with xenlb's Python: prints what the hypervisor room tells, a JSON line each.

    listen.py URI [hooks]

Each line: t (the lab's wall clock when it was emitted), event (its type), guest (libvirt's name,
its UUID until that is known), and the event's own fields. On Xen xenstore is listened to as well.
With `hooks`, each
call of the libvirt hook script is a Hook (one listener at a time: they share a file). Ends with
SIGTERM. SIGUSR1 holds the event loop for 0.3 s, as a busy agent would.
"""

import asyncio
import dataclasses
import json
import logging
import signal
import sys
import time
from uuid import UUID

from xenlb.hypervisor.addresses.finder import AddressFinder
from xenlb.hypervisor.libvirt.hooks import HookCall, HookSource
from xenlb.hypervisor.libvirt.source import LibvirtSource
from xenlb.hypervisor.xenstore.source import XenstoreSource
from xenlb.model.domain import GuestId
from xenlb.model.events import Died, GuestsListed, HypervisorEvent, Started, Stopped
from xenlb.model.reserved_addresses import AddressesInUse

NAMES: dict[UUID, str] = {}
RUNNING: dict[GuestId, int | None] = {}


def clock() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def line(event: HypervisorEvent) -> dict[str, object]:
    fields: dict[str, object] = {"t": time.time(), "event": type(event).__name__}
    for field in dataclasses.fields(event):
        value = getattr(event, field.name)
        if isinstance(value, GuestId):
            fields["guest"] = NAMES.get(value.uuid, str(value.uuid))
        elif field.name == "guests":
            fields["guests"] = {each.name: [each.domain_state, each.incarnation] for each in value}
        elif field.name == "candidates":
            fields["candidates"] = [[str(each.address), each.source] for each in value]
        elif field.name == "rejected":
            fields["rejected"] = [[each.text, each.source, each.reason] for each in value]
        elif field.name != "at":
            fields[field.name] = value
    return fields


def follow(event: HypervisorEvent) -> None:
    """Keeps names, and which guests run."""
    match event:
        case GuestsListed():
            NAMES.update({each.guest.uuid: each.name for each in event.guests})
            for each in event.guests:
                if each.incarnation is not None:
                    RUNNING[each.guest] = each.incarnation
        case Started():
            NAMES[event.guest.uuid] = event.name
            RUNNING[event.guest] = event.incarnation
        case Died() | Stopped() if RUNNING.get(event.guest) == event.incarnation:
            RUNNING.pop(event.guest, None)


def hook(call: HookCall) -> None:
    fields = {"t": time.time(), "event": "Hook", "guest": call.name, **dataclasses.asdict(call)}
    print(json.dumps(fields, default=str), flush=True)


async def main(uri: str, *, hooks: bool) -> None:
    loop = asyncio.get_running_loop()
    finder: AddressFinder | None = None

    def emit(event: HypervisorEvent) -> None:
        follow(event)
        print(json.dumps(line(event), default=str), flush=True)
        if finder is not None:
            finder.search_for(RUNNING)

    # An emulated Dom0 stands still for seconds; what is listened to are events, not a listing.
    libvirt = LibvirtSource(uri, emit, clock, keepalive=180)
    xenstore = XenstoreSource(uri, emit, clock, find_dead=libvirt.find_dead)
    on_xen = uri.startswith("xen:")
    finder = AddressFinder(emit, clock, {uri: libvirt}, {uri: xenstore} if on_xen else {})
    finder.set_policy(AddressesInUse(), ())
    sources = [libvirt.run, finder.run, *([xenstore.run] if on_xen else [])]
    if hooks:
        sources.append(HookSource("/run/xenlb/hooks", hook).run)
    tasks = [asyncio.ensure_future(run()) for run in sources]
    loop.add_signal_handler(signal.SIGTERM, lambda: [task.cancel() for task in tasks])
    loop.add_signal_handler(signal.SIGUSR1, time.sleep, 0.3)
    await asyncio.gather(*tasks, return_exceptions=True)
    if on_xen:
        print(json.dumps({"t": time.time(), "event": "end", "missed": xenstore.missed_requests}))


if __name__ == "__main__":
    logging.basicConfig(stream=sys.stderr, format="%(created).3f %(name)s: %(message)s")
    logging.getLogger("xenlb").setLevel(logging.DEBUG)
    asyncio.run(main(sys.argv[1], hooks="hooks" in sys.argv[2:]))
