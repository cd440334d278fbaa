"""The inside of guests: what they need, what they have, and the difference applied.

Imports point down: `render` makes files from `requirements`; `transport` executes the operations of
`install`; `inspect` compares what a guest has with its requirements. The modules beside this one
put them together.
"""
