"""What is asked of a trained network: measurements, features, samples. Nothing here trains it."""
