"""The agent's configuration: which one is in use, and which one is next.

An invalid configuration is refused, and the one in use stays; at start, the agent uses the last
good one from the disk. A reload is also refused where it needs something that this host lacks, such
as an interface with a misspelt name. At start that is a warning: there is nothing to lose, and the
interface may appear later.

A file that has just changed may be half written. If it would remove a service, or more servers than
it leaves, it is used only if it has not changed again a few seconds later. `xenlb reload` uses it
at once.
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

CALM = 5.0  # seconds without a change before a file that removes much is used


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstConfiguration:
    """The configuration at the start of the agent.

    `problems`: those of the file, if the last good one is used in its place. `since`: then, when
    that one was first in use.
    """

    loaded: LoadedConfig
    problems: tuple[Problem, ...] = ()
    since: str = ""


def first_configuration(file: Path, last_good_copy: Path) -> FirstConfiguration:
    """The configuration, or the last good one. Raises ConfigError if neither can be used."""
    try:
        return FirstConfiguration(loaded=config.load_config(file))
    except ConfigError as error:
        refused = error
    try:
        known = last_good.read_last_good(last_good_copy, of=file)
        if known is None:
            raise refused
        loaded = config.load_bytes(known.data, str(file))
    except last_good.LastGoodError as error:
        log.warning("the last good configuration (%s) cannot be used: %s", last_good_copy, error)
        raise refused from None
    except ConfigError:  # it was valid for another version of xenlb
        raise refused from None
    log.warning(
        "%s has %d problem%s, the first: %s; the last good configuration, in use since %s (sha256"
        " %.12s), is used until the file is right",
        file,
        len(refused.problems),
        "s" * (len(refused.problems) != 1),
        refused.problems[0],
        known.since,
        last_good.checksum_of(known.data),
    )
    return FirstConfiguration(loaded=loaded, problems=refused.problems, since=known.since)


class ConfigurationFile:
    """The file, and what of it is in use. `last_good_copy` None: no copy is kept.

    `last_good_since`: since when the last good configuration is in use in place of the file, as ISO
    8601; "" while it is not."""

    def __init__(
        self,
        file: Path,
        last_good_copy: Path | None = None,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.file = file
        self._copy = last_good_copy
        self._sleep = sleep
        self.in_use: LoadedConfig | None = None
        self.last_good_since = ""
        self._reported = ""

    async def use(self, loaded: LoadedConfig, *, since: str = "") -> None:
        """Note that a configuration is in use, and keep a copy.

        `since`: if it is the last good one, when that was first in use; no copy is made of it.
        """
        self.in_use, self.last_good_since = loaded, since
        if self._copy is None or since:
            return
        now = clock.wall(clock.now())
        try:
            await asyncio.to_thread(
                last_good.write_last_good, self._copy, loaded.data, of=self.file, since=now
            )
            self._reported = ""
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            if reason != self._reported:
                log.warning(
                    "the last good configuration cannot be kept: %s: %s", self._copy, reason
                )
            self._reported = reason

    async def read(self) -> LoadedConfig:
        """Read the file. Raises ConfigError if it is invalid, or needs what this host lacks."""
        known = frozenset() if self.in_use is None else self.in_use.requirements
        loaded = await asyncio.to_thread(config.load_config, self.file)
        lacks = await asyncio.to_thread(loaded.missing_requirements, except_for=known)
        if lacks:
            raise ConfigError(lacks)
        return loaded

    async def read_calmly(self) -> LoadedConfig:
        """Read the file after a change; where much would be removed, wait for the end of changes.

        Raises ConfigError as `read` does.
        """
        loaded = await self.read()
        while self.in_use is not None and (
            removed := removals(self.in_use.settings, loaded.settings)
        ):
            log.warning(
                "%s has changed and would remove %s: it is used if it does not change for %g s"
                " (xenlb reload uses it now)",
                self.file,
                removed,
                CALM,
            )
            await self._sleep(CALM)
            again = await self.read()
            if again.data == loaded.data:
                break
            loaded = again
        return loaded

    def lacking(self) -> tuple[Problem, ...]:
        """Return what the checks in use need and this host lacks now.

        The interface is excluded: the task for the service addresses watches it.
        """
        if self.in_use is None:
            return ()
        interfaces = {
            need for need in self.in_use.requirements if need.kind is RequirementKind.INTERFACE
        }
        return self.in_use.missing_requirements(except_for=interfaces)


def removals(before: Settings, after: Settings) -> str:
    """What a reload would remove, if that is a service, or more servers than it leaves; else ""."""
    left = {key for service in after.services for key in service.kernel_keys()}
    services = [
        service.name for service in before.services if not left.issuperset(service.kernel_keys())
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
