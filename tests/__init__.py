"""The tests of xenlb; `make test` runs them all."""
