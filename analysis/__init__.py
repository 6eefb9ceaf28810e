"""What is measured of a trained network: quality, features, samples. Nothing here trains it."""
