"""What xenlb has inside its guests. What is done with one guest, from looking to removing: work.py.

Its rooms, where imports point down: `files` is made of what is `needed`; `ways` perform a `plan`;
what is `seen` is held against what is needed. What puts them together is in the modules beside this
one.
"""
