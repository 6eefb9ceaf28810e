"""Array mathematics without parameters."""
