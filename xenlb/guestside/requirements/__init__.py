"""PURE. What a guest needs for its services, compiled from these; what its hold needs is a part."""
