"""What `check` says of a valid configuration: consequences that its author may not expect.

Problems, which make a configuration invalid, are the work of rules.py.
"""

from collections.abc import Iterator

from xenlb.model.desired import STAND_IN
from xenlb.model.settings import ServiceSettings, Settings


def notes(settings: Settings) -> tuple[str, ...]:
    """One sentence each, in the order of the services."""
    return tuple(note for service in settings.services for note in _of(service))


def _of(service: ServiceSettings) -> Iterator[str]:
    stand_in = STAND_IN.get(service.scheduler)
    if stand_in is not None:
        yield (
            f"service {service.name}: scheduler {service.scheduler} refuses the clients of a server"
            f" with weight 0, so {stand_in} schedules while there is one (during a drain, for"
            " example)"
        )
