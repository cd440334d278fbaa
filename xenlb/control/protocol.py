"""What goes over the control socket: one request a connection, newline-delimited JSON.

The client sends one object, `{"verb": "status", …}`, at most REQUEST_LIMIT bytes long; `until` in
it, in seconds of CLOCK_BOOTTIME, is when it stops waiting and wants nothing done any more. The
agent answers with one line, `{"ok": …}`, or, for verbs that go on, with `{"item": …}` lines and a
closing `{"ok": null}`; or with `{"error": {"message": …, "hint": …, "status": …}}`, where status
is the exit status of the command. Imported by the client, so it imports next to nothing.
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
    """A request that cannot be done: one sentence, what to do about it, and the exit status."""

    def __init__(self, message: str, *, hint: str = "", status: int = FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.status = status

    def as_json(self) -> dict[str, object]:
        return {"error": {"message": self.message, "hint": self.hint, "status": self.status}}
