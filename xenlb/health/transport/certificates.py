"""TLS contexts for checks, and details for failed handshakes.

A context is made once for each Tls value, in a thread, as reading this host's certificates takes
some 20 ms. After LIFETIME it is made again, so that a replaced ca-file takes effect.
"""

import asyncio
import re
import ssl
import threading
import time

from xenlb.model.checks import Tls
from xenlb.untrusted.printable import first_line

LIFETIME = 600.0  # s

# OpenSSL's reasons if the two sides have no version of TLS in common.
_TOO_OLD = {
    "UNSUPPORTED_PROTOCOL",
    "TLSV1_ALERT_PROTOCOL_VERSION",
    "VERSION_TOO_LOW",
    "NO_PROTOCOLS_AVAILABLE",
}

# In TLS 1.2, as SSLContext.get_ciphers() calls them. With these the server does not choose the
# group by its parameters: a Diffie-Hellman group of 10,000 bits takes a second. TLS 1.3 has named
# groups, and its suites are not set here.
KEY_EXCHANGES = {"kx-ecdhe", "kx-rsa"}

_cached: dict[Tls, tuple[float, ssl.SSLContext]] = {}
_lock = threading.Lock()


async def context_of(tls: Tls) -> ssl.SSLContext:
    """Return the context of a check's TLS settings.

    Raises OSError if the ca-file cannot be read, ssl.SSLError if it contains no certificate.
    """
    context = _fresh(tls)
    return await asyncio.to_thread(_context, tls) if context is None else context


def _fresh(tls: Tls) -> ssl.SSLContext | None:
    created, context = _cached.get(tls, (0.0, None))
    return context if time.monotonic() <= created + LIFETIME else None


def _context(tls: Tls) -> ssl.SSLContext:
    with _lock:  # thousands of checks may begin at once
        if (fresh := _fresh(tls)) is not None:
            return fresh
        for old in [each for each in _cached if _fresh(each) is None]:
            del _cached[old]
        context = _create(tls)
        _cached[tls] = time.monotonic(), context
        return context


def _create(tls: Tls) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    suites = [suite for suite in context.get_ciphers() if suite.get("kea") in KEY_EXCHANGES]
    context.set_ciphers(":".join(suite["name"] for suite in suites))
    context.options |= ssl.OP_NO_RENEGOTIATION  # a write never waits for a read
    context.check_hostname = tls.verify and tls.name is not None
    if not tls.verify:
        context.verify_mode = ssl.CERT_NONE
    elif tls.ca_file is not None:
        context.load_verify_locations(cafile=tls.ca_file)
    else:
        context.load_default_certs()
    return context


def handshake_failure(error: ssl.SSLError, tls: Tls) -> tuple[str, str]:
    """Return what was expected of a failed handshake, and what came instead."""
    if isinstance(error, ssl.SSLCertVerificationError):
        # X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH
        if error.verify_code in (62, 64):
            return f"a certificate for {tls.name}", "one for another name"
        return "a valid certificate", error.verify_message
    return "a TLS handshake", f"an error of it: {_reason(error)}"


def _reason(error: ssl.SSLError) -> str:
    """Return OpenSSL's reason, else the error's text without the position in Python's source.

    The reason is None if it is newer than this Python, and missing for errors of Python itself.
    """
    reason: str | None = getattr(error, "reason", None)
    if reason is None:
        text = str(error.args[-1]) if error.args else ""
        return first_line(re.sub(r"\s*\(_ssl\.c:\d+\)\s*$", "", text)) or type(error).__name__
    text = reason.lower().replace("_", " ")
    return f"{text} (TLS 1.2 or later is needed)" if reason in _TOO_OLD else text
