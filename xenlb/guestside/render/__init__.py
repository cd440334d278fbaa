"""The files made from the needs of a guest, and their templates."""
