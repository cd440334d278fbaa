"""One module for each type of check."""
