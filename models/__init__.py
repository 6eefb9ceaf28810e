"""Flax modules, one architecture per file."""
