"""Probes of servers. Results are reported as events; the model decides on health."""
