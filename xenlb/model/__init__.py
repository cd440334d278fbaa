"""Pure rules: what the agent knows (state), and the table that should follow from it."""
