"""The daemon: from its first configuration to SIGTERM.

What it leaves behind when it stops, or is killed: the kernel's table, the service addresses and the
state file, all as they are; the balancing goes on without it.
"""

import asyncio
import gc
import logging
import os
import signal
from contextlib import suppress
from pathlib import Path

from xenlb import clock
from xenlb.agent.configuration import Start
from xenlb.agent.handlers import Handlers
from xenlb.agent.loop import Agent
from xenlb.agent.sources import Sources
from xenlb.config.watcher import ConfigWatcher
from xenlb.control.lock import Lock
from xenlb.control.server import ControlServer
from xenlb.control.systemd_notify import Notifier
from xenlb.model.events import ConfigurationRefused

log = logging.getLogger(__name__)

STUCK = 20.0  # seconds without a round of the owner after which systemd hears no more of us
SIGN_OF_LIFE = 5.0  # seconds between two of them, unless systemd wants more
AGAIN = 60.0  # seconds until a configuration that was refused is read again


def run(first: Start, *, config: Path, socket: Path, state: Path, last_good: Path) -> None:
    """Serves until SIGTERM or SIGINT, with `first` until the file changes. Raises ControlError
    where another agent runs."""
    daemon = Daemon(config=config, socket=socket, state=state, last_good=last_good)
    asyncio.run(daemon.serve(first))


def keep_for_good() -> None:
    """What is there now is not searched for garbage again: modules, libraries, the first state. A
    search of 76,000 objects takes the loop 40 ms, and each answer of a server may set one off."""
    gc.collect()
    gc.freeze()


class Daemon:
    """Making one raises ControlError where another agent runs."""

    def __init__(self, *, config: Path, socket: Path, state: Path, last_good: Path) -> None:
        self._socket = socket
        # The lock comes first: a second agent must touch neither the table nor the state file.
        self._lock = Lock(socket)
        self._lock.take()
        self._watcher = ConfigWatcher(config, self._file_changed)
        self._agent = Agent(config=config, state_file=state, socket=socket, last_good=last_good)
        self._notifier = Notifier(os.environ)
        self._reload = asyncio.Event()
        self._ordered = False
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, first: Start) -> None:
        """Until SIGTERM or SIGINT."""
        self._loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, stop.set)
        self._loop.add_signal_handler(signal.SIGHUP, self._reload_ordered)
        sources = Sources(self._agent)
        verbs = Handlers(self._agent, sources.director_problems)
        async with ControlServer(self._socket, verbs.handlers(), lock=self._lock):
            self._agent.on_state_change = sources.on_state_change
            await self._begin(first)
            tasks = [
                asyncio.create_task(work, name=name)
                for name, work in {
                    "owner": self._agent.run(),
                    "reloads": self._reloads(),
                    "signs of life": self._signs_of_life(),
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
                task.result()  # a failure of the owner is the daemon's: systemd starts it again

    async def _begin(self, first: Start) -> None:
        self._agent.configure(first.loaded.settings)
        if first.problems:
            self._agent.emit(ConfigurationRefused(at=clock.now(), problems=first.problems))
        await self._agent.configuration.use(first.loaded, since=first.since)

    def _reload_ordered(self) -> None:
        self._ordered = True
        self._reload.set()

    def _file_changed(self) -> None:
        """Called in the watcher's thread."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._reload.set)

    async def _reloads(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(AGAIN if self._agent.state.observed.problems else None):
                    await self._reload.wait()
            self._reload.clear()
            ordered, self._ordered = self._ordered, False
            if ordered:
                self._notifier.reloading()
            problems = await self._agent.reload(ordered=ordered)
            self._notifier.ready("the configuration is refused" if problems else "balancing")

    async def _signs_of_life(self) -> None:
        await self._agent.first_sync_done.wait()
        keep_for_good()
        self._notifier.ready("balancing")
        log.info("ready")
        pause = self._notifier.watchdog_interval or SIGN_OF_LIFE
        while True:
            if clock.now() - self._agent.round_at < STUCK:
                self._notifier.watchdog()
            await asyncio.sleep(pause)
