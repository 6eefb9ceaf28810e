"""Representations that are learned without labels, and how well simple classifiers do on them."""
