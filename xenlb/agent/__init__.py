"""The daemon: the owner of state and table, its sources, and the verbs of the control socket."""
