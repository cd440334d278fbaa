"""The interfaces of a running agent: its control socket, the port for guests, and systemd."""
