"""How a model, a loss and metrics become a training step: one file per kind of learning."""
