"""Networks that learn what images are like, without labels."""
