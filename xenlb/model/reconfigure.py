"""The effect of a configuration that was loaded or refused."""

from dataclasses import replace

from xenlb.model import change_summary
from xenlb.model.events import ConfigurationRefused, Configured
from xenlb.model.note import Note, NoteKind
from xenlb.model.state import Change, LibvirtLink, State, Transition, nothing_follows


def configured(state: State, event: Configured) -> Change:
    """Apply a configuration; guests of former libvirts stay until all new ones are listed."""
    at, settings = event.at, event.settings
    links = {uri: state.observed.links.get(uri, LibvirtLink(since=at)) for uri in settings.uris}
    if not all(link.listed for link in links.values()):
        links = {**state.observed.links, **links}  # until the new ones are listed
    # Without a service for guests no libvirt is connected; drains are kept until there is one.
    guests = {
        key: guest for key, guest in state.guests.items() if key.uri in links or not settings.uris
    }
    observed = replace(
        state.observed, settings=settings, problems=(), configured_at=at, links=links
    )
    remembered = replace(state.remembered, guests=guests)
    return Change(state=replace(state, observed=observed, remembered=remembered), services=None)


def summarized(before: State, event: Configured, result: Transition) -> Transition:
    """Note the changes of a configuration, with the connections that it cuts."""
    summary, cuts = change_summary.summarize_configuration(
        before, result.state, event.at, event.counters
    )
    text = f"configuration loaded: {summary}"
    note = Note(event.at, NoteKind.CONFIGURATION, text, warning=cuts)
    observed = replace(result.state.observed, changes=summary)
    state = replace(result.state, observed=observed)
    return replace(result, state=state, notes=(note, *result.notes))


def refused(state: State, event: ConfigurationRefused) -> Change:
    """Record the problems of a refused configuration; the settings in use stay."""
    text = f"configuration refused, the last good one stays in use: {event.problems[0]}"
    if len(event.problems) > 1:
        text += f" (and {len(event.problems) - 1} more)"
    note = Note(event.at, NoteKind.CONFIGURATION, text, warning=True)
    observed = replace(state.observed, problems=event.problems)
    return nothing_follows(replace(state, observed=observed), note)
