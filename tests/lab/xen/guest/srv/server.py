"""What a test guest serves; runs inside it: server.py NAME PORT[,PORT…] [ipv6].

Answers as traffic.py's server does, so that its client understands both:

    GET /                 NAME, the peer's address and port
    GET /slow?seconds=N   that line again and again for N seconds
    GET /health           503 while /run/sick exists
    UDP                   the line, then what was sent

An emulated guest needs 2 s of its boot to import asyncio and argparse, and a quarter of one for
the enums in `socket`; built-in modules alone start in a fraction of that.
"""

import _socket
import select
import sys
import time

DRIPS_PER_SECOND = 5
ACCEPT = "_accept"  # what socket.socket.accept calls; typeshed does not know it
Address = tuple[str, int]


class Server:
    """One thread, one epoll; every descriptor has a function that is called when it is ready."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.epoll = select.epoll()
        self.sockets: dict[int, _socket.socket] = {}  # all of them, by descriptor
        self.listeners: set[int] = set()
        self.datagrams: set[int] = set()
        self.requests: dict[int, bytes] = {}  # what has come of a request
        self.peers: dict[int, Address] = {}
        self.drips: dict[int, tuple[float, int]] = {}  # when the next one is due, how many remain

    def listen(self, family: int, address: str, port: int) -> None:
        for kind, group in (
            (_socket.SOCK_STREAM, self.listeners),
            (_socket.SOCK_DGRAM, self.datagrams),
        ):
            sock = _socket.socket(family, kind)
            sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
            if family == _socket.AF_INET6:
                sock.setsockopt(_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY, 1)
            sock.bind((address, port))
            if kind == _socket.SOCK_STREAM:
                sock.listen(1024)
            group.add(self.watch(sock))

    def watch(self, sock: _socket.socket) -> int:
        sock.setblocking(False)
        descriptor = sock.fileno()
        self.sockets[descriptor] = sock
        self.epoll.register(descriptor, select.EPOLLIN)
        return descriptor

    def drop(self, descriptor: int) -> None:
        self.requests.pop(descriptor, None)
        self.peers.pop(descriptor, None)
        self.drips.pop(descriptor, None)
        self.epoll.unregister(descriptor)
        self.sockets.pop(descriptor).close()

    def line(self, peer: Address) -> bytes:
        return f"{self.name} {peer[0]} {peer[1]}\n".encode()

    def serve(self) -> None:
        while True:
            timeout = -1.0
            if self.drips:
                timeout = max(0.0, min(due for due, _ in self.drips.values()) - time.monotonic())
            for descriptor, _ in self.epoll.poll(timeout):
                if descriptor not in self.sockets:
                    continue
                try:
                    self.ready(descriptor)
                except BlockingIOError:
                    pass
                except OSError:  # the peer has gone
                    if descriptor in self.peers:
                        self.drop(descriptor)
            now = time.monotonic()
            for descriptor in [d for d, (due, _) in self.drips.items() if due <= now]:
                self.drip(descriptor)

    def ready(self, descriptor: int) -> None:
        sock = self.sockets[descriptor]
        if descriptor in self.listeners:
            number, peer = getattr(sock, ACCEPT)()
            self.peers[self.watch(_socket.socket(fileno=number))] = peer
        elif descriptor in self.datagrams:
            data, peer = sock.recvfrom(2048)
            sock.sendto(self.line(peer) + data, peer)
        else:
            data = sock.recv(4096)
            request = self.requests[descriptor] = self.requests.get(descriptor, b"") + data
            if not data:
                self.drop(descriptor)
            elif b"\r\n\r\n" in request and descriptor not in self.drips:
                self.answer(descriptor, request.split()[1].decode())

    def answer(self, descriptor: int, target: str) -> None:
        line, status, repeats = self.line(self.peers[descriptor]), "200 OK", 1
        path, _, query = target.partition("?")
        if path == "/slow":
            repeats = max(1, round(float(query.partition("seconds=")[2]) * DRIPS_PER_SECOND))
        elif path == "/health" and is_sick():
            status = "503 Service Unavailable"
        head = (
            f"HTTP/1.0 {status}\r\nContent-Type: text/plain\r\n"
            f"Content-Length: {len(line) * repeats}\r\n\r\n"
        )
        self.sockets[descriptor].send(head.encode() + (b"" if path == "/slow" else line))
        if path == "/slow":
            self.drips[descriptor] = (time.monotonic() + 1 / DRIPS_PER_SECOND, repeats)
        else:
            self.drop(descriptor)

    def drip(self, descriptor: int) -> None:
        due, remaining = self.drips[descriptor]
        try:
            self.sockets[descriptor].send(self.line(self.peers[descriptor]))
        except OSError:
            remaining = 1
        if remaining == 1:
            self.drop(descriptor)
        else:
            self.drips[descriptor] = (due + 1 / DRIPS_PER_SECOND, remaining - 1)


def is_sick() -> bool:
    try:
        open("/run/sick").close()
    except OSError:
        return False
    return True


def main(name: str, ports: str, *families: str) -> None:
    server = Server(name)
    for port in ports.split(","):
        server.listen(_socket.AF_INET, "0.0.0.0", int(port))
        if "ipv6" in families:
            server.listen(_socket.AF_INET6, "::", int(port))
    print(f"{name}: serving on {ports}", flush=True)
    server.serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
