"""Networks that make images: autoencoders and what is built on them."""
