"""Weights from and to other libraries: one file an architecture says how its parts are called."""
