"""The probes, one module a check type."""
