"""Metric states that merge by addition."""
