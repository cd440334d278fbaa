"""What operators are told beyond the table: `why`, and the alarm of `status`."""

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address
from typing import Any
from uuid import UUID

from xenlb.control import answers
from xenlb.ipvs.table import Counters, Forwarding, ServerKey, Table
from xenlb.model.addresses import AddressCandidate, AddressSource, RejectedAddress
from xenlb.model.checks import Agent, Http
from xenlb.model.desired import desired
from xenlb.model.domain import DomainDescription, DomainState, GuestId
from xenlb.model.events import Configured, GuestsListed, ProbeFinished, Started
from xenlb.model.guest import Guest, Phase
from xenlb.model.membership import membership
from xenlb.model.reducer import reduce
from xenlb.model.settings import Check, Member, Port, ServiceSettings, Settings
from xenlb.model.state import Derived, State

MINE, OTHER = (GuestId(uri="xen:///system", uuid=UUID(int=number)) for number in (1, 2))


def test_every_address_that_is_not_used_is_refused_with_a_reason() -> None:
    found = tuple(
        AddressCandidate(address=ip_address(text), source=AddressSource.REPORTED)
        for text in ("10.0.0.11", "10.0.0.12", "10.0.0.5")
    )
    refused = RejectedAddress(
        text="192.0.2.10", source=AddressSource.REPORTED, reason="it is a service address"
    )
    owners = {found[0].address: MINE, found[1].address: OTHER, found[2].address: None}
    state = State(derived=Derived(owners=owners)).with_guests(
        Guest(id=MINE, name="mine", phase=Phase.UP, candidates=found, rejected=(refused,)),
        Guest(id=OTHER, name="other", phase=Phase.UP),
    )
    said = answers.guest(state, MINE, wall=str)
    source = "reported by the guest"
    assert said["addresses"] == [{"address": "10.0.0.11", "source": source}]
    assert said["refused_addresses"] == [
        {"address": "192.0.2.10", "source": source, "reason": "it is a service address"},
        {"address": "10.0.0.12", "source": source, "reason": "it belongs to guest other"},
        {"address": "10.0.0.5", "source": source, "reason": "it belongs to a configured host"},
    ]


def test_a_text_that_is_a_uuid_means_no_guest_of_that_name() -> None:
    """For commands, for entries of `servers` and for what is said of its inside."""
    named = Guest(id=OTHER, name=str(MINE.uuid), phase=Phase.UP)
    state = State().with_guests(Guest(id=MINE, name="mine", phase=Phase.UP), named)
    dashes = str(MINE.uuid)
    for text in (dashes, dashes.upper(), dashes.replace("-", "")):
        assert [guest.id for guest in answers.guests_named(state, text)] == [MINE]
        service = replace(SERVICE, servers=(Member(guest=text, weight=7),))
        assert membership(service, named) is None
        mine = membership(service, state.guests[MINE])
        assert mine is not None
        assert mine.weight == 7
    # Its own UUID means it, and a pattern may.
    assert [guest.id for guest in answers.guests_named(state, str(OTHER.uuid))] == [OTHER]
    everyone = replace(SERVICE, servers=(Member(guest="*"),))
    assert membership(everyone, named) is not None


HTTP = Check(type="http", asks=Http(), fall=1, flap_damping=0.0)
SERVICE = ServiceSettings(
    name="web",
    address=ip_address("192.0.2.10"),
    ports=(Port(number=80),),
    checks=(HTTP, Check(type="agent", asks=Agent(), port=9)),
    keep_in_service=0.5,
    servers=(Member(host=ip_address("10.0.0.11")), Member(host=ip_address("10.0.0.12"))),
)


def probed(state: State, at: float, address: str, *, up: bool, share: float | None = None) -> State:
    for target in state.remembered.health:
        if target.address == ip_address(address) and (up or target.check is HTTP):
            said = "status 200" if up else "expected status 200-399, got 503"
            event = ProbeFinished(at=at, target=target, started=at, up=up, detail=said, share=share)
            state = reduce(state, event).state
    return state


def whole(pieces: Iterable[dict[str, Any] | None]) -> list[dict[str, Any]]:
    return [piece for piece in pieces if piece is not None]


def shown(state: State, *, of: GuestId | None = None) -> dict[str, Any]:
    told = {"failures": {}, "now": 30.0, "wall": str}
    (service,) = whole(answers.services(state, Table(), {}, of=of, **told))  # type: ignore[arg-type]
    return service


def test_status_names_the_check_that_fails_and_says_what_is_kept_and_since_when() -> None:
    state = reduce(State(), Configured(at=1.0, settings=Settings(services=(SERVICE,)))).state
    for address in ("10.0.0.11", "10.0.0.12"):
        state = probed(state, 10.0, address, up=True, share=0.5)
    assert shown(state)["alarm"] is None
    for at, address in ((20.0, "10.0.0.11"), (21.0, "10.0.0.12")):
        state = probed(state, at, address, up=False)
    service = shown(state)
    assert service["alarm"] == (
        "2 of 2 servers fail, 1 of them is kept in service (keep-in-service: 50%)"
    )
    assert (service["alarm_kind"], service["alarm_since"]) == ("down", "21.0"), "none passes"
    first, second = service["servers"]
    assert (first["phase"], first["health"], first["since"]) == ("failed", "down", "20.0")
    assert first["reason"] == ("check http 10.0.0.11:80 fails: expected status 200-399, got 503")
    assert second["reason"].endswith("got 503; still in service only because of keep-in-service")
    assert "checks" not in first  # a long status is long enough


def test_why_lists_each_check_of_a_guest_s_servers() -> None:
    service = replace(SERVICE, servers=(Member(guest="mine", address=ip_address("10.0.0.11")),))
    settings = Settings(uris=(MINE.uri,), services=(service,))
    state = reduce(State(), Configured(at=1.0, settings=settings)).state
    started = Started(at=2.0, guest=MINE, name="mine", incarnation=1)
    state = reduce(state, started).state
    state = probed(state, 10.0, "10.0.0.11", up=True, share=0.25)
    state = probed(state, 20.0, "10.0.0.11", up=False)
    (server,) = shown(state, of=MINE)["servers"]
    http, agent = server["checks"]
    good, bad = "status 200", "expected status 200-399, got 503"
    assert http == {
        "check": "http 10.0.0.11:80",
        "type": "http",
        "health": "down",
        "since": "20.0",
        "detail": bad,
        "share": None,
        "failures": 1,
        "deadline": None,
        "changes": [
            {"at": "10.0", "health": "up", "detail": good},
            {"at": "20.0", "health": "down", "detail": bad},
        ],
    }
    assert (agent["check"], agent["health"], agent["share"]) == ("agent 10.0.0.11:9", "up", 0.25)
    assert shown(state, of=OTHER)["servers"] == []


def test_why_shows_what_counts_for_each_server() -> None:
    """A check that is new for the one, and fails where another service asks it already."""
    mine = (Member(guest="mine", address=ip_address("10.0.0.11")),)
    web = replace(SERVICE, checks=(HTTP,), servers=mine)
    relay = replace(web, name="relay", address=ip_address("192.0.2.11"))
    state = State()
    for at, checks in ((1.0, ()), (25.0, (HTTP,))):
        services = (web, replace(relay, checks=checks))
        settings = Settings(uris=(MINE.uri,), services=services)
        state = reduce(state, Configured(at=at, settings=settings)).state
        if not checks:
            started = Started(at=2.0, guest=MINE, name="mine", incarnation=1)
            state = reduce(state, started).state
            state = probed(state, 10.0, "10.0.0.11", up=True)
            state = probed(state, 20.0, "10.0.0.11", up=False)
    told = whole(answers.services(state, Table(), {}, failures={}, now=30.0, wall=str, of=MINE))
    said = {each["name"]: each["servers"][0] for each in told}
    assert [(it["health"], it["checks"][0]["health"]) for it in said.values()] == [
        ("down", "down"),
        ("unknown", "unknown"),
    ]
    assert said["relay"]["phase"] == "serving"


def test_a_sorry_server_at_work_is_shown_with_its_check() -> None:
    service = replace(SERVICE, sorry_server=(ip_address("10.0.0.99"), 0))
    state = reduce(State(), Configured(at=1.0, settings=Settings(services=(service,)))).state
    key, sorry = service.kernel_keys()[0], ServerKey(address=ip_address("10.0.0.99"), port=80)
    table = desired(state.settings.services, state, 2.0)
    counters = {key: {sorry: Counters(active_connections=4)}}
    told = {"failures": {}, "now": 30.0, "wall": str}

    def sorry_server() -> dict[str, Any]:
        (shown,) = whole(answers.services(state, table, counters, **told))  # type: ignore[arg-type]
        found: dict[str, Any] = shown["sorry_server"]
        return found

    at_work = {"address": "10.0.0.99", "port": 80, "in_table": True, "weight": 1}
    assert sorry_server() == {
        **at_work,
        "active_connections": 4,
        "health": "unknown",
        "detail": "",
    }
    state = probed(state, 5.0, "10.0.0.99", up=True)
    assert sorry_server()["health"] == "up"


def test_a_guest_that_no_libvirt_has_is_a_row() -> None:
    service = replace(SERVICE, servers=(Member(guest="mien"), Member(guest="none*", weight=3)))
    settings = Settings(uris=(MINE.uri,), services=(service,))
    state = reduce(State(), Configured(at=1.0, settings=settings)).state
    assert shown(state)["servers"] == [], "before the guests were listed nothing is known"
    off = DomainDescription(guest=MINE, name="mine", domain_state=DomainState.OFF)
    state = reduce(state, GuestsListed(at=2.0, requested_at=2.0, uri=MINE.uri, guests=(off,))).state
    told = [(it["guest"], it["phase"], it["reason"]) for it in shown(state)["servers"]]
    assert told == [
        ("mien", "absent", "no libvirt has a guest of this name; did you mean mine?"),
        ("none*", "absent", "no libvirt has a guest that matches"),
    ]


def test_servers_whose_inside_is_not_known_are_named() -> None:
    """With gatewaying a check of a server's own address passes without the service address."""
    gatewaying = replace(SERVICE, forwarding=Forwarding.GATEWAYING, checks=(HTTP,))
    for service, expected in (
        (gatewaying, ["10.0.0.11"]),
        (replace(gatewaying, checks=(replace(HTTP, via_vip=True),)), []),
        (replace(SERVICE, checks=(HTTP,)), []),
    ):
        state = reduce(State(), Configured(at=1.0, settings=Settings(services=(service,)))).state
        target = next(t for t in state.remembered.health if t.address == ip_address("10.0.0.11"))
        event = ProbeFinished(at=2.0, target=target, started=2.0, up=True, detail="status 200")
        assert shown(reduce(state, event).state)["unverified"] == expected
