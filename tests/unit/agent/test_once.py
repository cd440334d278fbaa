"""One pass without a daemon, against the fake kernel."""

from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

from tests.fakes.kernel import FakeKernel
from xenlb.ipvs.table import AddressKey, Counters, Protocol, ServerKey
from xenlb.model.settings import Member, Port, ServiceSettings, Settings
from xenlb.once import run_once

VIP = ip_address("192.0.2.10")
KEY = AddressKey(protocol=Protocol.TCP, address=VIP, port=25)
HOSTS = tuple(Member(host=ip_address(f"10.0.0.{last}")) for last in (11, 12))
SERVICE = ServiceSettings(
    name="mail", address=VIP, ports=(Port(number=25),), checks=(), servers=HOSTS
)


def test_a_plan_says_how_many_connections_its_removals_cut(tmp_path: Path) -> None:
    state, kernel = tmp_path / "state.json", FakeKernel()
    run_once(Settings(services=(SERVICE,)), state_path=state, change=True, kernel=kernel)
    for last, count in ((11, 4), (12, 3)):
        server = ServerKey(address=ip_address(f"10.0.0.{last}"), port=25)
        kernel.count(KEY, server, Counters(active_connections=count, inactive_connections=9))
    one = Settings(services=(replace(SERVICE, servers=HOSTS[:1]),))
    plan = run_once(one, state_path=state, change=False, kernel=kernel)
    assert plan.notes == ("ipvsadm -d -t 192.0.2.10:25 -r 10.0.0.12:25 cuts 3 connections",)
    plan = run_once(Settings(), state_path=state, change=False, kernel=kernel)
    assert plan.notes == ("ipvsadm -D -t 192.0.2.10:25 cuts 7 connections",)
