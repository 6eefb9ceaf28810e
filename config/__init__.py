"""Experiments as trees: overrides, identity, the catalogue."""
