"""PURE. What one answer of a server or guest may cost: time, pieces and bytes.

Whoever reads foreign input takes a budget as an argument and takes each piece out of it. A piece is
what is read in one step: what a socket had, a line, a header, a chunk of a body, a hop of a route.
Time is the processor's and is told by whoever can measure it, as nothing here looks at a clock.
"""


class BudgetSpent(Exception):
    """An answer costs more than it may. The message says of what it has more."""


class Budget:
    """Of one answer. `time`: seconds of the processor; `size`: bytes; None: without a limit.

    `used_time`, `used_pieces` and `used_size` are what was taken so far. `spent`: the answer was
    given up because of it; whoever gives it up sets that.
    """

    def __init__(self, *, pieces: int, size: int | None = None, time: float | None = None) -> None:
        self.pieces, self.size, self.time = pieces, size, time
        self.used_pieces, self.used_size, self.used_time = 0, 0, 0.0
        self.spent = False

    def take(self, pieces: int = 1, *, size: int = 0) -> None:
        """Takes the next pieces, of `size` bytes together. Raises BudgetSpent."""
        self.used_pieces += pieces
        self.used_size += size
        if self.used_pieces > self.pieces:
            raise BudgetSpent(f"more than {self.pieces} pieces")
        if self.size is not None and self.used_size > self.size:
            raise BudgetSpent(f"more than {self.size // 1024} KiB")
        if self.time is not None and self.used_time > self.time:
            raise BudgetSpent(f"one that takes more than {self.time:g} s to read")

    def took(self, seconds: float) -> None:
        """Counts time. The next piece raises BudgetSpent if that was too much."""
        self.used_time += seconds
