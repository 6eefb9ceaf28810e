"""Networks that label every pixel, on the backbones of the classifiers."""
