"""Guests are let in when their inside is in place: the agent's part of it. A guest that configures
itself stands for all; ways into others are in tests/unit/guestside and the labs."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import cast

import pytest

from tests.fakes.kernel import FakeKernel
from tests.unit.agent.test_loop import (
    SERVICE,
    SETTINGS,
    XEN,
    Desk,
    agent_at_work,
    guest,
    listed,
    until,
)
from xenlb import clock
from xenlb.agent import provision, provisioner
from xenlb.agent.provisioner import Provisioner
from xenlb.guestside import lock, self_config
from xenlb.guestside.target import GuestTarget
from xenlb.guestside.transport import open
from xenlb.guestside.transport.identity import Identity
from xenlb.hypervisor.xenstore import guest_settings
from xenlb.hypervisor.xenstore.source import XenstoreSource
from xenlb.ipvs.table import Forwarding
from xenlb.model.domain import GuestId
from xenlb.model.events import Started, Verdict
from xenlb.model.guest_side import Delivery, GuestSide, OnBoot
from xenlb.model.provision_requests import ProvisionRequest
from xenlb.model.settings import Member, ServiceSettings, Settings


class FakeXenstore:
    """Takes what is offered; guests answer when the test says so."""

    def __init__(self) -> None:
        self.texts: dict[int, str] = {}
        self.answers: dict[int, str] = {}

    async def write_settings(self, domid: int, text: str) -> str:
        self.texts[domid] = text
        return guest_settings.settings_serial(text)

    async def wait_for_answer(self, domid: int, serial: str) -> str:
        while True:
            said, _, word = self.answers.get(domid, "").partition(" ")
            if said == serial:
                return word
            await asyncio.sleep(0.005)

    def say(self, domid: int, word: str) -> None:
        self.answers[domid] = f"{guest_settings.settings_serial(self.texts[domid])} {word}"


SELF_MADE = GuestSide(delivery=Delivery.XENSTORE, on_boot=OnBoot.APPLY)


def service(side: GuestSide = SELF_MADE) -> ServiceSettings:
    return replace(SERVICE, forwarding=Forwarding.GATEWAYING, side=side)


def with_service(it: ServiceSettings) -> Settings:
    return replace(SETTINGS, services=(it,))


class Bench:
    """`desk`, `inside` and `xenstore` while a story is played."""

    desk: Desk
    inside: Provisioner
    xenstore: FakeXenstore

    def play(
        self, folder: Path, it: ServiceSettings, story: Callable[["Bench"], Awaitable[None]]
    ) -> None:
        async def main() -> None:
            self.xenstore = FakeXenstore()
            async with agent_at_work(folder, FakeKernel(), with_service(it)) as self.desk:
                self.inside = Provisioner(
                    self.desk.agent.emit,
                    clock.now,
                    {XEN: cast(XenstoreSource, self.xenstore)},
                    templates=folder / "templates",
                    socket=self.desk.agent.socket,
                )
                self.desk.agent.on_state_change = self.inside.on_state_change
                task = asyncio.create_task(self.inside.run())
                try:
                    await story(self)
                finally:
                    task.cancel()
                    with suppress(asyncio.CancelledError):
                        await task

        asyncio.run(main())

    def reason(self) -> str:
        return "; ".join(each.problem for each in self.desk.agent.state.guests[guest(1)].readiness)


async def identity_of(where: GuestTarget) -> Identity:
    return Identity(uuid=where.uuid)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provisioner, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(provisioner, "BOOTING", 0.0)
    monkeypatch.setattr(self_config, "ANSWER", 0.1)
    monkeypatch.setattr(open, "identity_of", identity_of)  # there is no libvirt


def test_weight_comes_with_the_guests_answer(tmp_path: Path, quick: None) -> None:
    async def story(bench: Bench) -> None:
        await bench.desk.say(listed(mail1=5))
        await bench.desk.pass_checks()
        await until(lambda: 5 in bench.xenstore.texts)
        assert "10.0.0.11" not in bench.desk.weights()
        text = bench.xenstore.texts[5]
        assert text.startswith("xenlb 1\n")
        assert "address 192.0.2.10 lo\n" in text
        assert "hold tell=xenstore\n" in text
        await until(lambda: "has not confirmed" in bench.reason())
        bench.xenstore.say(5, "failed")
        await until(lambda: "could not apply all" in bench.reason())
        assert "10.0.0.11" not in bench.desk.weights()
        bench.xenstore.say(5, "ok")
        await until(lambda: "10.0.0.11" in bench.desk.weights())
        assert bench.desk.weights()["10.0.0.11"] == 1
        assert "\nready for mail\n" in bench.desk.told()

    Bench().play(tmp_path, service(), story)


@pytest.mark.parametrize("by_ssh", [False, True])
def test_it_comes_after_an_operator_who_is_at_work(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch, by_ssh: bool
) -> None:
    monkeypatch.setattr(provision, "PATIENCE", 0.05)

    async def story(bench: Bench) -> None:
        folder = lock.lock_folder(bench.desk.agent.socket)
        async with lock.guest_lock(folder, guest(1).uuid, name="mail1", patience=0):
            await bench.desk.say(listed(mail1=5))
            await bench.desk.pass_checks()
            await until(lambda: "mail1 is locked by xenlb" in bench.reason())
            assert bench.xenstore.texts == {}
        if by_ssh:
            await until(lambda: "ssh to nobody@ssh.invalid" in bench.reason())
            return
        await until(lambda: 5 in bench.xenstore.texts)
        bench.xenstore.say(5, "ok")
        await until(lambda: "10.0.0.11" in bench.desk.weights())

    side = replace(SELF_MADE, delivery=Delivery.SSH, ssh="nobody@ssh.invalid")
    Bench().play(tmp_path, service(side if by_ssh else SELF_MADE), story)


def test_a_service_address_that_is_new_reaches_guests_that_run(tmp_path: Path, quick: None) -> None:
    async def story(bench: Bench) -> None:
        await bench.desk.say(listed(mail1=5))
        await bench.desk.pass_checks()
        await until(lambda: 5 in bench.xenstore.texts)
        bench.xenstore.say(5, "ok")
        await until(lambda: "10.0.0.11" in bench.desk.weights())
        moved = replace(service(), address=ip_address("192.0.2.11"))
        bench.desk.agent.configure(with_service(moved))
        await until(lambda: "address 192.0.2.11 lo\n" in bench.xenstore.texts[5])
        # The next boot of the guest is another domain, which is given the same.
        started = Started(at=clock.now(), guest=guest(1), name="mail1", incarnation=6)
        await bench.desk.say(started)
        await until(lambda: "address 192.0.2.11 lo\n" in bench.xenstore.texts.get(6, ""))

    Bench().play(tmp_path, service(), story)


def test_why_a_guest_cannot_be_reached_is_told(tmp_path: Path, quick: None) -> None:
    async def story(bench: Bench) -> None:
        await bench.desk.say(listed(mail1=5))
        await until(lambda: bench.reason() != "")
        assert "ssh to nobody@ssh.invalid" in bench.reason()
        assert "not ready for mail" in bench.desk.told()

    side = GuestSide(delivery=Delivery.SSH, on_boot=OnBoot.VERIFY, ssh="nobody@ssh.invalid")
    Bench().play(tmp_path, service(side), story)


def test_guests_that_are_not_to_be_looked_at_are_left_alone(tmp_path: Path, quick: None) -> None:
    async def story(bench: Bench) -> None:
        await bench.desk.say(listed(mail1=5))
        await bench.desk.pass_checks()
        assert bench.desk.weights()["10.0.0.11"] == 1
        await asyncio.sleep(0.1)
        assert bench.xenstore.texts == {}

    Bench().play(tmp_path, service(replace(SELF_MADE, on_boot=OnBoot.OFF)), story)


# --- guests that do not end a look ----------------------------------------------------------------


class Looks:
    """In place of Inspector.inspect: some inspections end only when the test says so."""

    def __init__(self, hang: set[GuestId]) -> None:
        self.hang = hang
        self.begun: list[GuestId] = []
        self.under_way: Counter[GuestId] = Counter()
        self.most = 0
        self.ended = asyncio.Event()

    async def look(
        self, guest: GuestId, request: ProvisionRequest, xenstore: object
    ) -> tuple[Verdict, ...]:
        self.begun.append(guest)
        self.under_way[guest] += 1
        self.most = max(self.most, self.under_way.total())
        try:
            if guest in self.hang:
                await self.ended.wait()
            return tuple(Verdict(service=each) for each in request.services)
        finally:
            self.under_way[guest] -= 1


BY_SSH = GuestSide(delivery=Delivery.SSH, on_boot=OnBoot.VERIFY)
HANGING = {f"mail{n}": n + 10 for n in range(1, 13)}


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch, quick: None) -> Looks:
    monkeypatch.setattr(provisioner, "IN_TIME", 0.02)
    monkeypatch.setattr(provisioner, "SLOW_PAUSE", 0.02)
    it = Looks({guest(n) for n in range(1, 13)})
    monkeypatch.setattr(provision.Inspector, "inspect", lambda _, *given: it.look(*given))
    return it


def by_pattern(side: GuestSide) -> ServiceSettings:
    return replace(service(side), servers=(Member(guest="mail*"),))


def inside(bench: Bench, number: int) -> bool:
    """Was the guest looked at, and found to be in order?"""
    known = bench.desk.agent.state.guests.get(guest(number))
    return known is not None and [each.problem for each in known.readiness] == [""]


def test_guests_that_do_not_end_a_look_keep_no_other_from_theirs(
    tmp_path: Path, looks: Looks
) -> None:
    """Three times as many as there are places, before and after the others come."""

    async def story(bench: Bench) -> None:
        await bench.desk.say(listed(**HANGING))
        await until(lambda: set(looks.begun) >= looks.hang)
        await bench.desk.say(listed(**HANGING, mail20=30, mail21=31))
        await until(lambda: inside(bench, 20) and inside(bench, 21))
        assert looks.most <= 2 * provisioner.AT_ONCE
        # Booting again does not bring a guest back into the lane of the others.
        await bench.desk.say(listed(**{name: 100 + n for name, n in HANGING.items()}, mail22=32))
        await until(lambda: inside(bench, 22))
        assert looks.most <= 2 * provisioner.AT_ONCE

    Bench().play(tmp_path, by_pattern(BY_SSH), story)


def test_a_look_that_is_late_goes_on_and_counts(tmp_path: Path, looks: Looks) -> None:
    """A guest that takes its time is let in after all, and afterwards is as others are."""
    looks.hang = {guest(1)}

    async def story(bench: Bench) -> None:
        await bench.desk.say(listed(mail1=5))
        await until(lambda: bool(bench.inside.late))
        looks.ended.set()
        await until(lambda: inside(bench, 1))
        assert looks.begun == [guest(1)]

    Bench().play(tmp_path, by_pattern(BY_SSH), story)


def test_guests_that_configure_themselves_wait_for_no_place(tmp_path: Path, looks: Looks) -> None:
    async def story(bench: Bench) -> None:
        await bench.desk.say(listed(**HANGING))
        await until(lambda: looks.under_way.total() == len(HANGING))
        await bench.desk.say(listed(**HANGING, mail20=30))
        await until(lambda: inside(bench, 20))

    Bench().play(tmp_path, by_pattern(SELF_MADE), story)


def test_a_look_that_is_only_late_has_the_usual_pause(
    tmp_path: Path, looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A booting guest on a busy host, which answers late and has not got all yet."""
    pauses: list[float] = []

    def pause_after(looks: int, hung: int) -> float:
        pauses.append(hung)
        return 0.001

    monkeypatch.setattr(provisioner, "pause_after", pause_after)

    async def look(*_: object) -> tuple[Verdict, ...]:
        await asyncio.sleep(2 * provisioner.IN_TIME)
        wanted = by_pattern(BY_SSH)
        return (Verdict(service=wanted, problem="" if len(pauses) > 2 else "it boots"),)

    monkeypatch.setattr(provision.Inspector, "inspect", look)

    async def story(bench: Bench) -> None:
        await bench.desk.say(listed(mail1=5))
        await until(lambda: inside(bench, 1))
        assert set(pauses) == {0}

    Bench().play(tmp_path, by_pattern(BY_SSH), story)


def test_a_look_that_hangs_is_made_ever_less_often() -> None:
    pauses = [provisioner.pause_after(n, n) for n in range(1, 100)]
    assert pauses == sorted(pauses)
    assert pauses[0] >= provisioner.LONGEST_PAUSE
    assert pauses[-1] == provisioner.LONGEST_SLOW_PAUSE
    assert provisioner.pause_after(1, 0) == provisioner.FIRST_PAUSE
    assert provisioner.pause_after(99, 0) == provisioner.LONGEST_PAUSE
