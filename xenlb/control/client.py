"""Asking a running agent; blocking and small, because every `xenlb status` pays its import."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from xenlb.control.lock import holder
from xenlb.control.protocol import NOT_PERMITTED, UNREACHABLE, ControlError

START = "start it with: systemctl start xenlb"


def call(path: Path, verb: str, *, patience: float = 15.0, **arguments: object) -> object:
    """The agent's answer to one request; `patience` in seconds is for each step of it.

    Raises ControlError, from the agent itself or because it cannot be asked.
    """
    items = list(stream(path, verb, patience=patience, **arguments))
    return items[-1] if items else None


def stream(
    path: Path, verb: str, *, patience: float | None = None, **arguments: object
) -> Iterator[object]:
    """The items of an answer as they come; a single answer is one item.

    `patience` None waits between items for as long as the agent lives.
    """
    with _connect(path, patience) as connection:
        request = {"verb": verb, **arguments}
        if patience is not None:
            request["until"] = time.clock_gettime(time.CLOCK_BOOTTIME) + patience
        try:
            # An agent that refuses may have closed before it read all; its answer tells why.
            with contextlib.suppress(BrokenPipeError):
                connection.sendall(json.dumps(request).encode() + b"\n")
            for line in connection.makefile("rb"):
                answer = json.loads(line)
                if "error" in answer:
                    error = answer["error"]
                    raise ControlError(error["message"], hint=error["hint"], status=error["status"])
                if "item" not in answer:
                    if answer["ok"] is not None:
                        yield answer["ok"]
                    return
                yield answer["item"]
        except ConnectionResetError:
            pass  # it was killed before it had read the request: on a unix socket that is told so
        except TimeoutError:
            raise ControlError(
                f"the agent did not answer within {patience:g} seconds",
                hint="see its log: journalctl -u xenlb",
                status=UNREACHABLE,
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ControlError(
                f"the conversation with the agent broke off: {error}",
                hint="see its log: journalctl -u xenlb",
            ) from error
    raise ControlError("the agent stopped while it answered", hint=START, status=UNREACHABLE)


def _connect(path: Path, patience: float | None) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Connecting to a unix socket waits when its backlog is full: an agent that hangs.
        connection.settimeout(patience or 15.0)
        connection.connect(os.fspath(path))
    except OSError as error:
        connection.close()
        raise _not_reached(path, error) from None
    connection.settimeout(patience)
    return connection


def _not_reached(path: Path, error: OSError) -> ControlError:
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
                hint="the agent makes it anew within a few seconds: try again",
                status=UNREACHABLE,
            )
        case FileNotFoundError():
            why = f"there is no {path}"
        case ConnectionRefusedError():
            why = f"nobody listens at {path}"
        case TimeoutError():
            why = f"it does not accept connections at {path}"
        case _:
            why = f"{path}: {error.strerror or error}"
    return ControlError(f"the agent cannot be reached: {why}", hint=START, status=UNREACHABLE)
