"""PURE. What a guest has, in its own words, and how that differs from what it needs."""
