"""Representations that are learned without labels, and what they are worth."""
