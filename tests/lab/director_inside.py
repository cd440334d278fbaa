"""Runs in a lab, with the agent's Python: what the sysctls room does there, as JSON.

director_inside.py POLICY FORWARDING INTERFACE FILE [SERVER...]
"""

import asyncio
import json
import sys
from ipaddress import ip_address
from pathlib import Path

from xenlb.director import sysctls
from xenlb.director.interface import towards
from xenlb.ipvs.table import Forwarding
from xenlb.model.settings import Director, ServiceSettings, Settings, SysctlPolicy


def main(policy: str, forwarding: str, interface: str, file: str, *servers: str) -> None:
    settings = Settings(
        director=Director(interface=interface),
        services=(ServiceSettings(name="s", forwarding=Forwarding(forwarding), persistence=60),),
    )
    needs = sysctls.needed(
        settings,
        sysctls.kernel_version(),
        forwards=sysctls.read("net.ipv4.ip_forward") == 1,
        towards=asyncio.run(towards(map(ip_address, servers))),
    )
    outcome = sysctls.apply(needs, SysctlPolicy(policy), persisted=Path(file))
    json.dump(
        {
            "changes": [str(change) for change in outcome.changes],
            "findings": [[each.name, each.have, each.want, each.fix] for each in outcome.findings],
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
