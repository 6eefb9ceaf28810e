"""Experiments with models that make images."""
