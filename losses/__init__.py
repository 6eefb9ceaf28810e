"""Losses: pure functions of arrays, unreduced."""
