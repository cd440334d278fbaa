"""Limits for clients of the control socket: of each user, of all users, of root.

root has slots of its own, so that other users cannot block `drain` and the host's shutdown.
"""

from collections import Counter

SLOTS = 64  # of all users but root
SLOTS_OF_USER = 16
SLOTS_OF_ROOT = 128


class ClientSlots:
    """The number of clients by user id."""

    def __init__(self) -> None:
        self._users: Counter[int] = Counter()

    def refusal(self, uid: int) -> str:
        """Why another client of this user gets no slot now; "" if it gets one."""
        own = self._users[uid]
        if uid == 0:
            return "the agent has too many clients of root" if own >= SLOTS_OF_ROOT else ""
        if own >= SLOTS_OF_USER:
            return f"the agent has too many clients of uid {uid}"
        others = self._users.total() - self._users[0]
        return "the agent has too many clients" if others >= SLOTS else ""

    def take(self, uid: int) -> None:
        """Count one more client of this user; refusal() checks the limits."""
        self._users[uid] += 1

    def release(self, uid: int) -> None:
        """Count one client less of this user, after a take()."""
        self._users[uid] -= 1
        if not self._users[uid]:
            del self._users[uid]
