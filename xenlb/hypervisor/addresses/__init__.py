"""Addresses of running guests, from all sources of this host."""
