"""Convolutions: one primitive, its forms on a CPU, and what builds on them."""
