"""Plays scenarios: events in, ipvsadm lines out.

The player drives the agent's engine with the strict fake kernel, whose table starts empty. Errors
that the agent would not notice fail here: a transition that omits a service, a deadline that passes
without a tick.
"""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from difflib import ndiff
from ipaddress import ip_address
from pathlib import Path
from textwrap import dedent
from uuid import UUID

from tests.fakes.kernel import FakeKernel
from xenlb import config
from xenlb.ipvs.op import Op
from xenlb.ipvs.table import Counters, IPAddress, ServerKey, ServiceKey
from xenlb.model import alarm
from xenlb.model.addresses import AddressCandidate, AddressSource, RejectedAddress
from xenlb.model.desired import desired, server_status
from xenlb.model.domain import (
    DomainDescription,
    DomainState,
    GuestId,
    MetadataService,
    RequestKind,
    StopReason,
)
from xenlb.model.engine import Engine, Outcome
from xenlb.model.events import (
    AddressesFound,
    Configured,
    ConnectionsCounted,
    Crashed,
    Died,
    Disconnected,
    DrainAllRequested,
    DrainRequested,
    Event,
    GuestInspected,
    GuestsListed,
    MetadataChanged,
    Paused,
    ProbeFinished,
    Rebooted,
    RequestSent,
    Resumed,
    ShutdownCancelled,
    ShutdownRequested,
    Started,
    Stopped,
    SysctlsChecked,
    Tick,
    Undefined,
    UndrainRequested,
    Verdict,
)
from xenlb.model.note import Note
from xenlb.model.reserved_addresses import HostNetwork, HostNetworkChanged
from xenlb.model.settings import ServiceSettings, needed_uris
from xenlb.model.state import State
from xenlb.store import state_file
from xenlb.store.saved_state import SavedState

SOURCES = {
    "interface": AddressSource.INTERFACE_XML,
    "lease": AddressSource.LEASE,
    "reported": AddressSource.REPORTED,
    "neighbour": AddressSource.NEIGHBOUR,
}
BEGIN = 1000.0  # the clock of boot time is not 0 when an agent starts


class ScriptError(AssertionError):
    """The result differs from the scenario; the message names the line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """An event and the lines expected after it; `block` is the indented text below it."""

    number: int
    text: str
    wait: float
    words: tuple[str, ...]
    block: str
    expected: tuple[str, ...]


def parse(text: str) -> Iterator[Line]:
    """Yield the event lines of a scenario."""
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        number, raw = at + 1, lines[at]
        at += 1
        if not raw.strip() or raw.startswith("#"):
            continue
        if raw.startswith((" ", ">")):
            raise ScriptError(f"line {number}: belongs to no event: {raw}")
        block, expected = [], []
        while at < len(lines) and not (lines[at] and lines[at][0] not in " >#"):
            if lines[at].startswith(">"):
                expected.append(lines[at][1:].strip())
            elif lines[at].startswith(" ") or (not lines[at] and not expected):
                block.append(lines[at])
            at += 1
        words = shlex.split(raw)
        wait = float(words.pop(0)) if words[0].startswith("+") else 0.0
        yield Line(
            number=number,
            text=raw,
            wait=wait,
            words=tuple(words),
            block=dedent("\n".join(block)),
            expected=tuple(expected),
        )


@dataclass(slots=True)
class Player:
    """A played scenario. `folder` has the state file of a restarted agent."""

    folder: Path
    now: float = BEGIN
    kernel: FakeKernel = field(default_factory=FakeKernel)
    engine: Engine = field(default_factory=lambda: Engine(state=State(), now=BEGIN))
    config: str = ""
    guests: dict[str, GuestId] = field(default_factory=dict)
    metadata: dict[GuestId, tuple[MetadataService, ...]] = field(default_factory=dict)

    @property
    def state(self) -> State:
        return self.engine.state

    def __post_init__(self) -> None:
        self.engine.load_snapshot(self.kernel.read())

    def play(self, text: str) -> None:
        for line in parse(text):
            try:
                self._line(line)
            except ScriptError as error:
                raise ScriptError(f"line {line.number}: {line.text}\n{error}") from None
            except (KeyError, ValueError, IndexError, StopIteration) as error:
                raise ScriptError(
                    f"line {line.number}: {line.text}\ncannot be read: {error!r}"
                ) from error

    def _line(self, line: Line) -> None:
        verb, *words = line.words
        now = round(self.now + line.wait, 6)
        due = self.engine.next_deadline
        if due is not None and (due < now or (due == now and verb != "tick")):
            raise ScriptError(f"a tick is due before this, at +{due - self.now:g}")
        self.now = now
        done: list[Op] = []
        notes: list[Note] = []
        if verb == "read":
            self._count(words)
            done += self._read(counters=True)
        else:
            for event in self._events(verb, words, line.block):
                outcome = self.engine.handle([event], now)
                notes += outcome.notes
                done += self._apply(outcome)
        self._check_transition()
        self._compare(line, [f"ipvsadm {op}" for op in done], notes)

    def _count(self, words: list[str]) -> None:
        """`ADDRESS …`: servers with connections. The others have none."""
        for key, entry in self.kernel.read().table.entries.items():
            for server in entry.servers:
                connections = int(str(server.address) in words)
                self.kernel.count(key, server, Counters(active_connections=connections))

    def _apply(self, outcome: Outcome) -> list[Op]:
        """Do as the agent: apply the operations, and read the table if that is due."""
        failed = self.kernel.apply(outcome.ops)
        if failed:
            raise ScriptError(f"the kernel refuses {failed}")
        done = list(self.engine.executed(outcome, failed, self.now).done)
        return done + self._read(counters=False) if outcome.stale else done

    def _read(self, *, counters: bool) -> list[Op]:
        self.engine.begin_read()
        self.engine.load_snapshot(self.kernel.read(counters=counters))
        return self._apply(self.engine.handle((), self.now))

    def _check_transition(self) -> None:
        """Plan all services: those that the transition did not name must need no operation."""
        want = desired(self.state.settings.services, self.state, self.now)
        left = self.engine.reconciler.plan(want, whole=True, removable=self.state.listed)
        if left:
            raise ScriptError(f"the transition omits a service: {[str(op) for op in left]} is left")

    def _compare(self, line: Line, done: Sequence[str], notes: Sequence[Note]) -> None:
        expected: list[str] = []
        actual = list(done)
        for text in line.expected:
            verb, _, rest = text.partition(" ")
            expected.append(text)
            match verb:
                case "ipvsadm":
                    pass
                case "status":
                    actual += self._status(rest)
                case "alarm":
                    actual += self._alarms(rest.partition(" ")[0])
                case "note" | "warning":
                    texts = [self._note(note) for note in notes]
                    actual += [text] if text in texts else texts
                case _:
                    raise ScriptError(f"nothing is expected with {verb!r}")
        if sorted(expected) != sorted(actual) or _ops(expected) != _ops(actual):
            lines = "\n".join(ndiff(expected, actual))
            raise ScriptError(f"- expected but missing, + not expected\n{lines}")

    def _status(self, expected: str) -> list[str]:
        """Return the status lines of a server, with a reason if the expected line has one.

        `NAME PHASE WEIGHT [REASON]`; `NAME[SERVICE]` in one service; `NAME -`: no server.
        """
        subject, *words = expected.split(" ")
        name, _, service_name = subject.rstrip("]").partition("[")
        lines = set()
        for service in self.state.settings.services:
            if service_name not in {"", service.name}:
                continue
            for candidate in self.state.derived.candidates[service.name]:
                if candidate.owner is None:
                    server = candidate.server
                    matches = server is not None and str(server.key.address) == name
                else:
                    matches = candidate.owner == self.guests.get(name)
                if not matches:
                    continue
                status = server_status(candidate, service, self.state, self.now)
                weight = "-" if status.weight is None else str(status.weight)
                reason = f" {status.reason}" if len(words) > 2 else ""
                lines.add(f"status {subject} {status.phase} {weight}{reason}")
        return sorted(lines) or [f"status {subject} -"]

    def _alarms(self, name: str) -> list[str]:
        """Return `NAME TEXT` of a service's alarms, without the time; `NAME -`: none."""
        service = self._service(name)
        keys = [key for key in service.kernel_keys() if key in self.state.remembered.alarms]
        texts = [alarm.alarm_text(self.state, service, key, self.now) for key in keys]
        return [f"alarm {name} {text}" for text in texts or ["-"]]

    def _service(self, name: str) -> ServiceSettings:
        (service,) = (s for s in self.state.settings.services if s.name == name)
        return service

    def _note(self, note: Note) -> str:
        names = {guest: name for name, guest in self.guests.items()}
        subject = "" if note.guest is None else f"{names[note.guest]}: "
        return f"{'warning' if note.warning else 'note'} {subject}{note.text}"

    # --- the events ------------------------------------------------------------------------------

    def _events(self, verb: str, words: list[str], block: str) -> list[Event]:
        at = self.now
        match verb:
            case "tick":
                return [Tick(at=at)]
            case "configured" | "restart":
                if verb == "restart":
                    self._restart()
                else:
                    own = "" if "director:" in block else "director: {addresses: leave}\n"
                    self.config = own + block
                settings = config.parse(self.config, "xenlb.yaml")
                settings = replace(settings, uris=needed_uris(settings))
                return [Configured(at=at, settings=settings)]
            case "listed":
                return [self._listed(words)]
            case "disconnected":
                return [Disconnected(at=at, uri=words[0], reason=" ".join(words[1:]))]
            case "probe":
                return self._probed(words)
            case "sysctls":
                return [SysctlsChecked(at=at, wrong=frozenset(words))]
            case "drain-all":
                by = words[0].removeprefix("by=")
                return [DrainAllRequested(at=at, by=by, rest=words[1:] == ["rest"])]
            case "count":
                return [self._counted(words)]
            case "host":
                return [HostNetworkChanged(at=at, host=_host(words))]
        guest = self._guest(words.pop(0))
        options = dict(word.split("=", 1) for word in words if "=" in word)
        flags = [word for word in words if "=" not in word]
        number = options.pop("id", None)
        incarnation = None if number is None else int(number)
        life: dict[str, type[Died | Crashed | Paused | Resumed | Rebooted]] = {
            "died": Died,
            "crashed": Crashed,
            "paused": Paused,
            "resumed": Resumed,
            "rebooted": Rebooted,
        }
        match verb:
            case _ if verb in life and not flags and not options:
                return [life[verb](at=at, guest=guest, incarnation=incarnation)]
            case "started" if incarnation is not None and not options:
                return [
                    Started(
                        at=at,
                        guest=guest,
                        name=self._name(guest),
                        incarnation=incarnation,
                        paused=flags == ["paused"],
                        metadata=self.metadata.get(guest, ()),
                    )
                ]
            case "stays" if not options and not flags:
                return [ShutdownCancelled(at=at, guest=guest, incarnation=incarnation)]
            case "asked" if not options:
                return [
                    ShutdownRequested(
                        at=at, guest=guest, incarnation=incarnation, kind=RequestKind(*flags)
                    )
                ]
            case "stopped" if not options:
                reason = StopReason(" ".join(flags))
                return [Stopped(at=at, guest=guest, incarnation=incarnation, reason=reason)]
            case "undefined" if not options and not flags:
                return [Undefined(at=at, guest=guest)]
            case "metadata" if not options:
                self.metadata[guest] = tuple(_joins(word) for word in flags)
                return [MetadataChanged(at=at, guest=guest, services=self.metadata[guest])]
            case "address" | "refused":
                if incarnation is None:
                    incarnation = self.state.guests[guest].incarnation
                candidates, rejected = _addresses(words, refused=verb == "refused")
                return [
                    AddressesFound(
                        at=at,
                        guest=guest,
                        incarnation=incarnation,
                        candidates=candidates,
                        rejected=rejected,
                    )
                ]
            case "drain" if not flags:
                timeout = float(options["timeout"]) if "timeout" in options else None
                then = RequestKind(options["then"]) if "then" in options else None
                drain = DrainRequested(
                    at=at, guest=guest, by=options["by"], timeout=timeout, then=then
                )
                return [drain]
            case "sent" if not options:
                kind, *failure = flags
                sent = RequestSent(
                    at=at, guest=guest, kind=RequestKind(kind), failure=" ".join(failure)
                )
                return [sent]
            case "side" if not options:
                name, *problem = flags
                return [self._side(guest, name, " ".join(problem))]
            case "undrain" if not flags:
                return [UndrainRequested(at=at, guest=guest, by=options["by"])]
        raise ValueError(f"{verb} {words}")

    def _side(self, guest: GuestId, name: str, problem: str) -> GuestInspected:
        """Return a new verdict for one service; those of the others stay."""
        known = self.state.guests[guest]
        others = tuple(v for v in known.readiness if v.service.name != name)
        return GuestInspected(
            at=self.now,
            guest=guest,
            incarnation=known.incarnation,
            verdicts=(*others, Verdict(service=self._service(name), problem=problem)),
        )

    def _guest(self, name: str) -> GuestId:
        """`mail1`, or `mail1@URI` where it is not of the first libvirt; same name, same UUID."""
        if name not in self.guests:
            plain, _, uri = name.partition("@")
            uuids = {self._name(guest): guest.uuid for guest in self.guests.values()}
            uuid = uuids.get(plain, UUID(int=len(uuids) + 1))
            self.guests[name] = GuestId(
                uri=uri or next(iter(self.state.observed.links), ""), uuid=uuid
            )
        return self.guests[name]

    def _name(self, guest: GuestId) -> str:
        known = next(name for name, other in self.guests.items() if other == guest)
        return known.partition("@")[0]

    def _listed(self, words: list[str]) -> GuestsListed:
        """`URI [asked=SECONDS-AGO] GUEST=off|running/ID|paused/ID|crashed/ID …`"""
        uri = words.pop(0)
        asked = self.now
        guests = []
        for word in words:
            name, _, value = word.rpartition("=")
            if name == "asked":
                asked -= float(value)
                continue
            guest = self._guest(name)
            domain_state, _, number = value.partition("/")
            guests.append(
                DomainDescription(
                    guest=guest,
                    name=self._name(guest),
                    domain_state=DomainState(domain_state),
                    incarnation=int(number) if number else None,
                    metadata=self.metadata.get(guest, ()),
                )
            )
        return GuestsListed(at=self.now, uri=uri, requested_at=asked, guests=tuple(guests))

    def _counted(self, words: list[str]) -> ConnectionsCounted:
        """`GUEST=ACTIVE[/INACTIVE] …`: the connections of each of its servers in the table."""
        counters: dict[ServiceKey, dict[ServerKey, Counters]] = {}
        for word in words:
            name, _, value = word.partition("=")
            active, _, inactive = value.partition("/")
            count = Counters(
                active_connections=int(active), inactive_connections=int(inactive or 0)
            )
            for server in self.state.remembered.admitted:
                own = server.owner == self._guest(name)
                if own and self.engine.table.server(server.service, server.key) is not None:
                    counters.setdefault(server.service, {})[server.key] = count
        return ConnectionsCounted(at=self.now, counters=counters)

    def _probed(self, words: list[str]) -> list[Event]:
        """`GUEST|ADDRESS up|down [port=PORT] [type=TYPE] [share=N%] [asked=SECONDS-AGO]`

        Without port and type of all its checks.
        """
        name, result, *rest = words
        options = dict(word.split("=") for word in rest)
        started = self.now - float(options.pop("asked", 0))
        port, kind = options.pop("port", ""), options.pop("type", "")
        share = options.pop("share", "")
        targets = sorted(
            (
                target
                for target in self.state.remembered.health
                if name in self._owner_names(target.address, str(target.address))
                and port in {"", str(target.port)}
                and kind in {"", target.check.type}
            ),
            key=str,
        )
        if not targets or result not in {"up", "down"}:
            raise ScriptError(
                f"{name} is not probed, only {sorted(map(str, self.state.remembered.health))}"
            )
        return [
            ProbeFinished(
                at=self.now,
                target=target,
                started=started,
                up=result == "up",
                detail="connected" if result == "up" else "connection refused",
                share=float(share.removesuffix("%")) / 100 if share else None,
            )
            for target in targets
        ]

    def _owner_names(self, address: IPAddress, text: str) -> set[str]:
        owner = self.state.derived.owners.get(address)
        return {text} | {name for name, guest in self.guests.items() if guest == owner}

    def _restart(self) -> None:
        """kill -9 and a start: only the state file and the table stay."""
        path = self.folder / "state.json"
        reconciler = self.engine.reconciler
        state_file.save(
            path,
            SavedState(
                remembered=self.state.remembered,
                services=frozenset(reconciler.services),
                servers=dict(reconciler.servers),
            ),
        )
        saved = state_file.load(path)
        self.engine = Engine(
            state=State(remembered=saved.remembered),
            now=self.now,
            services=saved.services,
            servers=saved.servers,
        )
        self.engine.load_snapshot(self.kernel.read(counters=False))


def _ops(lines: Sequence[str]) -> list[str]:
    """Return the operations, whose order matters; that of the others does not."""
    return [line for line in lines if line.startswith("ipvsadm")]


def _joins(word: str) -> MetadataService:
    """`SERVICE[:WEIGHT][@ADDRESS]`"""
    rest, _, address = word.partition("@")
    name, _, weight = rest.partition(":")
    return MetadataService(
        name=name,
        weight=int(weight) if weight else None,
        address=ip_address(address) if address else None,
    )


def _host(words: Sequence[str]) -> HostNetwork:
    """`own=ADDRESS,… gateway=ADDRESS,… stranger=ADDRESS,…`"""
    given = {name: addresses.split(",") for name, addresses in (w.split("=") for w in words)}
    own, gateways, strangers = (
        frozenset(map(ip_address, given.pop(name, ()))) for name in ("own", "gateway", "stranger")
    )
    if given:
        raise ValueError(f"host {given}")
    return HostNetwork(own=own, gateways=gateways, strangers=strangers)


def _addresses(
    words: Sequence[str], *, refused: bool
) -> tuple[tuple[AddressCandidate, ...], tuple[RejectedAddress, ...]]:
    """`SOURCE=ADDRESS …`; a refused one with its reason."""
    pairs = [word.split("=", 1) for word in words if "=" in word and not word.startswith("id=")]
    if not refused:
        return tuple(
            AddressCandidate(address=ip_address(a), source=SOURCES[s]) for s, a in pairs
        ), ()
    ((source, text),) = pairs
    reason = " ".join(word for word in words if "=" not in word)
    return (), (RejectedAddress(text=text, source=SOURCES[source], reason=reason),)
