"""How a configuration that was loaded, or refused, changes what is known."""

from dataclasses import replace

from xenlb.model import change_summary
from xenlb.model.events import ConfigurationRefused, Configured
from xenlb.model.note import Note, NoteKind
from xenlb.model.state import Change, LibvirtLink, State, Transition, nothing_follows


def configured(state: State, event: Configured) -> Change:
    at, settings = event.at, event.settings
    links = {uri: state.observed.links.get(uri, LibvirtLink(since=at)) for uri in settings.uris}
    if not all(link.listed for link in links.values()):
        links = {**state.observed.links, **links}  # until those that replace them are there
    # Without a service that has guests there is no libvirt, for now: a drain is kept.
    guests = {
        key: guest for key, guest in state.guests.items() if key.uri in links or not settings.uris
    }
    observed = replace(
        state.observed, settings=settings, problems=(), configured_at=at, links=links
    )
    remembered = replace(state.remembered, guests=guests)
    return Change(state=replace(state, observed=observed, remembered=remembered), services=None)


def summarized(before: State, event: Configured, result: Transition) -> Transition:
    """Note what the configuration has changed, with the connections that it cuts."""
    summary, cuts = change_summary.of_configuration(before, result.state, event.at, event.counters)
    note = Note(
        at=event.at,
        kind=NoteKind.CONFIGURATION,
        text=f"configuration loaded: {summary}",
        warning=cuts,
    )
    observed = replace(result.state.observed, changes=summary)
    state = replace(result.state, observed=observed)
    return replace(result, state=state, notes=(note, *result.notes))


def refused(state: State, event: ConfigurationRefused) -> Change:
    """The last good one goes on."""
    text = f"configuration refused, the last good one goes on: {event.problems[0]}"
    if len(event.problems) > 1:
        text += f" (and {len(event.problems) - 1} more)"
    note = Note(at=event.at, kind=NoteKind.CONFIGURATION, text=text, warning=True)
    observed = replace(state.observed, problems=event.problems)
    return nothing_follows(replace(state, observed=observed), note)
