"""The kernel's list of connections, as Linux 6.1 writes it."""

from ipaddress import ip_address
from pathlib import Path

from xenlb.ipvs.connections import client_connections, parse
from xenlb.ipvs.table import ServerKey

# As read in the User-mode Linux lab, one line a kind; a name of a persistence engine added.
LIST = """\
Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData
TCP C0000264 A3F2 C000020A 0050 0A00000B 0050 ESTABLISHED     895
TCP C0000264 A3F3 C000020A 0050 0A00000B 0050 ESTABLISHED     890
TCP C0000265 A3F4 C000020A 0050 0A00000B 0050 FIN_WAIT        100
TCP C0000266 A3F5 C000020A 0050 0A00000C 0050 ESTABLISHED     895
UDP C0000267 0035 C000020A 0035 0A00000B 0050 UDP             290
TCP fd00:0002:0000:0000:0000:0000:0000:0064 9C4E fd00:0002:0000:0000:0000:0000:0000:000a 0050 \
fd00:0010:0000:0000:0000:0000:0000:000b 0050 ESTABLISHED     892 sip 1
what is no line of it
"""


def server(address: str) -> ServerKey:
    return ServerKey(address=ip_address(address), port=80)


def test_lines_of_the_list() -> None:
    found = list(parse(LIST.splitlines()))
    assert len(found) == 6
    assert found[0].client == ip_address("192.0.2.100")
    assert found[0].server == server("10.0.0.11")
    assert found[-1].client == ip_address("fd00:2::64")
    assert found[-1].server == server("fd00:10::b")


def test_clients_of_servers(tmp_path: Path) -> None:
    path = tmp_path / "ip_vs_conn"
    path.write_text(LIST)
    servers = {server("10.0.0.11"), server("fd00:10::b")}
    assert client_connections(servers, established=True, path=path) == {
        ip_address("192.0.2.100"): 2,
        ip_address("fd00:2::64"): 1,
    }
    everything = client_connections(servers, established=False, path=path)
    assert everything[ip_address("192.0.2.101")] == 1
    assert ip_address("192.0.2.103") not in everything  # UDP is never waited for


def test_without_a_list(tmp_path: Path) -> None:
    assert client_connections({server("10.0.0.11")}, established=True, path=tmp_path / "none") == {}
