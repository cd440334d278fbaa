"""PURE. From files that are wanted, and what is at their paths, to operations, and back again.

What the files say is of no matter here; who performs the operations: the room transport.
"""
