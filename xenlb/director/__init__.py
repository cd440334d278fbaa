"""The director's own side of the services: their addresses on an interface, and sysctls."""
