"""The small experiment of the training tests."""

from tests.train.conftest import tiny

__all__ = ["tiny"]
