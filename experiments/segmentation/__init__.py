"""Experiments on semantic segmentation."""
