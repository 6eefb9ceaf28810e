"""Experiments: define, sweep, run, report."""
