"""The needs of a guest, compiled from its services: pure."""
