"""Runs in the lab's host: brings files into a guest by the way its configuration would name.

`python -m tests.lab.deliver URI UUID NAME DELIVERY ADDRESS` with the wanted files on standard
input, as JSON; prints what came of it, as JSON.
"""

import asyncio
import json
import sys
from ipaddress import ip_address
from uuid import UUID

import libvirt

from xenlb.guestside.install.operations import GuestFile, GuestSymlink, Wanted
from xenlb.guestside.target import GuestTarget
from xenlb.guestside.transport.channel import DeliveryError
from xenlb.guestside.transport.open import open_access
from xenlb.guestside.transport.survey import survey_files
from xenlb.model.guest_side import Delivery, GuestSide


def wanted(value: dict[str, str | int]) -> Wanted:
    if "target" in value:
        return GuestSymlink(path=str(value["path"]), target=str(value["target"]))
    mode = int(value.get("mode", 0o644))
    block = bool(value.get("block", 0))
    return GuestFile(path=str(value["path"]), text=str(value["text"]), mode=mode, block=block)


async def deliver(where: GuestTarget, files: tuple[Wanted, ...]) -> dict[str, object]:
    try:
        executor = (await open_access(where)).executor
        plan = (await survey_files(executor, files)).plan
        await executor.perform(plan.operations)
        again = (await survey_files(executor, files)).plan
    except DeliveryError as error:
        return {"error": error.message, "hint": error.hint}
    return {
        "done": [str(each) for each in plan.operations],
        "notes": plan.notes,
        "again": [str(each) for each in again.operations],
    }


def main(uri: str, uuid: str, name: str, delivery: str, address: str) -> None:
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    where = GuestTarget(
        uri=uri,
        uuid=UUID(uuid),
        name=name,
        side=GuestSide(delivery=Delivery(delivery)),
        address=ip_address(address),
    )
    files = tuple(wanted(each) for each in json.load(sys.stdin))
    json.dump(asyncio.run(deliver(where, files)), sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
