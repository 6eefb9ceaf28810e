"""Opsin: computer-vision research in pure-functional JAX and Flax."""
