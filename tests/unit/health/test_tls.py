"""The tls check, and what is said of certificates."""

from pathlib import Path

import pytest

from tests.unit.health.certificates import NAME, certificates
from tests.unit.health.servers import Hang, HangUp, answer_of, down, up
from xenlb.model.checks import Tls, TlsHandshake


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


def test_certificates_that_are_not_taken() -> None:
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


def test_a_name_that_is_none_is_no_verdict() -> None:
    answer, _ = answer_of(TlsHandshake(tls=Tls(name=".x")), [], tls=certificates().good)
    assert answer.up is None
