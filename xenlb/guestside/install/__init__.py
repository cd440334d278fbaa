"""Plans for installing and removing files in a guest: pure."""
