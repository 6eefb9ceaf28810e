"""Image processing without learning: one image, pure functions."""
