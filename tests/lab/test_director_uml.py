"""Service addresses and sysctls on a distribution's kernel, with IPVS in it."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.lab.host import CHECKOUT, venv_directory
from tests.lab.uml import UmlLab

PYTHON = str(venv_directory() / "bin/python")
VS = "/proc/sys/net/ipv4/vs"
PERSISTED = "/run/lab/90-xenlb.conf"
# Words in the names of unit tests that depend most on what a kernel does.
KERNEL_DEPENDENT = (
    "put_back",
    "renamed",
    "restart",
    "before",
    "neighbours",
    "disabled",
    "unwanted",
    "of_this_host",
)


def sysctls(uml: UmlLab, policy: str, forwarding: str, *servers: str) -> dict[str, Any]:
    script = ["-m", "tests.lab.director_inside", policy, forwarding, "front0", PERSISTED, *servers]
    result = uml.run([PYTHON, *script], cwd=str(CHECKOUT), timeout=60)
    outcome: dict[str, Any] = json.loads(result.out)
    return outcome


def test_sysctls_of_ipvs(uml: UmlLab) -> None:
    assert uml.run(["test", "-e", VS], check=False).rc == 1, "the module is not loaded yet"
    outcome = sysctls(uml, "ipvs", "masquerade")
    assert outcome["changes"] == []
    assert [finding[0] for finding in outcome["findings"]] == ["net.ipv4.vs"]
    assert outcome["findings"][0][3] == "modprobe ip_vs"

    uml.run(["modprobe", "ip_vs"])
    outcome = sysctls(uml, "ipvs", "masquerade")
    assert [line.partition(" (")[0] for line in outcome["changes"]] == [
        "net.ipv4.vs.expire_nodest_conn: 0 → 1",
        "net.ipv4.vs.expire_quiescent_template: 0 → 1",
    ]
    assert outcome["findings"] == [], "the lab forwards already"
    assert uml.text(f"{VS}/expire_nodest_conn") == uml.text(f"{VS}/conn_reuse_mode") == "1\n"
    assert sysctls(uml, "ipvs", "masquerade") == {"changes": [], "findings": []}


def test_answers_of_guests_behind_this_host(uml: UmlLab) -> None:
    """Gatewaying, with this host as the servers' gateway: martians until the sysctls are set."""
    vip = "192.0.2.12"
    uml.add_vip(vip)
    uml.run("echo 2 > /proc/sys/net/ipv4/conf/br0/rp_filter")
    server = uml.server_ns("server41", "10.0.0.41")
    server.add_vip(vip, forwarding="gatewaying")
    server.serve("0.0.0.0:80")
    uml.run(f"ipvsadm -A -t {vip}:80 -s rr; ipvsadm -a -t {vip}:80 -r {server.address} -g")
    client = uml.client("asker", "192.0.2.141")
    with pytest.raises(AssertionError, match=r"192\.0\.2\.12:80"):
        client.fetch(f"{vip}:80", timeout=1)

    reported = sysctls(uml, "ipvs", "gatewaying", server.address)["findings"]
    assert [finding[:3] for finding in reported] == [
        ["net.ipv4.conf.br0.accept_local", 0, 1],
        ["net.ipv4.conf.br0.rp_filter", 2, 0],
    ]
    outcome = sysctls(uml, "apply", "gatewaying", server.address)
    assert outcome["findings"] == []
    assert len(outcome["changes"]) == 2
    assert client.fetch(f"{vip}:80") == "server41"

    # What is persisted is what the distribution's own tool reads at boot.
    uml.run(
        "echo 0 > /proc/sys/net/ipv4/conf/br0/accept_local; "
        f"echo 0 > {VS}/expire_nodest_conn; sysctl -q -p {PERSISTED}"
    )
    assert uml.text("/proc/sys/net/ipv4/conf/br0/accept_local") == "1\n"
    assert uml.text(f"{VS}/expire_nodest_conn") == "1\n"


@pytest.mark.soak
def test_unit_tests_of_both_rooms_on_this_kernel(uml: UmlLab) -> None:
    """They run in name spaces of their own; here with another kernel, and none may be skipped."""
    command = [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=3"]
    began = time.monotonic()
    result = uml.run(
        [*command, "-k", " or ".join(KERNEL_DEPENDENT), "tests/unit/director", "tests/unit/health"],
        cwd=str(CHECKOUT),
        env={"XENLB_REQUIRE_LABS": "1"},
        timeout=300,
        check=False,
    )
    assert result.rc == 0, result.out + result.err
    assert " skipped" not in result.out
    print(uml.out(["uname", "-r"]), f"{time.monotonic() - began:.0f} s", result.out[-400:])
