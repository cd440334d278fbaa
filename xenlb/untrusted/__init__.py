"""Checks on untrusted input: printable text, rates, budgets, JSON."""
