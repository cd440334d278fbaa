"""The daemon, from its first configuration to SIGTERM.

When it stops, or is killed, the kernel's table, the service addresses and the state file stay as
they are: the kernel goes on balancing.
"""

import asyncio
import gc
import logging
import os
import signal
from contextlib import suppress
from pathlib import Path

from xenlb import clock
from xenlb.agent import debug
from xenlb.agent.configuration import FirstConfiguration
from xenlb.agent.handlers import Handlers
from xenlb.agent.loop import Agent
from xenlb.agent.sources import Sources
from xenlb.config.watcher import ConfigWatcher
from xenlb.control.lock import Lock
from xenlb.control.server import ControlServer
from xenlb.control.systemd_notify import Notifier
from xenlb.model.events import ConfigurationRefused

log = logging.getLogger(__name__)

STALLED = 20.0  # seconds without a round of the owner after which systemd's watchdog is not fed
WATCHDOG_INTERVAL = 5.0  # seconds, unless systemd asks for another interval
RETRY = 60.0  # seconds until a refused configuration is read again


def run(
    first: FirstConfiguration, *, config: Path, socket: Path, state: Path, last_good: Path
) -> None:
    """Run until SIGTERM or SIGINT, with `first` until the file changes.

    Raises ControlError if another agent runs.
    """
    daemon = Daemon(config=config, socket=socket, state=state, last_good=last_good)
    asyncio.run(daemon.serve(first))


def exempt_from_collection() -> None:
    """Exempt the present objects from garbage collection: modules, libraries, the first state.

    A collection over 76,000 objects stops the loop for 40 ms, and each reply of a server may start
    one.
    """
    gc.collect()
    gc.freeze()


class Daemon:
    """The parts of the agent, and the signals. Raises ControlError where another agent runs."""

    def __init__(self, *, config: Path, socket: Path, state: Path, last_good: Path) -> None:
        self._socket = socket
        # The lock comes first: a second agent must change neither the table nor the state file.
        self._lock = Lock(socket)
        self._lock.take()
        self._watcher = ConfigWatcher(config, self._file_changed)
        self._agent = Agent(config=config, state_file=state, socket=socket, last_good=last_good)
        self._notifier = Notifier(os.environ)
        self._reload = asyncio.Event()
        self._requested = False
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, first: FirstConfiguration) -> None:
        """Run until SIGTERM or SIGINT."""
        self._loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, stop.set)
        self._loop.add_signal_handler(signal.SIGHUP, self._request_reload)
        debug.install(self._loop)
        sources = Sources(self._agent)
        handlers = Handlers(self._agent, sources.director_problems)
        async with ControlServer(self._socket, handlers.handlers(), lock=self._lock):
            self._agent.on_state_change = sources.on_state_change
            await self._configure(first)
            tasks = [
                asyncio.create_task(work, name=name)
                for name, work in {
                    "owner": self._agent.run(),
                    "reloads": self._reloads(),
                    "watchdog": self._feed_watchdog(),
                    "stop": stop.wait(),
                }.items()
            ]
            try:
                self._watcher.start()
                sources.start()
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                self._agent.note("stopped; table and service addresses stay as they are")
                self._notifier.stopping()
                self._watcher.stop()
                await sources.stop()
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
            for task in done:
                task.result()  # an exception ends the daemon, and systemd starts it again

    async def _configure(self, first: FirstConfiguration) -> None:
        self._agent.configure(first.loaded.settings)
        if first.problems:
            self._agent.emit(ConfigurationRefused(at=clock.now(), problems=first.problems))
        await self._agent.configuration.use(first.loaded, since=first.since)

    def _request_reload(self) -> None:
        self._requested = True
        self._reload.set()

    def _file_changed(self) -> None:
        """Request a reload; called in the watcher's thread."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._reload.set)

    async def _reloads(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(RETRY if self._agent.state.observed.problems else None):
                    await self._reload.wait()
            self._reload.clear()
            requested, self._requested = self._requested, False
            if requested:
                self._notifier.reloading()
            problems = await self._agent.reload(ordered=requested)
            self._notifier.ready("the configuration is refused" if problems else "balancing")

    async def _feed_watchdog(self) -> None:
        await self._agent.first_sync_done.wait()
        exempt_from_collection()
        self._notifier.ready("balancing")
        log.info("ready")
        pause = self._notifier.watchdog_interval or WATCHDOG_INTERVAL
        while True:
            if clock.now() - self._agent.round_at < STALLED:
                self._notifier.watchdog()
            await asyncio.sleep(pause)
