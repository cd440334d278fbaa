"""The daemon: from its first configuration to SIGTERM.

What it leaves behind when it stops, or is killed: the kernel's table, the service addresses and the
state file, all as they are; the balancing goes on without it.
"""

import asyncio
import logging
import os
import signal
from pathlib import Path

from xenlb import clock
from xenlb.agent import Agent
from xenlb.config.watch import ConfigWatcher
from xenlb.control.server import ControlServer
from xenlb.control.systemd import Notifier
from xenlb.model.settings import Settings
from xenlb.sources import Sources
from xenlb.verbs import Verbs

log = logging.getLogger(__name__)

STUCK = 20.0  # seconds without a round of the owner after which systemd hears no more of us
SIGN_OF_LIFE = 5.0  # seconds between two of them, unless systemd wants more


def run(first: Settings, *, config: Path, socket: Path, state: Path) -> None:
    """Serves until SIGTERM or SIGINT, with `first` until the file changes. Raises ControlError
    where another agent runs."""
    asyncio.run(Daemon(config=config, socket=socket, state=state).serve(first))


class Daemon:
    def __init__(self, *, config: Path, socket: Path, state: Path) -> None:
        self._socket = socket
        self._watcher = ConfigWatcher(config, self._file_changed)
        self._agent = Agent(config=config, state_file=state, socket=socket)
        self._notifier = Notifier(os.environ)
        self._reload = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, settings: Settings) -> None:
        """Until SIGTERM or SIGINT. Raises ControlError where another agent runs."""
        self._loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, stop.set)
        self._loop.add_signal_handler(signal.SIGHUP, self._reload.set)
        # The lock of the socket comes first: two agents would undo each other's work.
        sources = Sources(self._agent)
        verbs = Verbs(self._agent, sources.director_problems)
        async with ControlServer(self._socket, verbs.handlers()):
            self._agent.changed = sources.follow
            self._agent.configure(settings)
            tasks = [
                asyncio.create_task(work, name=name)
                for name, work in {
                    "owner": self._agent.own(),
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

    def _file_changed(self) -> None:
        """Called in the watcher's thread."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._reload.set)

    async def _reloads(self) -> None:
        while True:
            await self._reload.wait()
            self._reload.clear()
            self._notifier.reloading()
            problems = await self._agent.reload()
            self._notifier.ready("the configuration is refused" if problems else "balancing")

    async def _signs_of_life(self) -> None:
        await self._agent.begun.wait()
        self._notifier.ready("balancing")
        log.info("ready")
        pause = self._notifier.watchdog_interval or SIGN_OF_LIFE
        while True:
            if clock.now() - self._agent.round_at < STUCK:
                self._notifier.watchdog()
            await asyncio.sleep(pause)
