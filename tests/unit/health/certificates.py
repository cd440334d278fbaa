"""Certificates for the tests' servers, made by openssl(1) once a session."""

import atexit
import shutil
import ssl
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

NAME = "mail.example.org"
# For servers that have both and show this one to who asks for it.
EXPIRED = "expired.example.org"


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """`ca`: the trusted CA; contexts of servers: a valid one, and an expired one of the same CA.
    Their files are in `directory` (good.pem, good.key and so on)."""

    directory: Path
    ca: str
    other_ca: str
    good: ssl.SSLContext
    expired: ssl.SSLContext


@cache
def certificates() -> Certificates:
    directory = Path(mkdtemp(prefix="xenlb-certificates-"))
    atexit.register(shutil.rmtree, directory)

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=directory, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    for ca in ("ca", "other"):
        subject = ("-subj", f"/CN={ca}", "-days", "30")
        openssl("req", "-x509", *key, *subject, "-keyout", f"{ca}.key", "-out", f"{ca}.pem")
    (directory / "names").write_text(f"subjectAltName=DNS:{NAME},DNS:{EXPIRED}\n")
    (directory / "ca.conf").write_text(
        "[ca]\ndefault_ca=it\n[it]\ndatabase=index\nnew_certs_dir=.\nserial=serial\n"
        "certificate=ca.pem\nprivate_key=ca.key\ndefault_md=sha256\npolicy=any\n"
        "[any]\ncommonName=supplied\n"
    )
    (directory / "index").touch()
    (directory / "serial").write_text("01\n")
    for name, end in (("good", "20490101000000Z"), ("expired", "20200201000000Z")):
        openssl(
            "req", *key, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr"
        )
        issued = ("-in", f"{name}.csr", "-out", f"{name}.pem", "-extfile", "names", "-notext")
        dates = ("-startdate", "20200101000000Z", "-enddate", end)
        openssl("ca", "-batch", "-config", "ca.conf", *issued, *dates)

    def context(name: str) -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.load_cert_chain(directory / f"{name}.pem", directory / f"{name}.key")
        return made

    return Certificates(
        directory=directory,
        ca=str(directory / "ca.pem"),
        other_ca=str(directory / "other.pem"),
        good=context("good"),
        expired=context("expired"),
    )
