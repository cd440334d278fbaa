"""PURE. Limits on one answer of a server or guest: the processor's time, pieces and bytes.

Functions that read untrusted input take a budget as an argument and count each piece. A piece is
the input of one step: a read of a socket, a line, a header, a chunk of a body, a hop of a route.
Time is measured by the callers.
"""


class BudgetSpent(Exception):
    """An answer exceeds its budget. The message completes «got …»."""


class Budget:
    """The budget of one answer. `time`: seconds of the processor; `size`: bytes; None: no limit.

    `used_time`, `used_pieces` and `used_size` are the sums so far. `spent` is set by the code that
    gives the answer up.
    """

    def __init__(self, *, pieces: int, size: int | None = None, time: float | None = None) -> None:
        self.pieces, self.size, self.time = pieces, size, time
        self.used_pieces, self.used_size, self.used_time = 0, 0, 0.0
        self.spent = False

    def take(self, pieces: int = 1, *, size: int = 0) -> None:
        """Count pieces of `size` bytes together. Raises BudgetSpent."""
        self.used_pieces += pieces
        self.used_size += size
        if self.used_pieces > self.pieces:
            raise BudgetSpent(f"more than {self.pieces} pieces")
        if self.size is not None and self.used_size > self.size:
            raise BudgetSpent(f"more than {self.size // 1024} KiB")
        if self.time is not None and self.used_time > self.time:
            raise BudgetSpent(f"one that takes more than {self.time:g} s to read")

    def add_time(self, seconds: float) -> None:
        """Count time. If it is too much, the next piece raises BudgetSpent."""
        self.used_time += seconds
