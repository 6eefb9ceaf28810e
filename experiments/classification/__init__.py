"""Experiments on image classification."""
