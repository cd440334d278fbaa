#!/usr/bin/python3
"""Sends mail, inside a lab: a new SMTP session for every message, at a steady pace, no retries.

As mail servers do when they send, it has few sessions at a time; where servers are slow, it waits.

    mailclient.py ADDRESS:PORT --rate N --clients A,B,… --results FILE

Message number n has the Message-ID <n@client> and comes from the next client address after every
four. Each attempt gives one line of JSON in FILE when it is over: id, client, t (wall clock when it
began), seconds, server (from its greeting), accepted (the server has said 250 to the message), and
error. Ends with SIGTERM, when all that was begun is over.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import smtplib
import threading
import time
from typing import Any, TextIO

EACH = 4
SESSIONS = 2
TIMEOUT = 60  # seconds, for each step of a session


class Sender:
    def __init__(self, options: argparse.Namespace, results: TextIO) -> None:
        self.host, _, port = options.target.rpartition(":")
        self.port = int(port)
        self.rate = options.rate
        self.clients = options.clients.split(",")
        self.results = results
        self.lock = threading.Lock()
        self.free = threading.Semaphore(SESSIONS)
        self.stop = threading.Event()

    def main(self) -> None:
        signal.signal(signal.SIGTERM, lambda *_: self.stop.set())
        threads, number, due = [], 0, time.monotonic()
        while not self.stop.wait(max(0.0, due - time.monotonic())):
            due = max(due, time.monotonic()) + 1 / self.rate
            self.free.acquire()
            thread = threading.Thread(target=self.attempt, args=(number,))
            thread.start()
            threads.append(thread)
            number += 1
        for thread in threads:
            thread.join()

    def attempt(self, number: int) -> None:
        client = self.clients[number // EACH % len(self.clients)]
        line: dict[str, Any] = {
            "id": f"<{number}@client>",
            "client": client,
            "t": time.time(),
            "server": None,
            "accepted": False,
            "error": None,
        }
        clock = time.monotonic()
        try:
            self.send(line, client)
        except (OSError, smtplib.SMTPException) as error:
            line["error"] = f"{type(error).__name__}: {error}"
        line["seconds"] = time.monotonic() - clock
        self.free.release()
        with self.lock:
            self.results.write(json.dumps(line) + "\n")
            self.results.flush()

    def send(self, line: dict[str, Any], client: str) -> None:
        session = smtplib.SMTP(
            timeout=TIMEOUT, source_address=(client, 0), local_hostname="client.example.net"
        )
        try:
            code, greeting = session.connect(self.host, self.port)
            if code != 220:
                raise smtplib.SMTPConnectError(code, greeting)
            line["server"] = greeting.split()[0].decode().partition(".")[0]
            session.sendmail(
                "sender@example.net",
                ["box@example.org"],
                f"Message-ID: {line['id']}\r\nSubject: test\r\n\r\nA message.\r\n",
            )
            line["accepted"] = True
            # What happens to the goodbye is no matter of the message any more.
            with contextlib.suppress(OSError, smtplib.SMTPException):
                session.quit()
        finally:
            session.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="sends mail, for the tests")
    parser.add_argument("target", metavar="ADDRESS:PORT")
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--clients", required=True)
    parser.add_argument("--results", required=True)
    options = parser.parse_args()
    with open(options.results, "w") as results:
        Sender(options, results).main()


if __name__ == "__main__":
    main()
