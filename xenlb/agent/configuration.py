"""The agent's configuration: which one is in use, and which is taken up next.

A configuration that is wrong is refused and the one in use goes on; at start, the last good one of
the disk is used (last_good.py). A reload is refused too where it needs what this host has not (an
interface with a misspelt name, say) and the configuration in use does not: at start there is
nothing to lose, and an interface may come later, so it is a warning then.

A file that changed by itself may be half written. So one that would remove a service, or more
servers than it leaves, is taken up only if it is still the same a while later. The order to reload
is taken at its word.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from xenlb import clock, config
from xenlb.config import ConfigError, LoadedConfig
from xenlb.config.host_requirements import RequirementKind
from xenlb.model.problem import Problem
from xenlb.model.settings import Settings
from xenlb.store import last_good

log = logging.getLogger(__name__)

CALM = 5.0  # seconds in which a file that removes much must not change


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What an agent begins with. `problems`: why that is not what the file says; `since`: then,
    when the last good configuration was first in use."""

    loaded: LoadedConfig
    problems: tuple[Problem, ...] = ()
    since: str = ""


def start(file: Path, place: Path) -> Start:
    """The configuration, or the last good one kept at `place`. Raises ConfigError if neither can
    be used."""
    try:
        return Start(loaded=config.load_config(file))
    except ConfigError as error:
        refused = error
    try:
        known = last_good.read_last_good(place, of=file)
        if known is None:
            raise refused
        loaded = config.load_bytes(known.data, str(file))
    except last_good.LastGoodError as error:
        log.warning("the last good configuration (%s) cannot be used: %s", place, error)
        raise refused from None
    except ConfigError:  # it was right for another version of xenlb
        raise refused from None
    log.warning(
        "%s has %d problem%s, the first: %s; the last good configuration, in use since %s (sha256"
        " %.12s), is used until the file is right",
        file,
        len(refused.problems),
        "s" * (len(refused.problems) != 1),
        refused.problems[0],
        known.since,
        known.checksum,
    )
    return Start(loaded=loaded, problems=refused.problems, since=known.since)


class Configuration:
    """`place`: where the last good one is kept; None: nowhere."""

    def __init__(
        self,
        file: Path,
        place: Path | None = None,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.file = file
        self._place = place
        self._sleep = sleep
        self.in_use: LoadedConfig | None = None
        self.last_good_since = ""  # while the last good configuration is used in place of the file
        self._complaint = ""

    async def use(self, loaded: LoadedConfig, *, since: str = "") -> None:
        """This one is in use from now on. `since`: it is the last good one, of that time."""
        self.in_use, self.last_good_since = loaded, since
        if self._place is None or since:
            return
        now = clock.wall(clock.now())
        try:
            await asyncio.to_thread(
                last_good.write_last_good, self._place, loaded.data, of=self.file, since=now
            )
            self._complaint = ""
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            if why != self._complaint:
                log.warning("the last good configuration cannot be kept: %s: %s", self._place, why)
            self._complaint = why

    async def read(self) -> LoadedConfig:
        """What the file says now. Raises ConfigError if it is refused."""
        known = frozenset() if self.in_use is None else self.in_use.requirements
        loaded = await asyncio.to_thread(config.load_config, self.file)
        lacks = await asyncio.to_thread(loaded.missing_requirements, except_for=known)
        if lacks:
            raise ConfigError(lacks)
        return loaded

    async def read_calmly(self) -> LoadedConfig:
        """As read(), after a change of the file without an order to reload."""
        loaded = await self.read()
        while self.in_use is not None and (cut := losses(self.in_use.settings, loaded.settings)):
            log.warning(
                "%s has changed and would remove %s: it is taken up if it is the same in %g s"
                " (xenlb reload takes it up now)",
                self.file,
                cut,
                CALM,
            )
            await self._sleep(CALM)
            again = await self.read()
            if again.data == loaded.data:
                break
            loaded = again
        return loaded

    def lacking(self) -> tuple[Problem, ...]:
        """What the checks in use need and this host has not now. The interface is not among it:
        who keeps the service addresses looks at it all the time."""
        if self.in_use is None:
            return ()
        interfaces = {
            need for need in self.in_use.requirements if need.kind is RequirementKind.INTERFACE
        }
        return self.in_use.missing_requirements(except_for=interfaces)


def losses(before: Settings, after: Settings) -> str:
    """What a reload would remove, if that is a service, or more servers than it leaves."""
    kept = {key for service in after.services for key in service.kernel_keys()}
    services = [
        service.name for service in before.services if not kept.issuperset(service.kernel_keys())
    ]
    if services:
        more = f" and {len(services) - 3} more" if len(services) > 3 else ""
        return f"service {', '.join(services[:3])}{more}"
    was, now = _servers(before), _servers(after)
    gone = len(was - now)
    return f"{gone} of {len(was)} servers" if gone > len(was & now) else ""


def _servers(settings: Settings) -> set[tuple[object, ...]]:
    return {
        (key, member.guest, member.host)
        for service in settings.services
        for key in service.kernel_keys()
        for member in service.servers
    }
