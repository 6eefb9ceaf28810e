"""From data sets to batches, and the augmentations that run on the device."""
