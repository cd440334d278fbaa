"""How a configuration that was loaded, or refused, changes what is known."""

from dataclasses import replace

from xenlb.model import change_summary
from xenlb.model.admission import recompute
from xenlb.model.events import ConfigurationRefused, Configured
from xenlb.model.state import LibvirtLink, Note, State, Transition


def configured(state: State, event: Configured) -> Transition:
    at, settings = event.at, event.settings
    links = {uri: state.links.get(uri, LibvirtLink(since=at)) for uri in settings.uris}
    if not all(link.listed for link in links.values()):
        links = {**state.links, **links}  # until those that replace them are there
    # Without a service that has guests there is no libvirt, for now: a drain is kept.
    guests = {
        key: guest for key, guest in state.guests.items() if key.uri in links or not settings.uris
    }
    known = replace(
        state, settings=settings, problems=(), configured_at=at, links=links, guests=guests
    )
    result = recompute(state, known, None, at)
    said, cuts = change_summary.of_configuration(state, result.state, at, event.counters)
    note = Note(at=at, text=f"configuration loaded: {said}", warning=cuts)
    after = replace(result.state, changes=said)
    return replace(result, state=after, notes=(note, *result.notes))


def refused(state: State, event: ConfigurationRefused) -> Transition:
    """The last good one goes on."""
    text = f"configuration refused, the last good one goes on: {event.problems[0]}"
    if len(event.problems) > 1:
        text += f" (and {len(event.problems) - 1} more)"
    note = Note(at=event.at, text=text, warning=True)
    return Transition(state=replace(state, problems=event.problems), notes=(note,))
