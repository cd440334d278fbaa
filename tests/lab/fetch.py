#!/usr/bin/python3
"""One request of `traffic.py`'s server, inside a lab: `fetch.py ADDRESS PORT TIMEOUT [udp]`.

Prints the name of the server that answered, or ends with 1 and "connect: ECONNREFUSED" or the
like. Apart from traffic.py because tests poll with it, and loading asyncio takes a lab 0.3 s.
"""

import errno
import socket
import sys


def main(address: str, port: str, timeout: str, kind: str = "tcp") -> int:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    step = "connect"
    sock = socket.socket(family, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM)
    with sock:
        sock.settimeout(float(timeout))
        try:
            sock.connect((address, int(port)))
            step = "answer"
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            answer = b""
            while data := sock.recv(65536):
                answer += data
                if kind == "udp":
                    break
        except TimeoutError:
            print(f"{step}: timeout")
            return 1
        except OSError as error:
            print(f"{step}: {errno.errorcode.get(error.errno or 0, error)}")
            return 1
    words = answer.partition(b"\r\n\r\n")[2].split() if kind == "tcp" else answer.split()
    print(words[0].decode() if words else f"{step}: closed without a word")
    return 0 if words else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
