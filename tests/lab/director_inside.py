"""Runs in a lab, with the agent's Python: what the sysctls room does there, as JSON.

director_inside.py POLICY FORWARDING INTERFACE FILE [SERVER...]
"""

import asyncio
import json
import sys
from ipaddress import ip_address
from pathlib import Path

from xenlb.director import sysctls
from xenlb.director.interface import outgoing_interfaces
from xenlb.ipvs.table import Forwarding
from xenlb.model.settings import Director, ServiceSettings, Settings, SysctlPolicy


def main(policy: str, forwarding: str, interface: str, file: str, *servers: str) -> None:
    settings = Settings(
        director=Director(interface=interface),
        services=(ServiceSettings(name="s", forwarding=Forwarding(forwarding), persistence=60),),
    )
    needs = sysctls.required_sysctls(
        settings,
        sysctls.kernel_version(),
        forwards=sysctls.read_sysctl("net.ipv4.ip_forward") == 1,
        server_interfaces=asyncio.run(outgoing_interfaces(map(ip_address, servers))),
    )
    outcome = sysctls.apply(needs, SysctlPolicy(policy), file=Path(file))
    json.dump(
        {
            "changes": [str(change) for change in outcome.changes],
            "findings": [
                [finding.name, finding.value, finding.required, finding.fix]
                for finding in outcome.findings
            ],
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
