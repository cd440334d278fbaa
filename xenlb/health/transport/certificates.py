"""TLS contexts for checks: whom to trust, and a server's certificate in words.

A context is made once for each Tls value, in a thread, as the certificates of this host take some
20 ms to read; after LASTS it is made anew, so that a ca-file that was replaced is noticed.
"""

import asyncio
import re
import ssl
import threading
import time

from xenlb.model.checks import Tls
from xenlb.untrusted.printable import first_line

LASTS = 600.0  # s

# OpenSSL's reasons where the two sides have no version of TLS in common.
_TOO_OLD = {
    "UNSUPPORTED_PROTOCOL",
    "TLSV1_ALERT_PROTOCOL_VERSION",
    "VERSION_TOO_LOW",
    "NO_PROTOCOLS_AVAILABLE",
}

# In TLS 1.2, as SSLContext.get_ciphers() calls them.
KEY_EXCHANGES = {"kx-ecdhe", "kx-rsa"}

_kept: dict[Tls, tuple[float, ssl.SSLContext]] = {}
_making = threading.Lock()


async def context_of(tls: Tls) -> ssl.SSLContext:
    """Raises OSError if the ca-file cannot be read or holds no certificate (ssl.SSLError)."""
    made, context = _kept.get(tls, (0.0, None))
    if context is None or time.monotonic() > made + LASTS:
        return await asyncio.to_thread(_remade, tls)
    return context


def _remade(tls: Tls) -> ssl.SSLContext:
    with _making:  # thousands of checks may begin at once
        now = time.monotonic()
        made, context = _kept.get(tls, (0.0, None))
        if context is None or now > made + LASTS:
            for old in [each for each, (made, _) in _kept.items() if now > made + LASTS]:
                del _kept[old]
            context = _made(tls)
            _kept[tls] = now, context
        return context


def _made(tls: Tls) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(":".join(_suites(context)))
    context.options |= ssl.OP_NO_RENEGOTIATION  # what is written never has to wait for reading
    context.check_hostname = tls.verify and tls.name is not None
    if not tls.verify:
        context.verify_mode = ssl.CERT_NONE
    elif tls.ca_file is not None:
        context.load_verify_locations(cafile=tls.ca_file)
    else:
        context.load_default_certs()
    return context


def _suites(context: ssl.SSLContext) -> list[str]:
    """Those of this host's for TLS 1.2 in which the server does not choose the group by its
    parameters: a Diffie-Hellman group of 10,000 bits takes a second. TLS 1.3 has groups of
    its own, which have names, and its suites are not set here."""
    return [suite["name"] for suite in context.get_ciphers() if suite.get("kea") in KEY_EXCHANGES]


def refused(error: ssl.SSLError, tls: Tls) -> tuple[str, str]:
    """What was expected of a handshake that failed, and what came instead."""
    if isinstance(error, ssl.SSLCertVerificationError):
        # X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH
        if error.verify_code in (62, 64):
            return f"a certificate for {tls.name}", "one for another name"
        return "a valid certificate", error.verify_message
    return "a TLS handshake", f"an error of it: {_reason(error)}"


def _reason(error: ssl.SSLError) -> str:
    """OpenSSL's word for it, else the error's text without its place in Python's source: a reason
    that is newer than this Python has no word, an error that Python makes has no such attribute."""
    word: str | None = getattr(error, "reason", None)
    if word is None:
        text = str(error.args[-1]) if error.args else ""
        return first_line(re.sub(r"\s*\(_ssl\.c:\d+\)\s*$", "", text)) or type(error).__name__
    reason = word.lower().replace("_", " ")
    return f"{reason} (TLS 1.2 or later is needed)" if word in _TOO_OLD else reason
