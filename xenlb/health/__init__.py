"""Asks servers whether they serve, and says so as events; the verdict is `model.health`'s."""
