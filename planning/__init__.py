"""The training step for devices that are not here."""
