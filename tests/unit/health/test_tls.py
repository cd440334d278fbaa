"""The tls check, and details about certificates."""

import asyncio
import contextlib
import socket
import ssl
import subprocess
import time
import warnings
from pathlib import Path

import pytest

from tests.unit.health.certificates import NAME, certificates
from tests.unit.health.servers import Hang, HangUp, answer_of, asked, down, target, up
from xenlb.health.registry import load_probe, run_probe
from xenlb.health.transport.certificates import context_of, handshake_failure
from xenlb.health.transport.result import Answer, answer_budget
from xenlb.model.checks import Tcp, Tls, TlsHandshake


def test_a_good_certificate() -> None:
    made = certificates()
    for tls in (
        Tls(name=NAME, ca_file=made.ca),
        Tls(ca_file=made.ca),  # whatever name it is for
        Tls(verify=False),
        Tls(verify=False, name="other.example.org"),
    ):
        answer, server = answer_of(TlsHandshake(tls=tls), [], tls=made.good)
        assert answer == up("WHERE shakes hands (TLSv1.3)")
        assert server.polite == [True], "a FIN after close_notify, though tickets were on their way"


def test_rejected_certificates() -> None:
    made = certificates()
    for tls, detail in (
        (
            Tls(name="other.example.org", ca_file=made.ca),
            "expected a certificate for other.example.org from WHERE, got one for another name",
        ),
        (
            Tls(name="10.0.0.11", ca_file=made.ca),
            "expected a certificate for 10.0.0.11 from WHERE, got one for another name",
        ),
        (
            Tls(name=NAME, ca_file=made.other_ca),
            "expected a valid certificate from WHERE, got unable to get local issuer certificate",
        ),
        (
            Tls(name=NAME),
            "expected a valid certificate from WHERE, got unable to get local issuer certificate",
        ),
    ):
        answer, _ = answer_of(TlsHandshake(tls=tls), [], tls=made.good)
        assert answer == down(detail)
    answer, _ = answer_of(TlsHandshake(tls=Tls(ca_file=made.ca)), [], tls=made.expired)
    assert answer == down("expected a valid certificate from WHERE, got certificate has expired")
    answer, _ = answer_of(TlsHandshake(tls=Tls(verify=False)), [], tls=made.expired)
    assert answer.up


def test_no_tls_at_all() -> None:
    asks = TlsHandshake(tls=Tls(verify=False))
    answer, _ = answer_of(asks, [b"220 mail.example.org\r\n", Hang()])
    assert answer == down(
        "expected a TLS handshake from WHERE, got an error of it: wrong version number"
    )
    answer, _ = answer_of(asks, [HangUp()])
    assert answer.up is False
    answer, _ = answer_of(asks, [Hang()], timeout=0.2)
    assert answer == down("no TLS handshake within 0.2 s from WHERE")


def handshake_with(
    context: ssl.SSLContext, certificate: Path | None = None, key: Path | None = None
) -> Answer:
    """A blocking server: asyncio's do not send the alert of a failed handshake."""
    made = certificates().directory
    context.load_cert_chain(certificate or made / "good.pem", key or made / "good.key")

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(ssl.SSLError):
            context.wrap_socket(connection, server_side=True).close()

    async def main() -> Answer:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            serving = asyncio.create_task(asyncio.to_thread(serve, listener))
            port = listener.getsockname()[1]
            answer = await asked(target(TlsHandshake(tls=Tls(verify=False)), port))
            await serving
            return Answer(up=answer.up, detail=answer.detail.replace(str(port), "PORT"))

    return asyncio.run(main())


def test_a_server_that_is_too_old() -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with warnings.catch_warnings(action="ignore"):
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("DEFAULT:@SECLEVEL=0")
    assert handshake_with(old) == down(
        "expected a TLS handshake from 127.0.0.1 port PORT, got an error of it:"
        " tlsv1 alert protocol version (TLS 1.2 or later is needed)"
    )


def test_a_server_without_a_common_cipher() -> None:
    other = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    other.minimum_version = other.maximum_version = ssl.TLSVersion.TLSv1_2
    other.set_ciphers("ECDHE-RSA-AES128-GCM-SHA256")  # the certificate's key is not RSA's
    assert handshake_with(other) == down(
        "expected a TLS handshake from 127.0.0.1 port PORT, got an error of it:"
        " sslv3 alert handshake failure"
    )


def rsa_key(directory: Path) -> None:
    """A self-signed certificate, for suites with RSA."""
    words = "req -x509 -newkey rsa:2048 -nodes -subj /CN=x -keyout rsa.key -out rsa.pem"
    subprocess.run(["openssl", *words.split()], cwd=directory, check=True, capture_output=True)


def test_a_server_cannot_choose_a_custom_group(tmp_path: Path) -> None:
    """The server chooses the size of a Diffie-Hellman group: 8,192 bits take 0.15 s."""
    rsa_key(tmp_path)
    words = "genpkey -genparam -algorithm DH -pkeyopt group:ffdhe8192 -out dh.pem"
    subprocess.run(["openssl", *words.split()], cwd=tmp_path, check=True, capture_output=True)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_dh_params(str(tmp_path / "dh.pem"))
    server.maximum_version = ssl.TLSVersion.TLSv1_2
    server.set_ciphers("DHE-RSA-AES128-GCM-SHA256")
    answer = handshake_with(server, tmp_path / "rsa.pem", tmp_path / "rsa.key")
    assert answer == down(
        "expected a TLS handshake from 127.0.0.1 port PORT, got an error of it:"
        " sslv3 alert handshake failure"
    )


def test_all_suites_of_tls_12_with_named_groups_are_offered() -> None:
    host = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).get_ciphers()
    made = asyncio.run(context_of(Tls(verify=False))).get_ciphers()
    kinds = {suite.get("kea") for suite in made}
    assert kinds <= {"kx-any", "kx-ecdhe", "kx-rsa"}
    assert [suite["name"] for suite in made] == [
        suite["name"] for suite in host if suite.get("kea") in kinds
    ]


def test_handshakes_are_computed_in_a_thread(tmp_path: Path) -> None:
    """TLS 1.3 has named groups, some of them large."""
    rsa_key(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = (
        f"s_server -accept 127.0.0.1:{port} -tls1_3 -groups ffdhe8192 -cert rsa.pem -key rsa.key"
    )
    asked_of = target(TlsHandshake(tls=Tls(verify=False)), port, timeout=30.0)
    budget = answer_budget()

    async def main() -> tuple[Answer, float]:
        await load_probe(asked_of)
        while not (await run_probe(target(Tcp(), port), answer_budget())).up:
            await asyncio.sleep(0.05)
        began = time.thread_time()
        answer = await run_probe(asked_of, budget)
        return answer, time.thread_time() - began

    with subprocess.Popen(
        ["openssl", *words.split(), "-quiet"],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as server:
        try:
            answer, here = asyncio.run(main())
        finally:
            server.kill()
    assert answer.detail == f"127.0.0.1 port {port} shakes hands (TLSv1.3)"
    assert here < budget.used_time, "most of it is not this thread's"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ssl.SSLError(1, "[SSL] record layer failure (_ssl.c:1006)"), "[SSL] record layer failure"),
        (ssl.SSLError("no cipher\x1b match"), "no cipher\\x1b match"),
        (ssl.SSLError(), "SSLError"),
    ],
)
def test_an_error_without_a_reason_is_described_by_its_text(
    error: ssl.SSLError, words: str
) -> None:
    assert handshake_failure(error, Tls()) == ("a TLS handshake", f"an error of it: {words}")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: no such file or directory (ca-file)"),
        ("nonsense\n", "holds no certificate that can be read (ca-file: PEM is expected)"),
    ],
)
def test_a_ca_file_that_cannot_be_read_is_no_verdict(
    tmp_path: Path, content: str | None, words: str
) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    made = certificates()
    answer, _ = answer_of(TlsHandshake(tls=Tls(ca_file=str(path))), [], tls=made.good)
    assert answer.up is None
    assert answer.detail == f"this host cannot probe WHERE: {path} {words}"


def test_an_invalid_server_name_is_no_verdict() -> None:
    answer, _ = answer_of(TlsHandshake(tls=Tls(name=".x")), [], tls=certificates().good)
    assert answer.up is None
