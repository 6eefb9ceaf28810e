"""Networks that classify whole images; their backbones serve the other tasks."""
