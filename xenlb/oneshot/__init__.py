"""Passes without a daemon: `plan`, `apply`, and the look-up of one guest."""
