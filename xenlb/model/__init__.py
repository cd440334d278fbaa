"""Pure rules: the state of the agent, and the table that follows from it."""
