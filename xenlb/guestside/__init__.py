"""What xenlb has inside its guests: compiled from the configuration, filled into templates."""
