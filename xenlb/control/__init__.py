"""The way into a running agent: a unix socket with its server and client, and systemd's ear."""
