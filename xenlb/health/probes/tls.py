"""The tls check: a TLS handshake and the server's certificate."""

from xenlb.health.transport.result import Answer
from xenlb.health.transport.stream import Stream, stream_probe
from xenlb.model.checks import TlsHandshake


async def _check(stream: Stream, _asks: TlsHandshake) -> Answer:
    return await stream.passed(f"shakes hands ({stream.tls_version()})")


probe = stream_probe(TlsHandshake, _check)
