"""The tcp check of a service address through one server, past the kernel's own TCP."""
