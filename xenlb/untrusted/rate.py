"""PURE. How often something foreign may happen: a token bucket. Time is an argument."""


class TokenBucket:
    """`burst` at once, then `rate` a second."""

    def __init__(self, burst: float, rate: float) -> None:
        self._burst, self._rate = burst, rate
        self._tokens, self._at = burst, float("-inf")

    def take(self, now: float) -> bool:
        """Takes a token; False if there is none."""
        self._refill(now)
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def wait(self, now: float) -> float:
        """Seconds until there is a token; 0 if there is one. Takes none."""
        self._refill(now)
        return max(0.0, (1 - self._tokens) / self._rate)

    def idle(self, now: float) -> bool:
        """Is it full, as a new one is?"""
        self._refill(now)
        return self._tokens >= self._burst

    def _refill(self, now: float) -> None:
        if now > self._at:
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
            self._at = now
