"""What people read when the kernel refuses."""

import errno

import pytest

from tests.ipvsadm.parse import parse_op
from xenlb.ipvs.errors import IpvsError, explain, no_access
from xenlb.ipvs.op import OpFailed

MAIL = "-t 192.0.2.10:25"


@pytest.mark.parametrize(
    ("line", "number", "message", "hint"),
    [
        (
            f"-A {MAIL} -s lblc",
            errno.ENOENT,
            "the kernel has no scheduler «lblc»: the module ip_vs_lblc is not loaded",
            "load it with: modprobe ip_vs_lblc",
        ),
        (
            f"-E {MAIL} -s rr -p 9 --pe sip",
            errno.ENOENT,
            "the kernel has no scheduler «rr» or no persistence engine «sip»",
            "load them with: modprobe -a ip_vs_rr ip_vs_pe_sip",
        ),
        (
            f"-A {MAIL}",
            errno.EEXIST,
            f"the service {MAIL} is in the table already",
            "nothing to do: the next pass reads the table again",
        ),
        (
            f"-E {MAIL}",
            errno.ESRCH,
            f"the service {MAIL} has gone from the table",
            "nothing to do: the next pass reads the table again",
        ),
        (
            f"-a {MAIL} -r 10.0.0.11:25",
            errno.ESRCH,
            f"the service {MAIL} has gone from the table",
            "nothing to do: the next pass reads the table again",
        ),
        (
            f"-a {MAIL} -r 10.0.0.11:25",
            errno.EEXIST,
            f"the server -r 10.0.0.11:25 is in the service {MAIL} already",
            "nothing to do: the next pass reads the table again",
        ),
        (
            f"-e {MAIL} -r 10.0.0.11:25",
            errno.ENOENT,
            f"the server -r 10.0.0.11:25 has gone from the service {MAIL}",
            "nothing to do: the next pass reads the table again",
        ),
        (
            f"-e {MAIL} -r 10.0.0.11:25 -x 3 -y 4",
            errno.ERANGE,
            "the lower threshold of the server -r 10.0.0.11:25, 4, is above its upper threshold, 3",
            "raise upper-threshold or lower lower-threshold",
        ),
        (
            f"-a {MAIL} -r 224.0.0.1:25",
            errno.EINVAL,
            "the kernel does not take the address of the server -r 224.0.0.1:25",
            "give an address of one machine: no broadcast, multicast or link-local address",
        ),
        (
            f"-a {MAIL} -r [2001:db8::1]:25 -i",
            errno.EINVAL,
            "the server -r [2001:db8::1]:25 is of the other address family than its service, "
            "which the kernel does not take while connections are synchronized",
            "stop it with: ipvsadm --stop-daemon master; ipvsadm --stop-daemon backup",
        ),
        (
            "-A -t [2001:db8::1]:25",
            errno.EAFNOSUPPORT,
            "the kernel's IPVS has no IPv6",
            "boot a kernel that has CONFIG_IP_VS_IPV6, without ipv6.disable=1",
        ),
        (f"-A {MAIL}", errno.ENOMEM, "the kernel has no memory for it", "free memory"),
        (
            f"-d {MAIL} -r 10.0.0.11:25",
            errno.EPERM,
            "changing or reading the IPVS table is not permitted to this process",
            "run it as root, or give it the capability CAP_NET_ADMIN",
        ),
        (
            f"-D {MAIL}",
            errno.EIO,
            f"the kernel refused -D {MAIL}: Input/output error",
            "see the kernel's log: dmesg",
        ),
    ],
)
def test_a_refused_operation(line: str, number: int, message: str, hint: str) -> None:
    said = explain(OpFailed(op=parse_op(line), errno=number))
    assert (said.message, said.hint) == (message, hint)
    assert str(said) == f"{message} ({hint})"


@pytest.mark.parametrize("letter", ["A", "E", "D", "a", "e", "d"])
def test_every_errno_has_a_sentence(letter: str) -> None:
    server = "-r 10.0.0.11:25" if letter.islower() else ""
    op = parse_op(f"-{letter} {MAIL} {server}")
    for number in errno.errorcode:
        said = explain(OpFailed(op=op, errno=number))
        for words in (said.message, said.hint):
            assert words
            assert "\n" not in words
            assert not words.endswith(".")


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (
            errno.ENOENT,
            "the kernel has no IPVS: the module ip_vs is not loaded (load it with: modprobe ip_vs)",
        ),
        (
            errno.EPERM,
            "changing or reading the IPVS table is not permitted to this process "
            "(run it as root, or give it the capability CAP_NET_ADMIN)",
        ),
        (
            errno.EIO,
            "the IPVS table cannot be reached: Input/output error (see the kernel's log: dmesg)",
        ),
    ],
)
def test_no_table_at_all(number: int, text: str) -> None:
    error = no_access(number)
    assert isinstance(error, IpvsError)
    assert str(error) == text
    assert error.errno == number
