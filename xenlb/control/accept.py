"""Accept connections in batches, so that a flood of them leaves the event loop time for others."""

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)


async def accept_connections(
    listening: socket.socket,
    take: Callable[[socket.socket, Any], None],
    *,
    batch: int,
    pause: float,
) -> None:
    """Give every connection and its address to `take`, until cancelled.

    At most `batch` connections at a time, then a pause of that many seconds.
    """
    loop = asyncio.get_running_loop()
    while True:
        try:
            take(*await loop.sock_accept(listening))
            for _ in range(batch):
                take(*listening.accept())
        except BlockingIOError:
            await asyncio.sleep(0)
        except OSError as error:  # no file descriptors, or the client has gone already
            log.debug("a connection failed: %s", error)
            await asyncio.sleep(0.1)
        else:
            await asyncio.sleep(pause)
