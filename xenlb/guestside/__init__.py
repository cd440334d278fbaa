"""The inside of guests: their needs, their state, and the changes between the two.

`requirements` are the needs of a guest. `render` makes files from them, `install` plans the changes
of files, and `transport` performs these. `inspect` compares the state of a guest with its needs.
"""
