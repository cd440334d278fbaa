"""A parser of ipvsadm's syntax, for tables and operations in tests."""
