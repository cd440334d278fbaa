"""What goes over the control socket: one request a connection, newline-delimited JSON.

The client sends one object, `{"verb": "status", …}`, at most REQUEST_LIMIT bytes long; `until` in
it, in seconds of CLOCK_BOOTTIME, is when it stops waiting and wants nothing done any more. The
agent answers with one line, `{"ok": …}`, or, for verbs that go on, with `{"item": …}` lines and a
closing `{"ok": null}`; or with `{"error": {"message": …, "hint": …, "status": …}}`, where status
is the exit status of the command, and `"busy": true` stands beside it where the agent has no place
for the client now, and has read no request. Imported by the client, so it imports next to nothing.
"""

REQUEST_LIMIT = 64 * 1024

# Exit statuses of the command line.
FAILED = 1
USAGE = 2
INVALID_CONFIGURATION = 3
UNREACHABLE = 4
NOT_PERMITTED = 5


class Json(str):
    """A value that is JSON already: made once, sent to many clients."""

    __slots__ = ()


class ControlError(Exception):
    """A request that cannot be done: one sentence, what to do about it, and the exit status.
    `busy`: nothing was done, and the same request may be taken a moment later."""

    def __init__(
        self, message: str, *, hint: str = "", status: int = FAILED, busy: bool = False
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.status = status
        self.busy = busy

    def as_json(self) -> dict[str, object]:
        error = {"message": self.message, "hint": self.hint, "status": self.status}
        return {"error": error | ({"busy": True} if self.busy else {})}
