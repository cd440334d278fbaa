"""Any text of guests, servers, programs, hooks, libvirt, the kernel or files: it is parsed, or
refused with the declared error.
"""

import base64
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import example, given

from tests.ipvsadm.options import ParseError
from tests.ipvsadm.parse import parse as read_ipvsadm
from tests.unit.fuzz.mutations import LIMIT, MANY, damaged
from tests.unit.guestside.inspect.test_parse import REAL
from tests.unit.store.test_state_file import recorded, saved
from xenlb.guestside.inspect.parse import ObserveError, output_budget, parse_observed
from xenlb.guestside.install.manifest import BadManifest
from xenlb.guestside.install.manifest import parse as read_manifest
from xenlb.guestside.transport.channel import DeliveryError, Output, last_line, unwrapped
from xenlb.guestside.transport.guest_agent import GuestAgent
from xenlb.guestside.transport.remote_files import parse_frames
from xenlb.health.probes import agent, program
from xenlb.hypervisor.libvirt import hooks, qmp
from xenlb.hypervisor.libvirt.domain_xml import interfaces
from xenlb.hypervisor.libvirt.metadata import read_metadata
from xenlb.hypervisor.libvirt.xml_text import Malformed
from xenlb.hypervisor.xenstore.guest_settings import parse_answer
from xenlb.hypervisor.xenstore.wire import Decoder, Garbled, Type, encode, strings
from xenlb.ipvs import connections, netlink
from xenlb.ipvs.netlink_codec import decode_server, decode_service
from xenlb.ipvs.table import Family
from xenlb.model.checks import Exec, Share
from xenlb.model.domain import GuestId
from xenlb.store import saved_state, state_file
from xenlb.untrusted.budget import Budget, BudgetSpent
from xenlb.untrusted.json_text import json_value
from xenlb.untrusted.printable import LONGEST, first_line

pytestmark = pytest.mark.timeout(LIMIT)

# s of the processor for one example of some hundred bytes.
STEP = 2.0
FILES, FOLDERS = ("etc/one", "etc/two"), ("etc",)
GUEST = GuestId(uri="qemu:///system", uuid=UUID(int=1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Parser:
    """`errors`: what it may raise."""

    read: Callable[[bytes], object]
    corpus: tuple[bytes, ...]
    errors: tuple[type[Exception], ...] = ()


def text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def words(data: bytes) -> None:
    for said in (first_line(data), last_line(data)):
        assert said.isprintable()
    assert len(first_line(data)) <= LONGEST


def line_of_an_agent(data: bytes) -> None:
    answer = agent.parse_state(data[:256], "here")
    assert answer.detail.isprintable()
    assert answer.share is None or answer.share >= 0


def output_of_a_program(data: bytes) -> None:
    asks = Exec(command=("/check",), share=Share())
    for status in (0, 1, 2, 3, 126, -9):
        assert program.answer_for_status(asks, status, text(data)).detail.isprintable()


def metadata(data: bytes) -> None:
    _, problems = read_metadata(text(data))
    assert all(problem.isprintable() for problem in problems)


def xenstore(data: bytes) -> None:
    for message in Decoder().feed(data):
        strings(message.payload)


def details_of_qmp(data: bytes) -> None:
    for name in qmp.EVENTS:
        qmp.hypervisor_event(name, text(data), guest=GUEST, incarnation=None, at=0.0)


def guest_agent(data: bytes) -> None:
    """Every command has this answer at once."""
    of_guest = GuestAgent(lambda: (lambda _: text(data), lambda: None), name="g1")
    of_guest._run(b"", -1.0)


def script(data: bytes) -> None:
    if (said := unwrapped(Output(status=0, out=data, err=data))) is not None:
        assert said.complaint.isprintable()


def read_netlink(data: bytes) -> None:
    for _, _, _, start, end in netlink.messages(data):
        for family in Family:
            with suppress(KeyError, ValueError, struct.error):
                decode_server(data, start, end, family=family)
        decode_service(data, start, end)


def saved_bytes() -> bytes:
    return "".join(state_file._pieces(saved())).encode()


def dumped() -> bytes:
    """A dump of the kernel's, as tests/unit/ipvs makes it of requests."""
    attributes = b"".join(
        struct.pack("=HH", len(value) + 4, kind) + netlink.padded(value)
        for kind, value in (
            *((1, b"\2\0"), (2, b"\6\0"), (3, bytes([192, 0, 2, 1]) + bytes(12)), (4, b"\0\x19")),
            *(
                (6, b"wrr\0"),
                (7, b"\3\0\0\0\xff\xff\xff\xff"),
                (8, b"\x2c\1\0\0"),
                (9, b"\xff" * 4),
            ),
        )
    )
    body = struct.pack("=HH", len(attributes) + 4, 1) + attributes
    return netlink.MESSAGE.pack(netlink.PAYLOAD + len(body), 0x1B, 2, 7, 0, 1, 1, 0) + body


DOMAIN = b"""<domain type='xen' id='4'><name>a</name><devices><interface type='bridge'>
<mac address='00:16:3E:00:00:01'/><source bridge='xenbr0'/><target dev='vif4.0'/>
<ip address='10.0.0.11' family='ipv4'/></interface></devices></domain>"""
SERVICES = (
    b"<services xmlns='urn:xenlb:1'><service name='a' weight='2' address='10.0.0.1'/></services>"
)
DOCTYPE = b"<!DOCTYPE a [<!ENTITY b 'c'>]>"
MANIFEST = (
    b'{"version": 1, "folders": ["etc/x"], "files": {"etc/x/a": {"kind": "whole", "mode": "0644",'
    b' "sha256": ["' + b"0" * 64 + b'"], "made": true}}}'
)
PARSERS = {
    "words": Parser(read=words, corpus=(b"up\tand \x1b[2Jrunning\n", "\u202eabc\u0085d".encode())),
    "line of an agent": Parser(read=line_of_an_agent, corpus=(b"up 75%\n", b"drain # x\n")),
    "output of a program": Parser(
        read=output_of_a_program,
        corpus=(b"OK - fine | weight=75% load=1\nmore | 'weight'=5.5%\n", b"75%\n"),
    ),
    "metadata": Parser(read=metadata, corpus=(SERVICES, DOCTYPE + SERVICES, b"<a>" * 300)),
    "domain XML": Parser(
        read=lambda data: interfaces(text(data)),
        corpus=(DOMAIN, DOCTYPE + DOMAIN, b"<a>" * 300),
        errors=(Malformed,),
    ),
    "xenstore": Parser(
        read=xenstore,
        corpus=(encode(Type.READ, 1, "/local/domain/1/data/ip"), encode(Type.WRITE, 2, "/a", "b")),
        errors=(Garbled,),
    ),
    "word of a guest": Parser(
        read=lambda data: parse_answer(text(data)), corpus=(b"0123456789abcdef ok", b"failed")
    ),
    "details of QMP": Parser(
        read=details_of_qmp,
        corpus=(b'{"id": "ua-xenlb", "open": true}', b'{"status": "setup"}', b"[" * 5000),
    ),
    "guest agent": Parser(
        read=guest_agent,
        corpus=(
            b'{"return": {"pid": 7, "exited": true, "exitcode": 0, "out-data": "'
            + base64.b64encode(b"\n=xenlb: the script begins\nout")
            + b'"}}',
            b'{"return": {}}',
            b"[" * 5000,
        ),
        errors=(DeliveryError,),
    ),
    "JSON": Parser(
        read=lambda data: json_value(text(data), Budget(pieces=100, size=1000)),
        corpus=(b'{"a": [1, null, "x"]}', b"[" * 90),
        errors=(ValueError, BudgetSpent),
    ),
    "line of a hook": Parser(
        read=hooks.parse_line,
        corpus=(b"libxl\tstarted\tbegin\t00000000-0000-0000-0000-000000000001\t7\tweb1",),
    ),
    "answer of a script": Parser(
        read=script, corpus=(b"hi\n=xenlb: the script begins\nout\n", b"Permission denied\n")
    ),
    "what is seen in a guest": Parser(
        read=lambda data: parse_observed(data, output_budget()),
        corpus=tuple(REAL.values()),
        errors=(ObserveError,),
    ),
    "files of a guest": Parser(
        read=lambda data: parse_frames(data, FILES, FOLDERS),
        corpus=(
            b"=owner 0 0\n=0 file -rw-r--r-- 0 0\n 61 62\n=1 link\n 61 0a\n=2 folder\n=end\n",
            b"=owner 0 0\n=2 full\n=end\n",
        ),
        errors=(ValueError,),
    ),
    "manifest": Parser(read=read_manifest, corpus=(MANIFEST,), errors=(BadManifest,)),
    "netlink": Parser(
        read=read_netlink, corpus=(dumped(),), errors=(ValueError, KeyError, struct.error)
    ),
    "ipvsadm": Parser(
        read=lambda data: read_ipvsadm(text(data)),
        corpus=(b"-A -t 192.0.2.1:80 -s wrr -p 60\n-a -t 192.0.2.1:80 -r 10.0.0.1:80 -g -w 3\n",),
        errors=(ParseError,),
    ),
    "list of connections": Parser(
        read=lambda data: list(connections.parse(text(data).splitlines())),
        corpus=(
            b"TCP C0000201 9C40 C000020A 0050 0A00000B 0050 ESTABLISHED 899\n",
            b"TCP [2001:db8::1] 9C40 [2001:db8::2] 0050 [fd00::1] 0050 FIN_WAIT 11\n",
        ),
    ),
}


@pytest.mark.parametrize("name", PARSERS)
def test_a_parser(name: str) -> None:
    parser = PARSERS[name]

    @MANY
    @given(data=damaged(parser.corpus))
    @example(data=b"")
    @example(data=parser.corpus[0])
    def parsed(data: bytes) -> None:
        began = time.thread_time()
        with suppress(*parser.errors):
            parser.read(data)
        assert time.thread_time() - began < STEP

    parsed()


@pytest.mark.parametrize("name", PARSERS)
def test_the_corpus_is_parsed(name: str) -> None:
    """The input is valid before it is damaged."""
    parser = PARSERS[name]
    parser.read(parser.corpus[0])


def test_an_agent_starts_with_any_state_file(tmp_path: Path) -> None:
    """Loading never raises, and a loaded state can be written again."""
    file = tmp_path / "state.json"
    corpus = (saved_bytes(), *(recorded(tmp_path, version).read_bytes() for version in (6, 7, 8)))

    @MANY
    @given(data=damaged(corpus))
    @example(data=corpus[0])
    def loaded(data: bytes) -> None:
        file.write_bytes(data)
        "".join(saved_state.encoded(state_file.load(file)))

    loaded()
