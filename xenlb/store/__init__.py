"""What outlives a process: the state file and the last good configuration, and their formats."""
