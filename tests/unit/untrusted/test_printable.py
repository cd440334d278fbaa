"""Untrusted text is made printable wherever it comes in."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, cast

import libvirt
import pytest

from xenlb.config import ConfigError, load_bytes
from xenlb.control.server import ClientProcess, _requester
from xenlb.guestside.inspect.parse import _sections, output_budget
from xenlb.guestside.install.operations import MakeSymlink
from xenlb.guestside.install.preview import visible
from xenlb.guestside.render import template
from xenlb.guestside.transport.channel import last_line
from xenlb.guestside.transport.guest_agent import _failure
from xenlb.health.probes import agent, program
from xenlb.hypervisor import address_policy
from xenlb.hypervisor.libvirt import hooks, queries
from xenlb.hypervisor.libvirt.metadata import read_metadata
from xenlb.model.addresses import AddressSource
from xenlb.model.checks import Exec
from xenlb.untrusted.printable import first_line, printable, quoted

HARMFUL = {
    "escape": "\x1b",
    "bell": "\x07",
    "delete": "\x7f",
    "C1 (CSI)": "\x9b",
    "next line": "\x85",
    "line separator": "\u2028",
    "paragraph separator": "\u2029",
    "bidi override": "\u202e",
    "bidi embedding": "\u202a",
    "bidi isolate": "\u2066",
    "end of an isolate": "\u2069",
    "zero width space": "\u200b",
    "zero width joiner": "\u200d",
    "byte order mark": "\ufeff",
    "soft hyphen": "\xad",
    "lone surrogate": "\udc80",
    "tag": "\U000e0041",
    "blank letter": "\u3164",
    "variation selector": "\ufe0f",
}
UUID_TEXT = "3a0f4a8e-5f05-4c8e-9df8-3dd9d9a3d0f1"


def raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape" if "\udc80" in text else "strict")


def listed(text: str) -> str:
    domain = SimpleNamespace(
        name=lambda: text,
        UUIDString=lambda: UUID_TEXT,
        ID=lambda: 4,
        state=lambda _flags: [libvirt.VIR_DOMAIN_RUNNING],
        metadata=lambda *_: "<services xmlns='urn:xenlb:1'/>",
    )
    connection = SimpleNamespace(listAllDomains=lambda _flags: [domain])
    (one,) = queries.list_domains(cast(queries.Connection, connection), "xen:///system")
    return one.name


def failed(text: str) -> str:
    return str(queries.CallFailed(libvirt.libvirtError(f"internal error: {text}")))


def hooked(text: str) -> str:
    head = f"libxl\tstarted\tbegin\t{UUID_TEXT}\t4\t"
    call = hooks.parse_line(raw(head + text))
    return "" if call is None else call.name


def configured(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_bytes(raw(f'services: {{"mail{text}": {{}}}}\n'), "xenlb.yaml")
    return " ".join(map(str, caught.value.problems))


def unsafe(text: str) -> str:
    with pytest.raises(template.UnsafeValue) as caught:
        template.safe(text)
    return str(caught.value)


def observed(text: str) -> str:
    body = raw(text)
    output = b"xenlb-observed 1\nsection one %d\n%ssection end 0\n" % (len(body), body)
    return _sections(output, output_budget())["one"]


WAYS: Mapping[str, Callable[[str], str]] = {
    "a domain's name": listed,
    "an error of libvirt": failed,
    "an error of a guest agent": lambda text: str(_failure("mail1", failed(text))),
    "a hook": hooked,
    "a service's name in metadata": lambda text: " ".join(
        read_metadata(f"<services><service name='{text}'/></services>")[1]
    ),
    "an attribute in metadata": lambda text: " ".join(
        read_metadata(f"<services><service name='mail' weight='{text}'/></services>")[1]
    ),
    "a reported address": lambda text: str(
        address_policy.check_address(text, AddressSource.REPORTED, address_policy.PolicyContext())
    ),
    "an answer to a probe": lambda text: first_line(raw(text)),
    "an agent check": lambda text: agent.parse_state(raw(f"down {text}\n"), "mail1").detail,
    "a program's output": lambda text: (
        program.answer_for_status(
            Exec(command=("/bin/check",)), 2, raw(text).decode("utf-8", "replace")
        ).detail
    ),
    "a script's errors in a guest": lambda text: last_line(raw(text)),
    "a file in a guest": visible,
    "a link in a guest": lambda text: str(MakeSymlink(path="etc/x", target=text)),
    "what was read in a guest": observed,
    "a value of a template": unsafe,
    "who asks, by the control socket": lambda text: _requester(ClientProcess(pid=1, uid=0), text),
    "a name on the command line": quoted,
    "the configuration": configured,
}


@pytest.mark.parametrize("kind", HARMFUL)
@pytest.mark.parametrize("way", WAYS)
def test_every_untrusted_text_is_made_printable(way: str, kind: str) -> None:
    result = WAYS[way](f"web{HARMFUL[kind]}[2J1")
    assert HARMFUL[kind] not in result
    assert result.isprintable(), ascii(result)


@pytest.mark.parametrize("kind", HARMFUL)
def test_invisible_characters_are_escaped(kind: str) -> None:
    escape = HARMFUL[kind].encode("unicode-escape").decode()
    assert printable(f"web{HARMFUL[kind]}1") == f"web{escape}1"


@pytest.mark.parametrize(
    ("text", "longest", "expected"),
    [
        ("größe 10 µs 日本語 ☺", None, "größe 10 µs 日本語 ☺"),
        ("", None, ""),
        ("abc", 3, "abc"),
        ("abcd", 3, "ab…"),
        ("\x1b" * 10, 8, r"\x1b\x1…"),
        (b"\xff\x1bx", None, "\ufffd\\x1bx"),
        ("ä".encode() * 100, 4, "äää…"),
    ],
)
def test_visible_text_stays_and_is_cut(text: Any, longest: int | None, expected: str) -> None:
    assert printable(text, longest) == expected


def test_kept_characters_are_not_escaped() -> None:
    assert printable("a\tb\nc\x1bd\r", keep="\t\n") == "a\tb\nc\\x1bd\\r"


def test_first_line_that_is_not_blank() -> None:
    assert first_line("\n \r\n  queue\tfull \nmore") == "queue full"
    assert first_line(b"") == ""
    assert first_line("x" * 100, 10) == "x" * 9 + "…"
    assert quoted("a\x1bb") == r"'a\x1bb'"
