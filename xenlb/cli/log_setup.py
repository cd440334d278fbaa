"""Set-up of logging: with priorities for the journal, with times for other readers."""

import logging
import os
import sys
from collections.abc import Mapping
from typing import TextIO

# Levels as syslog priorities; sd-daemon(3) reads them from the start of a line.
PRIORITIES = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
    (0, 7),
)


class JournalFormatter(logging.Formatter):
    """Formatter of `<6>mail1: weight 2`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the message, with its priority on every line: the journal reads single lines."""
        priority = next(p for level, p in PRIORITIES if record.levelno >= level)
        lines = super().format(record).splitlines() or [""]
        return "\n".join(f"<{priority}>{line}" for line in lines)


def to_journal(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Tell whether a stream goes to the journal: systemd names its device and inode."""
    device, _, inode = environment.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return (device, inode) == (str(status.st_dev), str(status.st_ino))


def set_up(*, verbose: int, level: int = logging.INFO) -> None:
    """Log to stderr from `level` on; with --verbose all of xenlb, twice also libraries."""
    handler = logging.StreamHandler(sys.stderr)
    if to_journal(sys.stderr, os.environ):
        handler.setFormatter(
            JournalFormatter("%(name)s: %(message)s" if verbose else "%(message)s")
        )
    else:
        layout = "%(asctime)s.%(msecs)03d %(levelname)s %(name)s: %(message)s"
        handler.setFormatter(logging.Formatter(layout, datefmt="%H:%M:%S"))
    logging.captureWarnings(capture=True)
    logging.basicConfig(
        handlers=[handler], level=logging.DEBUG if verbose > 1 else level, force=True
    )
    if verbose:
        logging.getLogger("xenlb").setLevel(logging.DEBUG)
    if verbose < 2:
        # watchdog 7.1 logs an error when a watch ends while an event arrives. No event is lost: the
        # watchers of files also poll them every few seconds.
        logging.getLogger("watchdog").setLevel(logging.CRITICAL)
