"""The files that are made of what a guest needs; the templates, and who fills them in."""
