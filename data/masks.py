"""Masks: one class a pixel."""

IGNORE = 255
