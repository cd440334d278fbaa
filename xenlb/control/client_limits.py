"""How many clients of the control socket there may be at a time: of each user, of all, of root.

root's places are its own: whoever may read cannot keep `drain`, and the host's shutdown, out.
"""

from collections import Counter

PLACES = 64  # of all users but root
PLACES_OF_USER = 16
PLACES_OF_ROOT = 128


class ClientLimits:
    """Who is in, by user id."""

    def __init__(self) -> None:
        self._users: Counter[int] = Counter()

    def refusal(self, uid: int) -> str:
        """Why a client of this user gets no place now; "" if there is one."""
        mine = self._users[uid]
        if uid == 0:
            return "the agent has too many clients of root" if mine >= PLACES_OF_ROOT else ""
        if mine >= PLACES_OF_USER:
            return f"the agent has too many clients of uid {uid}"
        others = self._users.total() - self._users[0]
        return "the agent has too many clients" if others >= PLACES else ""

    def take(self, uid: int) -> None:
        self._users[uid] += 1

    def leave(self, uid: int) -> None:
        self._users[uid] -= 1
        if not self._users[uid]:
            del self._users[uid]
