"""What makes a Debian guest this one: its settings, and the files and units of a test.

`archive` makes a tar of it, which the lab lays over the shared image (guest_image.py) before the
guest's init runs.
"""

from __future__ import annotations

import io
import shlex
import tarfile
from collections.abc import Iterator

from tests.lab.debian import networks
from tests.lab.debian.definition import Definition

UNITS = "etc/systemd/system"
# Where Debian's own units are; a link to it in /etc takes the place of the image's mask.
VENDOR = "/lib/systemd"
# What programs refuse when others may read it: host keys, connections with their secrets.
PRIVATE = ("/etc/netplan/", "/etc/NetworkManager/", "/etc/ssh/ssh_host_")


def settings(definition: Definition) -> str:
    """What /usr/lib/lab/network and web.service in the guest read: shell syntax that is systemd's
    EnvironmentFile= syntax, too."""
    six = any(":" in address for address in definition.addresses)
    values = {
        "NAME": definition.name,
        "ADDRESSES": " ".join([*definition.of_family(4), *definition.of_family(6)]),
        "GATEWAYS": " ".join(filter(None, (definition.gateway, definition.gateway6))),
        "PORTS": ",".join(map(str, definition.ports)),
        "FAMILIES": "ipv6" if six else "",
        "VIPS": "" if definition.method == "masquerade" else " ".join(definition.vips),
        "METHOD": definition.method,
    }
    return "".join(f"LAB_{key}={shlex.quote(value)}\n" for key, value in values.items())


def archive(definition: Definition) -> bytes:
    """A tar of the files (what starts with #! is a program), with units enabled as `systemctl
    enable` does it."""
    contents: dict[str, str | bytes] = {
        "/etc/hostname": f"{definition.name}\n",
        "/etc/hosts": f"127.0.0.1 localhost {definition.name}\n",
        "/etc/lab/settings": settings(definition),
        **networks.files(definition),
        **(definition.ssh.files_of_a_guest() if definition.ssh else {}),
        **(_nginx(definition) if definition.web == "nginx" else {}),
        **definition.files,
    }
    result = io.BytesIO()
    with tarfile.open(fileobj=result, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for path, content in contents.items():
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(path.lstrip("/"))
            member.size = len(data)
            member.mode = _mode(path, data)
            tar.addfile(member, io.BytesIO(data))
        if definition.init == "systemd":
            for path, target in _links(definition):
                link = tarfile.TarInfo(path)
                link.type = tarfile.SYMTYPE
                link.linkname = target
                tar.addfile(link)
    return result.getvalue()


def scripts(definition: Definition) -> list[str]:
    """The init scripts to enable in a guest with sysvinit."""
    network = "lab-network" if definition.network == "lab" else "networking"
    return [network, *(["ssh"] if definition.ssh else []), *definition.units]


def _mode(path: str, data: bytes) -> int:
    if data.startswith(b"#!"):
        return 0o755
    return 0o600 if path.startswith(PRIVATE) else 0o644


def _links(definition: Definition) -> Iterator[tuple[str, str]]:
    """The symbolic links that unmask and enable units and generators."""
    network = definition.network
    # pam_nologin: who is not root does not come in before systemd-user-sessions allows it.
    sessions = ["systemd-user-sessions.service"] if definition.ssh else []
    for unit in (*networks.UNMASKED[network], *sessions):
        yield f"{UNITS}/{unit}", f"{VENDOR}/system/{unit}"
    for generator in networks.GENERATORS[network]:
        place = f"system-generators/{generator}"
        yield f"etc/systemd/{place}", f"{VENDOR}/{place}"
    for target, unit in networks.ENABLED[network]:
        link = target if target.endswith(".service") else f"{target}/{unit}"
        yield f"{UNITS}/{link}", _place(definition, unit)
    web = "nginx.service" if definition.web == "nginx" else "web.service"
    ssh = ["ssh.service"] if definition.ssh else []
    for unit in (web, *ssh, *definition.units):
        for target in _targets(definition.files.get(f"/{UNITS}/{unit}", "")):
            yield f"{UNITS}/{target}/{unit}", _place(definition, unit)


def _place(definition: Definition, unit: str) -> str:
    """Where the unit is: in /etc if the test or the labs' overlay brings it."""
    own = f"/{UNITS}/{unit}"
    ours = own in definition.files or unit in ("lab-network.service", "web.service")
    return own if ours else f"{VENDOR}/system/{unit}"


def _targets(unit: str | bytes) -> list[str]:
    """The folders that a unit's [Install] section names; multi-user.target's where it names none
    (a unit of the image itself)."""
    text = unit.decode() if isinstance(unit, bytes) else unit
    found = [
        f"{target}.{kind}"
        for line in text.splitlines()
        for key, kind in (("WantedBy=", "wants"), ("RequiredBy=", "requires"))
        if line.startswith(key)
        for target in line.removeprefix(key).split()
    ]
    return found or ["multi-user.target.wants"]


def _nginx(definition: Definition) -> dict[str, str]:
    listen = "".join(
        f"    listen {port} default_server;\n    listen [::]:{port} default_server;\n"
        for port in definition.ports
    )
    return {
        "/etc/nginx/sites-enabled/default": f"""\
server {{
{listen}    server_name _;
    default_type text/plain;
    location / {{
        return 200 "{definition.name}\\n";
    }}
}}
"""
    }
