"""What probes share: sockets, streams, TLS certificates, patterns, and the result of a probe."""
