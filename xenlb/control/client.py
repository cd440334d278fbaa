"""Send a request to the running agent. Blocking, and small: every command imports it."""

import contextlib
import json
import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from xenlb.control.lock import holder
from xenlb.control.protocol import NOT_PERMITTED, UNREACHABLE, ControlError

CONNECT_TIMEOUT = 15.0  # seconds, for a client that waits for its answer without limit
BUSY_RETRY = 0.2  # seconds until the next attempt, if the agent has no slot
START = "start it with: systemctl start xenlb"


def call(path: Path, verb: str, *, patience: float = 15.0, **arguments: object) -> object:
    """The agent's answer to one request; `patience` limits each step of it, in seconds.

    Raises ControlError, also if the agent cannot be reached.
    """
    items = list(stream(path, verb, patience=patience, **arguments))
    return items[-1] if items else None


def stream(
    path: Path, verb: str, *, patience: float | None = None, **arguments: object
) -> Iterator[object]:
    """The items of an answer as they arrive; a single answer is one item.

    Without `patience`, the client waits for items as long as the agent runs. An agent without a
    slot for another client gets the request again until the patience ends.
    """
    until = time.monotonic() + (CONNECT_TIMEOUT if patience is None else patience)
    while True:
        try:
            yield from _stream(path, verb, patience, arguments)
        except ControlError as error:
            if not error.busy or time.monotonic() + BUSY_RETRY > until:
                raise
            time.sleep(BUSY_RETRY)
        else:
            return


def _stream(
    path: Path, verb: str, patience: float | None, arguments: Mapping[str, object]
) -> Iterator[object]:
    with _connect(path, CONNECT_TIMEOUT if patience is None else patience) as connection:
        connection.settimeout(patience)
        request = {"verb": verb, **arguments}
        if patience is not None:
            request["until"] = time.clock_gettime(time.CLOCK_BOOTTIME) + patience
        try:
            # An agent that refuses may close before it has read all; its answer has the reason.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(json.dumps(request).encode() + b"\n")
            for line in connection.makefile("rb"):
                answer = json.loads(line)
                if "error" in answer:
                    error = answer["error"]
                    raise ControlError(
                        error["message"],
                        hint=error["hint"],
                        status=error["status"],
                        busy=error.get("busy") is True,
                    )
                if "item" not in answer:
                    if answer["ok"] is not None:
                        yield answer["ok"]
                    return
                yield answer["item"]
        except ConnectionResetError:
            pass  # the agent was killed before it had read the request
        except TimeoutError:
            raise ControlError(
                f"the agent did not answer within {patience:g} seconds",
                hint="see its log: journalctl -u xenlb",
                status=UNREACHABLE,
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ControlError(
                f"the connection to the agent broke: {error}",
                hint="see its log: journalctl -u xenlb",
            ) from error
    raise ControlError("the agent stopped while it answered", hint=START, status=UNREACHABLE)


def _connect(path: Path, patience: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # If the agent's queue is full (it hangs, or a user connects without end), connecting waits
        # in the kernel. A socket with a timeout of Python's would be refused at once.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(patience))
        connection.connect(os.fspath(path))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(0))
    except OSError as error:
        connection.close()
        raise _unreachable(path, error) from None
    return connection


def _timeval(seconds: float) -> bytes:
    return struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000))


def _unreachable(path: Path, error: OSError) -> ControlError:
    match error:
        case PermissionError():
            return ControlError(
                f"not permitted to use {path}",
                hint="be root, or a member of the group libvirt to read",
                status=NOT_PERMITTED,
            )
        case FileNotFoundError() | ConnectionRefusedError() if running := holder(path):
            return ControlError(
                f"the agent cannot be reached: it runs ({running}), but {path} was removed",
                hint="the agent creates it again within a few seconds: try again",
                status=UNREACHABLE,
            )
        case FileNotFoundError():
            reason = f"there is no {path}"
        case ConnectionRefusedError():
            reason = f"no process listens at {path}"
        case TimeoutError() | BlockingIOError():
            return ControlError(
                f"the agent cannot be reached: it does not accept connections at {path}",
                hint="it hangs, or users connect without end; see its log: journalctl -u xenlb",
                status=UNREACHABLE,
            )
        case _:
            reason = f"{path}: {error.strerror or error}"
    return ControlError(f"the agent cannot be reached: {reason}", hint=START, status=UNREACHABLE)
