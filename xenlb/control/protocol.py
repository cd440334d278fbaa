"""The protocol of the control socket: one request a connection, newline-delimited JSON.

Request: one object, `{"verb": "status", …}`, of at most REQUEST_LIMIT bytes. Its `until`, in
seconds of CLOCK_BOOTTIME, is when the client stops waiting; the agent then does nothing for it.

Answer: one line `{"ok": …}`, or for a stream `{"item": …}` lines and a closing `{"ok": null}`, or
`{"error": {"message": …, "hint": …, "status": …}}`, where status is the exit status of the command.
An error has `"busy": true` beside it if the agent had no slot for the client and read no request.

The client imports this module, so it imports nothing.
"""

REQUEST_LIMIT = 64 * 1024

# Exit statuses of the command line.
FAILED = 1
USAGE = 2
INVALID_CONFIGURATION = 3
UNREACHABLE = 4
NOT_PERMITTED = 5


class Json(str):
    """A value that is encoded as JSON already."""

    __slots__ = ()


class ControlError(Exception):
    """A request that failed: a sentence, what to do about it, and the exit status.

    `busy`: nothing was done, and the same request may succeed a moment later.
    """

    def __init__(
        self, message: str, *, hint: str = "", status: int = FAILED, busy: bool = False
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.status = status
        self.busy = busy

    def as_json(self) -> dict[str, object]:
        """The answer with this error."""
        error = {"message": self.message, "hint": self.hint, "status": self.status}
        return {"error": error | ({"busy": True} if self.busy else {})}
