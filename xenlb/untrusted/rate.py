"""PURE. A limit on the rate of untrusted events. Time is an argument."""


class TokenBucket:
    """A token bucket: `burst` events at once, then `rate` a second."""

    def __init__(self, burst: float, rate: float) -> None:
        self._burst, self._rate = burst, rate
        self._tokens, self._at = burst, float("-inf")

    def take(self, now: float) -> bool:
        """Take a token; False if there is none."""
        self._refill(now)
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def wait(self, now: float) -> float:
        """Return the seconds until there is a token, without taking it."""
        self._refill(now)
        return max(0.0, (1 - self._tokens) / self._rate)

    def idle(self, now: float) -> bool:
        """Whether the bucket is full."""
        self._refill(now)
        return self._tokens >= self._burst

    def _refill(self, now: float) -> None:
        if now > self._at:
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
            self._at = now
